import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sparsenn
from sparsenn import cli

SHORT = ["--epochs", "40", "--eval-every", "1", "--checkpoint-every", "7", "--depth", "3", "--threads", "1"]
RESULTS = ("model.safetensors", "metrics.jsonl", "twin/model.safetensors", "twin/metrics.jsonl")


def environment() -> dict[str, str]:
    paths = [str(Path(sparsenn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONIOENCODING": "utf-8"}


def start(*args: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "sparsenn", *args]
    return subprocess.Popen(
        command, env=environment(), text=True, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not reach {count} lines")
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, str]:
    pytest.importorskip("sklearn")
    out, text = tmp_path_factory.mktemp("cli") / "whole", io.StringIO()
    with contextlib.redirect_stdout(text):
        assert cli.main(["train", *SHORT, "--out", str(out)]) == 0
    return out, text.getvalue()


def assert_same_bits(whole: Path, broken: Path) -> None:
    for name in RESULTS:
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    reports = [json.loads((folder / "report.json").read_text()) for folder in (whole, broken)]
    for report in reports:
        report["net"].pop("seconds")
        report["twin"].pop("seconds")
    assert reports[0] == reports[1]


@pytest.mark.parametrize("log", ["metrics.jsonl", "twin/metrics.jsonl"], ids=["net", "twin"])
def test_a_run_killed_in_the_middle_resumes_to_the_same_bits(uninterrupted, tmp_path, log):
    out = tmp_path / "broken"
    process = start("train", *SHORT, "--out", str(out))
    wait_for_lines(out / log, 17)
    process.send_signal(signal.SIGKILL)
    assert end(process)[0] == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    assert cli.main(["train", "--out", str(out), "--resume", "--quiet"]) == 0
    assert_same_bits(uninterrupted[0], out)


def test_ctrl_c_ends_with_130_and_a_folder_that_resumes_to_the_same_bits(uninterrupted, tmp_path):
    out = tmp_path / "broken"
    process = start("train", *SHORT, "--out", str(out))
    wait_for_lines(out / "metrics.jsonl", 10)
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert code == 130
    assert err.splitlines() == [f"sparsenn: stopped after a whole step; go on with: sparsenn train --out {out} --resume"]
    assert cli.main(["train", "--out", str(out), "--resume", "--quiet"]) == 0
    assert_same_bits(uninterrupted[0], out)


def test_the_end_of_a_run_is_its_report(uninterrupted):
    out, text = uninterrupted
    assert (out / "report.txt").read_text() in text
    assert text.endswith(f"The run is in {out}\n")
    for name in ("1.weight", "5.bias", "total", "dense twin", "times fewer weights than the dense twin"):
        assert name in text


def test_a_loss_that_is_not_finite_ends_with_3_and_a_sentence(tmp_path, capsys):
    pytest.importorskip("sklearn")
    assert cli.main(["train", "--lr", "1e9", "--epochs", "3", "--out", str(tmp_path / "r")]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "the loss is not a finite number in epoch 1" in err
    assert "lower --lr (it is 1e+09)" in err


def test_a_flag_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "c.json").write_text('{"epochs": 3, "seed": 5, "twin": false}')
    out = tmp_path / "r"
    assert cli.main(["train", "--config", str(tmp_path / "c.json"), "--epochs", "1", "--quiet", "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["epochs"], config["seed"], config["twin"], config["batch_size"]) == (1, 5, False, 64)


def test_a_run_without_out_makes_its_own_folder_each_time(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert cli.main(["train", "--epochs", "1", "--no-twin", "--quiet", "--method", "dense"]) == 0
    names = sorted(f.name for f in (tmp_path / "runs").iterdir())
    assert names == ["digits-lenet-300-100-dense-seed0", "digits-lenet-300-100-dense-seed0-2"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "cifar"], "dataset: unknown name 'cifar'; known are digits, mnist, fashion-mnist"),
        (["--model", "vgg"], "model: unknown name 'vgg'; known are lenet-300-100, lenet-5"),
        (["--method", "proxy"], "method is 'proxy'; it takes one of dwf, dwf-adam, prox, l1-subgradient, dense"),
        (["--epochs", "0"], "epochs is 0; it takes a whole number, 1 or more"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--lamda", "1"], "unrecognized arguments: --lamda 1"),
        (["--resume"], "--resume needs --out DIR"),
        (["--config", "nowhere.json"], "config file nowhere.json cannot be read"),
        (["--resume", "--out", "nowhere"], "nowhere holds no run to resume"),
        (["--device", "tpu"], "device is 'tpu'; it takes cpu, cuda or cuda:<index>"),
    ],
    ids=lambda v: v[0][2:] + (v[1] if len(v) > 1 else "") if isinstance(v, list) else None,
)
def test_wrong_usage_is_one_sentence_and_code_2(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["train", "--out", ""], "--out"),
        (["train", "--resume", "--out="], "--out"),
        (["train", "--config", ""], "--config"),
        (["train", "--data-root", ""], "--data-root"),
        (["sweep", "grid.json", "--out", ""], "--out"),
        (["sweep", ""], "CONFIG"),
        (["reproduce", "l1", "exp1", "--out", ""], "--out"),
        (["reproduce", "spectral", "fig3a", "--data-root", ""], "--data-root"),
        (["teacher-student", "--mode", "single", "--config_path", ""], "--config_path/--config-path"),
        (["bench-model", ""], "FILE|module:name"),
        (["info", ""], "FILE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_empty_name_is_no_file_and_no_folder(arguments, flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.json").write_text('{"student": "baselineCNN", "samples": 16, "max_epochs": 1}')
    assert cli.main(arguments) == 2
    name = arguments[0]
    sentence = f"sparsenn {name}: argument {flag}: '' is no name of a file or folder; sparsenn {name} --help explains\n"
    assert capsys.readouterr().err == sentence
    assert [path.name for path in tmp_path.iterdir()] == ["grid.json"]


def test_a_folder_in_use_is_refused_with_the_cure(uninterrupted, capsys):
    assert cli.main(["train", "--out", str(uninterrupted[0])]) == 2
    assert "holds another run; add --resume to go on with it, or name another folder with --out" in capsys.readouterr().err


def test_missing_data_is_named_with_the_cure(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--dataset", "mnist", "--data-root", "nowhere"]) == 1
    assert capsys.readouterr().err == "sparsenn: data root nowhere: there is no such folder\n"
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch_and_shows_every_setting():
    code = "import sys; sys.modules['torch'] = None; from sparsenn.cli import main; sys.exit(main(['train', '--help']))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    from sparsenn.training.config import KEYS

    for key in KEYS:
        assert f"--{key.replace('_', '-')}" in done.stdout
    for words in ("fashion-mnist", "lenet-5", "defaults:", "examples:", "exit codes:"):
        assert words in done.stdout


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sparsenn {sparsenn.__version__}\n"


def test_no_command_is_wrong_usage(capsys):
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_info_names_the_versions_that_run(capsys):
    import numpy
    import torch

    assert cli.main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["sparsenn"] == sparsenn.__version__
    assert lines["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert lines["numpy"] == numpy.__version__


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_error_of_ours(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    process = start("info")
    process.stdout.close()
    assert (process.wait(timeout=120), process.stderr.read()) == (1, "")


def test_info_says_what_the_kernels_serve_or_why_not(capsys):
    from sparsenn import _extension
    from sparsenn.ops.schema import SCHEMAS

    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    for library in _extension.status()["libraries"].values():
        assert library.loaded or library.problem in shown
    if _extension.status()["libraries"]["cpu"].loaded:
        assert all(name in shown for name in SCHEMAS)


def test_a_setting_that_the_optimizer_refuses_is_one_sentence(tmp_path, capsys):
    pytest.importorskip("sklearn")
    arguments = ["train", "--depth", "1", "--factor-init", "dwf", "--epochs", "1", "--no-twin", "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("sparsenn: ")
    assert error.count("\n") == 1
