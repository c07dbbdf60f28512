import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsenn
from sparsenn import _sources, cli
from sparsenn.data import taught
from sparsenn.models import build_student, teacher
from sparsenn.training import ConfigError, RunFolderError, SweepConfig, configure_sweep, read_sweep, sweep
from sparsenn.training.folder import alone_in
from sparsenn.training.grid.config import ACTIVATIONS, STUDENTS, TEACHERS
from sparsenn.training.stacked import Run, Stack, train

GRID = {
    "student": ["baselineCNN", "fcn_128_128"],
    "teacher": "splitFilterCNN",
    "student_activation": ["tanh", "relu"],
    "teacher_activation": ["relu", "tanh"],
    "same_activation": True,
    "optimizer": ["sgd", "prox"],
    "penalty": ["none", "l2"],
    "lam": 1e-3,
    "lr": 0.02,
    "seed": [0, 3],
    "samples": 40,
    "max_epochs": [3, 40],
    "patience": 5,
}


def test_the_names_of_the_settings_are_those_of_the_rooms_behind_them():
    from sparsenn.models import students, teachers

    assert (STUDENTS, TEACHERS) == (students.STUDENTS, teachers.TEACHERS)
    assert set(ACTIVATIONS) == set(students.ACTIVATIONS)


def test_a_grid_is_every_combination_once():
    keys = list(configure_sweep(GRID).runs())
    # 2 students × 2 pairs × 2 seeds × 2 lengths × (sgd without and with penalty, prox)
    assert len(keys) == 2 * 2 * 2 * 2 * 3
    assert len({json.dumps(key) for key in keys}) == len(keys)
    assert {key["student_activation"] == key["teacher_activation"] for key in keys} == {True}
    assert {(key["optimizer"], key["penalty"], key["lam"]) for key in keys} == {
        ("sgd", "none", None),
        ("sgd", "l2", 1e-3),
        ("prox", None, 1e-3),
    }
    assert {key["data_seed"] for key in keys} == {0, 3}


def test_settings_without_effect_make_no_runs():
    config = configure_sweep(
        {
            "student": "baselineCNN",
            "optimizer": ["sgd", "adam", "factorized"],
            "depth": [2, 3],
            "momentum": [0.5, 0.9],
            "beta1": [0.8, 0.9],
            "penalty": ["l1", "none"],
            "lam": [0, 1e-4, 1e-3],
            "data_seed": 7,
        }
    )
    counts = {name: sum(key["optimizer"] == name for key in config.runs()) for name in ("sgd", "adam", "factorized")}
    assert counts == {"sgd": 2 * 3, "adam": 2 * 3, "factorized": 2 * 2 * 3}  # λ of 1e-4, 1e-3, or none
    assert {key["data_seed"] for key in config.runs()} == {7}


def test_a_start_that_is_not_scaled_has_no_scale():
    config = configure_sweep({"student": "baselineCNN", "student_activation": ["relu", "gelu"], "init_scale": [0, 0.2, 1]})
    assert [(key["student_activation"], key["init_scale"]) for key in config.runs()] == [
        ("relu", 0),
        ("relu", 0.2),
        ("relu", 1),
        ("gelu", 0),
        ("gelu", None),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teachr": "x"}, "unknown 'teachr'; known are student, "),
        ({"student": "resnet"}, "student has 'resnet'; it takes one of baselineCNN, .*, or a list of them"),
        ({"student": []}, "student is an empty list"),
        ({"student_activation": "elu"}, "student_activation has 'elu'; it takes one of relu, sigmoid, tanh, gelu"),
        ({"lr": [0.1, "0.2"]}, "lr has '0.2'; it takes a number above 0, or a list of them"),
        ({"lr": [[0.1]]}, r"lr has \[0.1\]"),
        ({"patience": [1, 2]}, r"patience is \[1, 2\]; it takes a whole number from 1 to 2147483647, or null, and no list"),
        ({"dtype": ["float32"]}, "dtype is .* and no list"),
        ({"samples": 0}, "samples has 0; it takes a whole number from 1 to 100000000"),
        ({"seed": 1.5}, "seed has 1.5"),
        ({"momentum": 1}, "momentum has 1; it takes a number from 0 up to, but not, 1"),
        ({"lam": -1}, "lam has -1"),
        ({"weight_decay": -1}, "weight_decay has -1; it takes a number, 0 or more"),
        ({"device": "tpu"}, "device is 'tpu'; it takes cpu, cuda"),
        ({"same_activation": True, "teacher_activation": "relu"}, "have none in common: there is no run"),
        ({"threads": -1}, "threads is -1"),
        ({"threads": 10**12}, "threads is 1000000000000; it takes a whole number from 0 to 1024"),
        ({"samples": 10**13}, "samples has 10000000000000; it takes a whole number from 1 to 100000000"),
        ({"batch_size": 10**25}, "batch_size has 1"),
        ({"max_epochs": 2**31}, "max_epochs has 2147483648"),
        ({"patience": 2**31}, "patience is 2147483648"),
        ({"depth": 10**9}, "depth has 1000000000; it takes a whole number from 1 to 64"),
        ({"lr": 10**400}, r"lr has 10+\.\.\.; it takes a number above 0"),
    ],
)
def test_a_wrong_setting_is_one_sentence_before_anything_is_written(tmp_path, capsys, given, message):
    path, out = tmp_path / "grid.json", tmp_path / "out"
    path.write_text(json.dumps({"student": "baselineCNN", **given}))
    assert cli.main(["sweep", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"sparsenn: config file {path}: ")
    assert re.search(message, error)
    assert not out.exists()


@pytest.mark.parametrize("value", [0.1, None, "0.1", np.array([0.1, 0.2])])
def test_what_is_swept_is_a_tuple(value):
    with pytest.raises(ConfigError, match=r"lr is .*; it takes a tuple of values, each a number above 0"):
        SweepConfig(student=("baselineCNN",), lr=value)


def test_a_sweep_takes_settings_and_no_other_object(tmp_path):
    for settings in (None, ["student"], "grid.json"):
        with pytest.raises(ConfigError, match=f"sweep: the settings are of type {type(settings).__name__}; it takes them by"):
            configure_sweep(settings)
    for config in (None, GRID, "grid.json"):
        with pytest.raises(ConfigError, match=f"sweep: config is of type {type(config).__name__}; it takes a SweepConfig"):
            sweep(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_grid_that_can_not_be_trained_leaves_no_folder(tmp_path):
    grid = {"student": "fcn_256_32", "engine": "fused", "optimizer": "factorized", "depth": 9, "samples": 64, "max_epochs": 2}
    with pytest.raises(ValueError, match="depth"):
        sweep(configure_sweep(grid), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_grid_is_refused(tmp_path, capsys):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.toml").write_text("student = ")
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "twice.json").write_text('{"student": "baselineCNN", "lr": 0.1, "lr": [0.2]}')
    for name, message in [
        ("broken.json", "cannot be read as JSON"),
        ("list.json", "holds a list; it takes one JSON object"),
        ("empty.json", "student is missing"),
        ("none.json", "cannot be read"),
        ("twice.json", "cannot be read as JSON: 'lr' is given more than once"),
        ("broken.toml", "cannot be read as TOML" if sys.version_info >= (3, 11) else "from 3.11 on"),
    ]:
        assert cli.main(["sweep", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["info", str(tmp_path / "twice.json")]) == 2
    assert "'lr' is given more than once" in capsys.readouterr().err
    for arguments, message in [([], "sweep needs CONFIG"), (["x.json", "--resume"], "--resume needs --out DIR")]:
        assert cli.main(["sweep", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")
def test_toml_says_the_same_as_json(tmp_path):
    (tmp_path / "g.json").write_text(json.dumps({"student": "baselineCNN", "lr": [0.1, 1], "same_activation": True}))
    (tmp_path / "g.toml").write_text('student = "baselineCNN"\nlr = [0.1, 1]\nsame_activation = true\n')
    assert read_sweep(tmp_path / "g.toml") == read_sweep(tmp_path / "g.json")
    for text in ("lr = 1\nlr = 2\n", f"lr = {'[' * 10_000}"):
        (tmp_path / "g.toml").write_text(text)
        with pytest.raises(ConfigError, match=r"g\.toml cannot be read as TOML: "):
            read_sweep(tmp_path / "g.toml")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, list]:
    out = tmp_path_factory.mktemp("sweep") / "whole"
    return out, sweep(configure_sweep(GRID), out)


def test_rows_are_in_the_order_of_the_grid_and_in_every_file(done):
    out, rows = done
    keys = list(configure_sweep(GRID).runs())
    assert [{name: row[name] for name in key} for row, key in zip(rows, keys, strict=True)] == keys
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert sorted(map(json.dumps, lines)) == sorted(map(json.dumps, rows))
    with (out / "runs.csv").open(newline="") as file:
        for shown, row in zip(csv.DictReader(file), rows, strict=True):
            assert {name: "" if value is None else str(value) for name, value in row.items()} == {
                name: value for name, value in shown.items() if name in row
            }
    assert {(row["version"], row["patience"], row["dtype"]) for row in rows} == {(sparsenn.__version__, 5, "float32")}
    assert all(re.fullmatch(r"[0-9a-f]{7,}(-dirty)?|unknown", row["commit"]) for row in rows)
    assert {row["sources"] for row in rows} == {_sources.DIGEST}
    assert {path.name for path in out.iterdir()} == {"sweep.json", "runs.jsonl", "runs.csv"}


def test_every_setting_of_a_run_reaches_it(tmp_path):
    """The row of a sweep with weight decay is that of a run made by hand, and another without."""
    settings = {"student": "multiChannelCNN", "samples": 48, "max_epochs": 3, "seed": 4, "penalty": "l2", "lam": 1e-3}
    options = {"momentum": 0.5, "clipping": 0.01, "weight_decay": [0.0, 0.2]}
    rows = sweep(configure_sweep({**settings, **options}), tmp_path / "out")
    for row, decay in zip(rows, (0.0, 0.2), strict=True):
        run = Run(seed=4, lam=1e-3, penalty="l2", momentum=0.5, clipping=0.01, weight_decay=decay)
        net = build_student("multiChannelCNN", "tanh", seed=4)
        (outcome,) = train([net], [run], [taught(teacher("baselineCNN", "tanh"), 48, seed=4)], max_epochs=3)
        assert (row["weight_decay"], row["final_loss"]) == (decay, outcome.loss)
    assert rows[0]["final_loss"] != rows[1]["final_loss"]


def test_rates_are_floats_however_they_are_written(tmp_path):
    """A column of a table is of one type, and no number is too large for it."""
    settings = {"student": "baselineCNN", "samples": 8, "max_epochs": 1, "seed": [2**63 - 1]}
    config = configure_sweep({**settings, "lr": [1, 0.5], "penalty": "l1", "lam": [10**20, 1], "clipping": 0})
    assert (config.lr, config.lam, config.clipping) == ((1.0, 0.5), (1e20, 1.0), (0.0,))
    assert {type(value) for name in ("lr", "lam", "clipping") for value in getattr(config, name)} == {float}
    assert type(SweepConfig(student=("baselineCNN",), lr=(1,)).lr[0]) is float
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sweep(config, tmp_path / "out", format="parquet")
    assert parquet.read_table(tmp_path / "out" / "runs.parquet")["lam"].to_pylist() == [1e20, 1.0] * 2


def test_a_row_tells_what_the_run_is_by_itself(done):
    """One run of the grid, built by hand from what its row says."""
    row = next(
        r for r in done[1] if (r["student"], r["optimizer"], r["seed"], r["max_epochs"]) == ("fcn_128_128", "prox", 3, 40)
    )
    data = taught(teacher("splitFilterCNN", row["teacher_activation"]), 40, seed=3)
    student = build_student("fcn_128_128", row["student_activation"], scale=1.0, seed=3)
    run = Run(seed=3, lr=0.02, optimizer="prox", lam=1e-3)
    outcome = train([student], [run], [data], patience=5, max_epochs=40)[0]
    assert (outcome.status, outcome.epochs) == (row["status"], row["epochs"])
    assert outcome.best_loss == pytest.approx(row["best_loss"], rel=1e-4)
    weights = list(outcome.weights.values())
    assert row["exact_sparsity_2"] == pytest.approx(float((weights[1] == 0).double().mean()), abs=2e-3)
    assert row["exact_sparsity"] > 0


def test_parquet_holds_the_same_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    small = configure_sweep(
        {"student": "baselineCNN", "seed": [0, 1], "optimizer": ["sgd", "adam"], "samples": 16, "max_epochs": 2}
    )
    rows = sweep(small, tmp_path / "out", format="parquet")
    assert parquet.read_table(tmp_path / "out" / "runs.parquet").to_pylist() == rows


# A sweep that checkpoints often, and that no machine finishes before it is killed.
KILLED = """
import sys, time
from sparsenn.cli import main
from sparsenn.training.stacked import Stack, runner
runner.VISIT, runner.CHECKPOINT_EVERY = 0.01, 0.02
advance = Stack.advance
Stack.advance = lambda stack, steps: (time.sleep(0.02), advance(stack, steps))[1]
sys.exit(main(sys.argv[1:]))
"""


def without_time(out: Path) -> list[dict]:
    lines = (out / "runs.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_a_killed_sweep_resumes_to_the_same_table(done, tmp_path):
    config, out = tmp_path / "grid.json", tmp_path / "out"
    config.write_text(json.dumps(GRID))
    root = str(Path(sparsenn.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
    command = [sys.executable, "-c", KILLED, "sweep", str(config), "--out", str(out), "--threads", "1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    table = out / "runs.jsonl"
    while not (table.exists() and table.read_bytes().count(b"\n") > 12 and (out / "checkpoint.pt").exists()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert 0 < len(without_time(out)) < len(done[1])
    assert cli.main(["sweep", str(config), "--out", str(out), "--resume", "--quiet"]) == 0
    assert without_time(out) == without_time(done[0])
    tables = [
        [[cell for cell, name in zip(row, rows[0], strict=True) if name != "seconds"] for row in rows]
        for rows in (list(csv.reader((folder / "runs.csv").open(newline=""))) for folder in (out, done[0]))
    ]
    assert tables[0] == tables[1]


def test_folders_that_hold_something_else_are_refused(done, tmp_path, monkeypatch):
    config, other = configure_sweep(GRID), configure_sweep({**GRID, "lr": 0.3})
    before = (done[0] / "runs.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match="holds another sweep; add --resume"):
        sweep(config, done[0])
    with pytest.raises(ConfigError, match="holds another sweep: lr differ"):
        sweep(other, done[0], resume=True)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunFolderError, match="is not empty"):
        sweep(config, tmp_path)
    with pytest.raises(RunFolderError, match="holds no sweep to resume"):
        sweep(config, tmp_path, resume=True)
    for out in (tmp_path / "letter.txt" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(RunFolderError, match=r"cannot be written \(.*\); --out takes a new or an empty folder"):
            sweep(config, out)
    with pytest.raises(RunFolderError, match="cannot be read: File name too long"):
        sweep(config, tmp_path / ("x" * 300), resume=True)

    def fail(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("sparsenn.training.grid.sweep.write_json", fail)
        with pytest.raises(
            RunFolderError, match=r"cannot be written \(Permission denied\); go on with: sparsenn sweep --out .* --resume"
        ):
            sweep(config, done[0], resume=True)
    (tmp_path / "blocked" / "runs.csv").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr("sparsenn.training.grid.sweep.open_new", lambda *_: tmp_path / "blocked")
        with pytest.raises(RunFolderError, match=r"runs\.csv: cannot be written .*; all rows are in runs\.jsonl"):
            sweep(configure_sweep({"student": "baselineCNN", "samples": 16, "max_epochs": 1}), tmp_path / "blocked")
    with pytest.raises(ConfigError, match="format is 'xls'; it takes csv, jsonl, parquet"):
        sweep(config, tmp_path / "new", format="xls")
    assert not (tmp_path / "new").exists()
    assert (done[0] / "runs.jsonl").read_bytes() == before


def test_a_sweep_that_another_process_trains_is_left_alone(done):
    half = done[0] / "checkpoint.pt.part"
    half.write_bytes(b"ha")
    with alone_in(done[0]), pytest.raises(RunFolderError, match="another process trains here; wait for it"):
        sweep(configure_sweep(GRID), done[0], resume=True)
    assert half.read_bytes() == b"ha"  # the other process may be about to write it
    sweep(configure_sweep(GRID), done[0], resume=True)
    assert not half.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("status"), r"line 2: not a row of this table \(no status\); delete the line"),
        (lambda row: row.update(lr=[0.02]), r"line 2: not a row of this table \(lr can't be a list or object\)"),
    ],
)
def test_a_damaged_row_is_named_by_its_line(done, tmp_path, change, message):
    rows = [json.loads(line) for line in (done[0] / "runs.jsonl").read_text().splitlines()]
    change(rows[1])
    (tmp_path / "sweep.json").write_bytes((done[0] / "sweep.json").read_bytes())
    (tmp_path / "runs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(RunFolderError, match=message):
        sweep(configure_sweep(GRID), tmp_path, resume=True)


def test_the_plan_says_which_way_each_stack_goes(tmp_path, capsys, monkeypatch):
    (tmp_path / "grid.json").write_text(json.dumps(GRID))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "grid.json", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" runs, ")[0] for line in lines] == [
        "baselineCNN, 40 samples, batch 16: 24",
        "fcn_128_128, 40 samples, batch 16: 24",
    ]
    stack = Stack([build_student("baselineCNN", "tanh")], [Run()], [taught(teacher("baselineCNN", "tanh"), 4)], max_epochs=1)
    assert {line.split(" runs, ")[1] for line in lines} == {stack.reason}
    assert cli.main(["sweep", "grid.json", "--plan", "--format", "xls"]) == 2
    assert "format is 'xls'; it takes csv, jsonl, parquet" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["grid.json"]
    assert cli.main(["info", "grid.json"]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert cli.main(["info"]) == 0
    assert f"sweeps{' ' * 8}" in (shown := capsys.readouterr().out)
    assert ("through the fused operator on cpu" in shown) == (stack.engine == "fused")


def test_help_of_sweep_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from sparsenn.cli import main; sys.exit(main(['sweep', '--help']))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    for name in ("student_activation", "max_epochs", "--resume", "--format", "--plan"):
        assert name in shown
    example = shown[shown.index("{") : shown.index("}") + 1]
    assert len(list(configure_sweep(json.loads(example)).runs())) == 270


def test_threads_may_change_on_the_way(done):
    before = torch.get_num_threads()
    assert cli.main(["sweep", "--out", str(done[0]), "--resume", "--threads", "2", "--quiet"]) == 0
    assert torch.get_num_threads() == before
