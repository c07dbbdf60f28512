import json
import subprocess
import sys

import pytest

from sparsenn import data, models
from sparsenn.training import ConfigError, TrainConfig, configure, presets, read_config_file
from sparsenn.training.config import KEYS, resumed


def test_the_names_of_the_torch_free_table_are_those_of_the_rooms():
    from sparsenn.training.schedules import SCHEDULES

    assert data.names() == presets.DATASETS
    assert models.names() == presets.MODELS
    assert tuple(SCHEDULES) == presets.SCHEDULES


def test_the_settings_need_no_torch():
    code = "import sys, sparsenn.training, sparsenn.cli; sparsenn.training.configure(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("dataset", "model"), presets.PRESETS)
@pytest.mark.parametrize("method", presets.METHODS)
def test_every_preset_is_a_valid_run_and_its_network_takes_its_images(dataset, model, method):
    config = configure(dataset=dataset, model=model, method=method)
    assert (config.dataset, config.model, config.method) == (dataset, model, method)
    models.build(model, image_size=8 if dataset == "digits" else 28)


def test_the_lenets_train_as_in_table_4_of_the_paper():
    config = configure(dataset="fashion-mnist")
    assert (config.model, config.epochs, config.batch_size, config.momentum) == ("lenet-300-100", 75, 256, 0.9)
    assert (config.schedule, config.lr, config.depth) == ("cosine", 0.15, 3)


def test_what_is_given_wins_over_the_preset():
    config = configure(dataset="mnist", lr=0.5, epochs=3)
    assert (config.lr, config.epochs, config.batch_size) == (0.5, 3, configure(dataset="mnist").batch_size)


def test_a_configuration_survives_its_file(tmp_path):
    config = configure(depth=4, lam=1e-3, seed=7)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert configure(**read_config_file(path)) == config


def test_the_file_of_a_dense_run_can_be_used_again():
    dense = configure(method="dense")
    assert configure(**dense.to_dict()) == dense


def test_a_twin_differs_in_method_and_learning_rate_alone():
    config = configure(seed=5, epochs=17)
    twin = config.dense_twin()
    different = {key for key in KEYS if getattr(config, key) != getattr(twin, key)}
    assert different <= {"method", "depth", "lam", "lam_schedule", "lr", "twin"}
    assert twin == configure(method="dense", seed=5, epochs=17)


def test_an_unknown_key_lists_the_known_ones(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"lambda": 3}')
    with pytest.raises(ConfigError, match=r"c\.json: unknown 'lambda'; known are dataset, model, .*lam, .*checkpoint_every"):
        read_config_file(path)
    with pytest.raises(ConfigError, match="unknown 'momentumm'"):
        configure(momentumm=0.9)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("[1]", "one JSON object"), ("{", "is not JSON"), ("\x00", "is not JSON")],
    ids=["list", "cut", "binary"],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, sentence):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"c\.json .*{sentence}"):
        read_config_file(path)


@pytest.mark.parametrize(
    ("key", "value", "takes"),
    [
        ("method", "magic", "one of dwf, prox, l1-subgradient, dense"),
        ("depth", 0, "1 or more"),
        ("depth", 2.5, "a whole number"),
        ("depth", True, "a whole number"),
        ("depth", "2", "a whole number"),
        ("lam", -1e-9, "0 or more"),
        ("lam", float("nan"), "0 or more"),
        ("lr", 0, "above 0"),
        ("lr", float("inf"), "above 0"),
        ("schedule", "linear", "cosine, constant, step"),
        ("target_sparsity", 1.0, "between 0 and 1"),
        ("target_sparsity", 0, "between 0 and 1"),
        ("target_sparsity", "95%", "between 0 and 1"),
        ("lam_schedule", "linear", "cosine, constant, step"),
        ("epochs", 0, "1 or more"),
        ("batch_size", -4, "1 or more"),
        ("clip_norm", -1, "0 or more"),
        ("input_noise", -0.1, "0 or more"),
        ("momentum", 1.0, "up to, but not, 1"),
        ("factor_init", "zeros", "preserve, root, dwf, variance_matching, standard"),
        ("seed", -1, "from 0"),
        ("seed", 2**63, "from 0"),
        ("device", "gpu", "cpu, cuda or cuda:<index>"),
        ("threads", -1, "0 or more"),
        ("dtype", "float16", "float32, float64, bfloat16"),
        ("twin", 1, "true or false"),
        ("eval_every", 0, "1 or more"),
        ("checkpoint_every", 0, "1 or more"),
        ("data_root", 5, "a folder"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_it_takes(key, value, takes):
    with pytest.raises(ConfigError, match=f"{key.replace('_', '-')} is .*it takes .*{takes}"):
        configure(**{key: value})


@pytest.mark.parametrize(("key", "known"), [("dataset", "digits, mnist, fashion-mnist"), ("model", "lenet-300-100, lenet-5")])
@pytest.mark.parametrize("value", ["nothing", 3, None])
def test_an_unknown_name_lists_the_known_ones(key, known, value):
    with pytest.raises(ConfigError, match=f"{key}: unknown name {value!r}; known are {known}"):
        configure(**{key: value})


def test_a_network_that_does_not_fit_the_images_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match="lenet-5 has no settings for digits; known for digits: lenet-300-100"):
        configure(dataset="digits", model="lenet-5")


@pytest.mark.parametrize(
    ("method", "given"),
    [("dense", {"lam": 0.1}), ("dense", {"twin": True}), ("dense", {"target_sparsity": 0.5})]
    + [(method, given) for method in presets.METHODS[1:] for given in ({"depth": 3}, {"factor_init": "root"})],
)
def test_settings_that_a_method_cannot_use_are_refused(method, given):
    with pytest.raises(ConfigError, match=f"drop {next(iter(given)).replace('_', '-')}, or take method dwf"):
        configure(method=method, **given)
    whole = configure(method=method).to_dict()
    with pytest.raises(ConfigError, match=f"method {method} takes"):
        TrainConfig(**{**whole, **given})


@pytest.mark.parametrize("given", [{"lam_schedule": "cosine"}, {"lam": 0.0}])
def test_a_wanted_sparsity_needs_a_lambda_to_move(given):
    assert configure(target_sparsity=0.9).lam_schedule == "constant"
    with pytest.raises(ConfigError, match="target-sparsity finds λ by itself"):
        configure(target_sparsity=0.9, **given)


def test_a_resumed_run_keeps_its_settings():
    stored = configure(seed=3).to_dict()
    assert resumed(stored, {}) == TrainConfig(**stored)
    assert resumed(stored, {"seed": 3, "data_root": "elsewhere"}).data_root == "elsewhere"
    with pytest.raises(ConfigError, match=r"drop lr \(9, the run has .*\), seed \(4, the run has 3\)"):
        resumed(stored, {"lr": 9, "seed": 4})
