import errno
import json

import pytest
import torch

from sparsenn.cli import main
from sparsenn.data import taught
from sparsenn.metrics import teacher_distance
from sparsenn.models import build_student, teacher
from sparsenn.papers.l1 import teacher_student
from sparsenn.papers.l1.study_config import packaged, read_study_config, study_config
from sparsenn.papers.l1.teacher_student import published_state, run_study
from sparsenn.training.errors import ConfigError, RunFolderError
from sparsenn.training.folder import alone_in

pytest.importorskip("scipy")
SMALL = {
    "batch_size": 16,
    "patience": 5,
    "dataset_size": 40,
    "num_epochs": 3,
    "lr": [0.01],
    "l1_norm": [1e-5],
    "l2_norm": [0],
    "init": 0.2,
    "name": "small",
}


def write(tmp_path, **changes):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SMALL, "save_path": str(tmp_path / "out"), **changes}))
    return str(path)


def trained_by_hand(source, student, activation, x, *, seed, l1=0.0, l2=0.0, epochs=3, lr=0.01):
    """The public loop in plain PyTorch, for a data set of one batch, whose order does not matter."""
    net = build_student(student, activation, scale=0.2, seed=seed).double()
    y = source.double()(x.double())
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=l2)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = (net(x.double()) - y).square().mean()
        loss = loss + l1 * sum(p.abs().sum() for p in net.parameters()) + l2 * sum(p.square().sum() for p in net.parameters())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return net, losses


@pytest.mark.parametrize("penalty", [{"l1": 0.02}, {"l2": 0.02}], ids=["l1", "l2"])
def test_a_run_is_the_public_loop(tmp_path, penalty):
    """L2 counts in the loss and as weight decay; the loss that is reported has it once."""
    strengths = {f"{name}_norm": [penalty.get(name, 0)] for name in ("l1", "l2")}
    config = write(tmp_path, batch_size=40, **strengths)
    names = {"teacher_model": "splitFilterCNN_tanh", "student_model": "multiChannelCNN_tanh"}
    folder = run_study("single", config, **names, seed=7, name="x")
    assert folder == tmp_path / "out" / "experiments_x_small_7"
    stored = torch.load(folder / "splitFilterCNN_tanh__multiChannelCNN_tanh.pth", weights_only=True)
    source = teacher("splitFilterCNN", "tanh")
    x, _ = taught(source, 40, seed=7)
    net, losses = trained_by_hand(source, "multiChannelCNN", "tanh", x, seed=7, **penalty)
    for name, weight in published_state(net).items():
        torch.testing.assert_close(stored["student_model_state_dict"][name].double(), weight, rtol=1e-4, atol=1e-6)
    # The loss of the last epoch is taken before its step, and our correction of L2 with the weights after it.
    assert stored["final_loss"] == pytest.approx(min(losses), rel=2e-3 if "l2" in penalty else 1e-5)
    assert stored["distance_metric"] == pytest.approx(teacher_distance(source.double(), net, absolute=True), rel=1e-4)
    assert stored["epochs"] == 3
    text = (folder / "experiment_x_small_7.txt").read_text()
    for line in ("splitFilterCNN_tanh -> multiChannelCNN_tanh", "layer2_weights.1: [[ 0.35 -0.73]]", "stopped after epoch: 2"):
        assert line in text
    assert f"Final Loss: {stored['final_loss']:.4f}" in text


def test_multiple_trains_every_pair_with_every_setting_and_goes_on(tmp_path):
    config = write(tmp_path, lr=[0.01, 0.02, 0.01], save_path=str(tmp_path / "o"))
    kinds = {"teacher_type": "baselineCNN", "student_type": "baselineCNN", "seed": 1, "name": "m"}
    folder = run_study("multiple", config, **kinds)
    files = sorted(folder.glob("*.pth"))
    assert len(files) == 18
    assert files[0].name == "baselineCNN_relu__baselineCNN_relu__lr0.01_l11e-05_l20.pth"
    text = (folder / "experiment_m_small_1.txt").read_text()
    assert text.count("stopped after epoch") == 18
    rows = (folder / "runs.jsonl").read_text().splitlines()
    (folder / "runs.jsonl").write_text("\n".join(rows[:7]) + "\n")  # as if killed
    assert run_study("multiple", config, **kinds) == folder
    again = [{**json.loads(row), "seconds": 0} for row in (folder / "runs.jsonl").read_text().splitlines()]
    assert again == [{**json.loads(row), "seconds": 0} for row in rows]
    assert (folder / "experiment_m_small_1.txt").read_text() == text


def test_learning_rates_that_print_alike_have_files_of_their_own(tmp_path):
    config = write(tmp_path, lr=[0.1234567, 0.12345671], same_act=True)
    folder = run_study("multiple", config, teacher_type="baselineCNN", student_type="baselineCNN")
    names = {path.name for path in folder.glob("*relu__lr*.pth")}
    assert names == {f"baselineCNN_relu__baselineCNN_relu__lr{lr}_l11e-05_l20.pth" for lr in ("0.1234567", "0.12345671")}


def test_like_activations_alone_and_exact_zeros(tmp_path):
    config = write(tmp_path, same_act=True, l1_norm=[3.0])
    folder = run_study("multiple", config, teacher_type="baselineCNN", student_type="multiChannelCNN", optimizer="prox")
    rows = [json.loads(row) for row in (folder / "runs.jsonl").read_text().splitlines()]
    assert [(row["teacher"], row["student"]) for row in rows] == [
        (f"baselineCNN_{a}", f"multiChannelCNN_{a}") for a in ("relu", "tanh", "sigmoid")
    ]
    assert all(row["exact_sparsity"] > 0.5 for row in rows)
    assert [row["perfect"] for row in rows] == [row["nonzero"] == [3, 2, 2] for row in rows]


@pytest.mark.parametrize(
    ("source", "student", "perfect"),
    [("baselineCNN", "fcn_128_128", False), ("splitFilterCNN", "multiChannelCNN", False), ("baselineCNN", "baselineCNN", None)],
)
def test_perfect_is_asked_where_the_paper_says_what_it_is(tmp_path, source, student, perfect):
    models = {"teacher_model": f"{source}_relu", "student_model": f"{student}_relu"}
    folder = run_study("single", write(tmp_path, num_epochs=1), **models)
    assert json.loads((folder / "runs.jsonl").read_text())["perfect"] is perfect


def test_packaged_settings_are_those_of_the_paper():
    assert len(packaged()) == 12
    for name in packaged():
        config = read_study_config(name)
        assert (config.batch_size, config.patience) == (16, 100)
        assert config.dataset_size == (5120 if "cnn" in name else 100_000)
        assert config.l1_norm[0] == (1e-5 if "l1" in name else 0)
        assert config.l2_norm[0] == (1e-5 if "l2" in name else 0)
        assert config.init == float(name.removesuffix(".json").rpartition("_")[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.01}, r"lr is 0.01; it takes a list of numbers above 0"),
        ({"batch_size": [16]}, r"batch_size is \[16\]; it takes a whole number"),
        ({"dataset_size": 10**9}, "dataset_size is 1000000000; it takes a whole number from 1 to 100000000"),
        ({"num_epochs": 2**31}, "num_epochs is 2147483648; it takes a whole number from 1 to 2147483647"),
        ({"init": 10**400}, "init is 1000.*; it takes a number, 0 or more"),
        ({"l1_norm": [-1]}, r"l1_norm is \[-1\]"),
        ({"epochs": 3}, "unknown 'epochs'; known are batch_size"),
        ({"loss_func": "MAE"}, "loss_func is 'MAE'; it takes MSE"),
        ({"same_act": 1}, "same_act is 1; it takes true or false"),
        ({"clipping": True}, "clipping is True; it takes a number, 0 or more, or false"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"save_path": "a\0b"}, "save_path is 'a.x00b'; it takes a folder's name"),
        ({"init": float("nan")}, "init is nan"),
        ({"l2_norm": [1e-5]}, "both have values above 0"),
    ],
)
def test_a_value_that_does_not_fit_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        study_config({**SMALL, **changes}, "here")


def test_no_clipping_is_false_in_the_public_codes_own_file():
    assert study_config({**SMALL, "clipping": False}, "here") == study_config({**SMALL, "clipping": 0}, "here")


def test_missing_keys_and_files(tmp_path):
    with pytest.raises(ConfigError, match="patience missing; it takes at least batch_size, patience"):
        study_config({key: value for key, value in SMALL.items() if key != "patience"}, "here")
    with pytest.raises(ConfigError, match=r"neither nothing\.json nor config_files/nothing\.json is a file; packaged"):
        read_study_config("nothing.json")
    twice = json.dumps(SMALL).replace("{", '{"lr": [0.02], ')
    for text, message in (
        ("[1]", "it holds a list"),
        ("{", "cannot be read as JSON"),
        (twice, "cannot be read as JSON .'lr' is given more than once"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_study_config(str(tmp_path / "bad.json"))


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("both", {}, "mode is 'both'; it takes single or multiple"),
        ("single", {"teacher_type": "baselineCNN"}, "mode single takes teacher_model and student_model"),
        (
            "single",
            {"teacher_model": "fcn_256_32_relu", "student_model": "fcn_256_32_relu"},
            "teacher_model: unknown type",
        ),
        ("single", {"teacher_model": "baselineCNN_swish", "student_model": "fcn_256_32_relu"}, "unknown activation 'swish'"),
        ("multiple", {"teacher_type": "baselineCNN", "student_type": "cnn"}, "student_type: unknown type 'cnn'; known are"),
        ("multiple", {"teacher_type": "baselineCNN", "student_type": "baselineCNN", "name": "a/b"}, "name is 'a/b'"),
        (
            "multiple",
            {"teacher_type": "baselineCNN", "student_type": "baselineCNN", "optimizer": "adam"},
            "optimizer is",
        ),
        *(
            (
                "multiple",
                {"teacher_type": "baselineCNN", "student_type": "baselineCNN", "seed": seed},
                "seed is .*; it takes a whole",
            )
            for seed in (-1, "a", 1.5, 2**63)
        ),
        (
            "multiple",
            {"teacher_type": "baselineCNN", "student_type": "baselineCNN", "name": "é" * 120},
            r"name makes a file's name of 2\d\d bytes; it takes one that is \d+ shorter",
        ),
    ],
)
def test_wrong_flags_are_named_before_anything_is_written(tmp_path, mode, options, message):
    with pytest.raises(ConfigError, match=message):
        run_study(mode, write(tmp_path), **options)
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    config = write(tmp_path)
    kinds = {"teacher_type": "baselineCNN", "student_type": "baselineCNN", "seed": 2, "name": "f"}
    folder = tmp_path / "out" / "experiments_f_small_2"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="holds other files"):
        run_study("multiple", config, **kinds)
    assert [entry.name for entry in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").rename(folder / "settings.json")
    with pytest.raises(RunFolderError, match="not the settings of a study"):
        run_study("multiple", config, **kinds)
    (folder / "settings.json").write_text("{}")
    with pytest.raises(RunFolderError, match="holds runs of another mode, pairs, seed, name, optimizer, config"):
        run_study("multiple", config, **kinds)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot be written \(.*\); name another folder with save_path"):
        run_study("multiple", write(tmp_path, save_path=str(tmp_path / "file")), **kinds)


def test_an_error_that_is_not_about_the_folder_stays_what_it_is(tmp_path, monkeypatch):
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/data")

    def fail(*_):
        raise error

    monkeypatch.setattr(teacher_student, "write_json", fail)
    models = {"teacher_model": "baselineCNN_relu", "student_model": "baselineCNN_relu"}
    with pytest.raises(FileNotFoundError) as caught:
        run_study("single", write(tmp_path), **models)
    assert caught.value is error


def test_a_study_that_another_process_trains_is_left_alone(tmp_path):
    models = {"teacher_model": "baselineCNN_relu", "student_model": "baselineCNN_relu"}
    folder = run_study("single", write(tmp_path), **models)
    (folder / "checkpoint.pt.part").write_bytes(b"ha")
    with alone_in(folder), pytest.raises(RunFolderError, match="another process trains here"):
        run_study("single", write(tmp_path), **models)
    assert (folder / "checkpoint.pt.part").read_bytes() == b"ha"


def test_the_command_line(tmp_path, capsys):
    words = [
        "teacher-student",
        "--mode",
        "single",
        "--teacher_model",
        "baselineCNN_gelu",
        "--student-model",
        "baselineCNN_gelu",
    ]
    assert main([*words, "--config_path", write(tmp_path), "--seed", "3", "--name", "c"]) == 0
    assert "experiments_c_small_3" in capsys.readouterr().out
    assert main([*words, "--config_path", "nothing.json"]) == 2
    assert "packaged settings are" in capsys.readouterr().err
