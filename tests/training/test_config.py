import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from sparsenn import data, models
from sparsenn.training import ConfigError, TrainConfig, configure, presets, read_config_file
from sparsenn.training.config import KEYS, resumed


def test_the_names_of_the_torch_free_table_are_those_of_the_rooms():
    from sparsenn.ops import stacked_steps
    from sparsenn.training.schedules import SCHEDULES

    assert (presets.OPTIMIZERS, presets.PENALTIES) == (stacked_steps.OPTIMIZERS, stacked_steps.PENALTIES)
    assert data.names() == presets.DATASETS
    assert models.names() == presets.MODELS
    assert tuple(SCHEDULES) == presets.SCHEDULES


def test_the_settings_need_no_torch():
    code = "import sys, sparsenn.training, sparsenn.cli; sparsenn.training.configure(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("dataset", "model"), presets.PRESETS)
@pytest.mark.parametrize("method", presets.METHODS)
def test_every_preset_is_a_valid_run(dataset, model, method):
    config = configure(dataset=dataset, model=model, method=method)
    assert (config.dataset, config.model, config.method) == (dataset, model, method)


# Kolb et al. 2025, Table 4: epochs, batch size, learning rates at depths 2, 3 and 4.
TABLE_4 = {
    ("mnist", "lenet-300-100"): (75, 256, 0.15, 0.15, 0.15),
    ("fashion-mnist", "lenet-300-100"): (75, 256, 0.15, 0.15, 0.15),
    ("kuzushiji-mnist", "lenet-300-100"): (75, 256, 0.4, 0.4, 0.4),
    ("mnist", "lenet-5"): (75, 256, 0.15, 0.15, 0.15),
    ("fashion-mnist", "lenet-5"): (75, 256, 0.15, 0.15, 0.15),
    ("kuzushiji-mnist", "lenet-5"): (75, 256, 0.15, 0.15, 0.15),
    ("cifar-10", "vgg-16"): (250, 128, 0.5, 0.6, 0.6),
    ("cifar-100", "vgg-19"): (250, 128, 0.3, 0.6, 0.6),
    ("cifar-10", "resnet-18"): (250, 128, 0.2, 0.5, 0.7),
    ("cifar-100", "resnet-18"): (250, 128, 0.2, 0.5, 0.7),
    ("tiny-imagenet", "resnet-18"): (250, 128, 0.5, 0.8, 1.1),
    ("cifar-10", "wide-resnet-16-8"): (250, 128, 0.2, 0.5, 0.7),
    ("cifar-100", "wide-resnet-16-8"): (250, 128, 0.2, 0.5, 0.7),
    ("tiny-imagenet", "wide-resnet-16-8"): (250, 128, 0.2, 0.5, 0.7),
    ("cifar-100", "resnet-34"): (250, 128, 0.2, 0.5, 0.7),
    ("tiny-imagenet", "resnet-34"): (150, 128, 0.2, 0.5, 0.7),
}


def test_the_networks_train_as_in_table_4_of_the_paper():
    assert set(TABLE_4) | {("digits", "lenet-300-100"), ("digits", "row-transformer")} == set(presets.PRESETS)
    for (dataset, model), (epochs, batch_size, *rates) in TABLE_4.items():
        for depth, rate in zip((2, 3, 4, 5, 1), (*rates, rates[2], rates[0]), strict=True):
            config = configure(dataset=dataset, model=model, depth=depth)
            assert (config.epochs, config.batch_size, config.lr) == (epochs, batch_size, rate)
        assert (config.schedule, config.momentum) == ("cosine", 0.9)
        assert config.augment == (epochs > 75)  # "for larger networks", on colour images
    assert configure(dataset="fashion-mnist").depth == 3
    assert configure(dataset="cifar-100").model == "vgg-19"


def test_magnitude_trains_before_and_after_and_the_others_prune_at_once():
    config = configure(dataset="mnist", method="magnitude")
    assert (config.epochs, config.prune_epoch, config.lr, config.lam) == (150, 75, 0.15, 0.0)
    assert configure(method="magnitude", epochs=7).prune_epoch == 3
    for method in ("snip", "synflow", "random"):
        config = configure(dataset="mnist", method=method, compression=50)
        assert (config.epochs, config.prune_epoch, config.compression) == (75, 0, 50)
    assert configure(method="snip", prune_epoch=3, retrain_lr=0.7).retrain_lr == 0.7
    with pytest.raises(ConfigError, match="retrain-lr has no effect with prune-epoch 0"):
        configure(method="snip", retrain_lr=0.1)
    with pytest.raises(ConfigError, match="prune-epoch is 7; with 7 epochs it takes 0 to 6"):
        configure(method="snip", epochs=7, prune_epoch=7)
    with pytest.raises(ConfigError, match="method synflow needs a compression, a number of 1 or more"):
        configure(method="synflow", compression=None)
    for method, given in itertools.product(("dwf", "prox", "dense"), ({"compression": 3}, {"prune_biases": True})):
        with pytest.raises(
            ConfigError, match=rf"method {method} has no masks; drop .*, or take one of magnitude, snip, synflow"
        ):
            configure(method=method, **given)


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
    [
        ("[1]", "one JSON object"),
        ("{", "cannot be read as JSON"),
        ("\x00", "cannot be read as JSON"),
        ('{"lr": 0.1, "seed": 1, "lr": 0.2}', "cannot be read as JSON: 'lr' is given more than once"),
        ('{"lr": [{"a": 1, "b": 2, "b": 2}]}', "JSON: 'b' is given more than once"),
        ("[" * 100_000, "cannot be read as JSON: it is nested too deeply"),
    ],
    ids=["list", "cut", "binary", "twice", "twice within", "deep"],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, sentence):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"c\.json .*{sentence}"):
        read_config_file(path)


@pytest.mark.parametrize(
    ("key", "value", "takes"),
    [
        ("method", "magic", "one of dwf, dwf-adam, prox, l1-subgradient, dense, magnitude, snip"),
        ("depth", 0, "a whole number from 1 to 64"),
        ("depth", 2.5, "a whole number"),
        ("depth", True, "a whole number"),
        ("depth", 10**9, "a whole number from 1 to 64"),
        ("depth", list(range(1000)), "a whole number"),
        ("method", [], "one of dwf"),
        ("method", {"dwf": 1}, "one of dwf"),
        ("depth", "2", "a whole number"),
        ("lam", -1e-9, "0 or more"),
        ("lam", float("nan"), "0 or more"),
        ("lr", 0, "above 0"),
        ("lr", float("inf"), "above 0"),
        ("schedule", "linear", "cosine, constant, step"),
        ("target_sparsity", 1.0, "between 0 and 1"),
        ("target_sparsity", 0, "between 0 and 1"),
        ("target_sparsity", "95%", "between 0 and 1"),
        ("target_sparsity", np.array([0.5, 0.9]), "between 0 and 1"),
        ("lam_schedule", "linear", "cosine, constant, step"),
        ("compression", 0.5, "a number, 1 or more"),
        ("compression", float("inf"), "a number, 1 or more"),
        ("prune_epoch", -1, "0 or more"),
        ("retrain_lr", 0, "a number above 0"),
        ("prune_biases", "yes", "true or false"),
        ("penalize_biases", 1, "true or false"),
        ("augment", 1, "true or false"),
        ("warmup", -1, "0 or more"),
        ("warmup", 1.5, "0 or more"),
        ("epochs", 0, "1 or more"),
        ("batch_size", -4, "1 or more"),
        ("clip_norm", -1, "0 or more"),
        ("input_noise", -0.1, "0 or more"),
        ("momentum", 1.0, "up to, but not, 1"),
        ("factor_init", "zeros", "preserve, root, dwf, variance_matching, standard"),
        ("balanced", True, "never, auto, always"),
        ("seed", -1, "from 0"),
        ("seed", 2**63, "from 0"),
        ("device", "gpu", "cpu, cuda or cuda:<index>"),
        ("threads", -1, "a whole number from 0 to 1024"),
        ("threads", 2**31 - 1, "a whole number from 0 to 1024"),
        ("dtype", "float16", "float32, float64, bfloat16"),
        ("twin", 1, "true or false"),
        ("eval_every", 0, "1 or more"),
        ("checkpoint_every", 0, "1 or more"),
        ("data_root", 5, "a folder"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_it_takes(key, value, takes):
    masks = key in ("compression", "prune_epoch", "retrain_lr", "prune_biases")
    with pytest.raises(ConfigError, match=f"{key.replace('_', '-')} is .*it takes .*{takes}") as caught:
        configure(**({"method": "snip"} if masks else {}), **{key: value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("key", "known"), [("dataset", "digits, mnist, fashion-mnist"), ("model", "lenet-300-100, lenet-5")])
@pytest.mark.parametrize("value", ["nothing", 3, None, [], {}])
def test_an_unknown_name_lists_the_known_ones(key, known, value):
    with pytest.raises(ConfigError, match=f"{key}: unknown name {re.escape(repr(value))}; known are {known}"):
        configure(**{key: value})


def test_a_network_that_does_not_fit_the_images_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match="lenet-5 has no settings for digits; known for digits: lenet-300-100"):
        configure(dataset="digits", model="lenet-5")


@pytest.mark.parametrize(
    ("method", "given"),
    [("dense", {"lam": 0.1}), ("dense", {"twin": True}), ("dense", {"target_sparsity": 0.5})]
    + [("snip", {"lam": 0.1}), ("magnitude", {"target_sparsity": 0.5})]
    + [(method, given) for method in presets.METHODS[2:] for given in ({"depth": 3}, {"factor_init": "root"})]
    + [(method, {"balanced": "auto"}) for method in presets.METHODS[1:]],
)
def test_settings_that_a_method_cannot_use_are_refused(method, given):
    with pytest.raises(ConfigError, match=f"drop {next(iter(given)).replace('_', '-')}, or take method dwf"):
        configure(method=method, **given)
    whole = configure(method=method).to_dict()
    with pytest.raises(ConfigError, match=f"method {method} takes"):
        TrainConfig(**{**whole, **given})


@pytest.mark.parametrize(
    ("method", "given", "sentence"),
    [
        ("dwf-adam", {"balanced": "auto"}, "has no root for balanced factors; drop balanced, or take method dwf"),
        ("prox", {"balanced": "auto"}, "has no factors; drop balanced, or take method dwf"),
        ("snip", {"lam": 0.1}, "has no penalty; drop lam, or take method dwf"),
        ("snip", {"depth": 3}, "has no factors; drop depth, or take method dwf"),
        ("dense", {"twin": True}, "has no twin; drop twin, or take method dwf"),
        ("dense", {"lam": 0.1, "depth": 3}, "has no factors and no penalty; drop depth, lam, or take method dwf"),
        ("prox", {"prune_epoch": 2, "depth": 3}, "has no masks; drop prune-epoch, or take one of magnitude, snip, "),
    ],
)
def test_what_a_method_lacks_is_what_was_asked_for(method, given, sentence):
    with pytest.raises(ConfigError, match=f"^method {method} {sentence}"):
        configure(method=method, **given)


@pytest.mark.parametrize("given", [{"lam_schedule": "cosine"}, {"lam": 0.0}])
def test_a_wanted_sparsity_needs_a_lambda_to_move(given):
    assert configure(target_sparsity=0.9).lam_schedule == "constant"
    with pytest.raises(ConfigError, match="target-sparsity finds λ by itself"):
        configure(target_sparsity=0.9, **given)


def test_factors_that_are_always_balanced_start_so():
    assert configure(balanced="always", factor_init="root").balanced == "always"
    with pytest.raises(ConfigError, match="balanced always takes factor-init root, not preserve"):
        configure(balanced="always")


@pytest.mark.parametrize(("given", "most"), [({}, 3), ({"method": "magnitude", "compression": 8, "prune_epoch": 3}, 0)])
def test_a_warmup_ends_before_its_part_of_the_run(given, most):
    assert configure(epochs=4, warmup=most, **given).warmup == most
    with pytest.raises(ConfigError, match=f"warmup is {most + 1}; with {most + 1} epochs at one go it takes 0 to {most}"):
        configure(epochs=4, warmup=most + 1, **given)


def test_a_run_from_before_there_was_a_setting_goes_on_with_what_it_meant():
    stored = configure(seed=3).to_dict()
    assert resumed({key: value for key, value in stored.items() if key != "warmup"}, {"warmup": 0}).to_dict() == stored


def test_a_resumed_run_keeps_its_settings():
    stored = configure(seed=3).to_dict()
    assert resumed(stored, {}) == TrainConfig(**stored)
    assert resumed(stored, {"seed": 3, "data_root": "elsewhere"}).data_root == "elsewhere"
    with pytest.raises(ConfigError, match=r"drop lr \(9, the run has .*\), seed \(4, the run has 3\)"):
        resumed(stored, {"lr": 9, "seed": 4})
