"""What bench-model says of a model, and info of a file. No figure is tested, only that every way computed the same."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn import cli
from sparsenn.training import serving

pytest.importorskip("sparsenn._native", reason="the NumPy module is not built")


def net() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    model[1].weight.data[torch.rand(20, 36) < 0.9] = 0
    return model


def test_every_way_is_measured_and_the_loss_is_said(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    path = sparsenn.save(net(), tmp_path / "net", about={"sample": [1, 6, 6]})
    arguments = ["bench-model", str(path), "--batches", "1,9", "--seconds", "0.01", "--picture", str(tmp_path / "p.png")]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for name in ("torch CSR", "compacted", "sparsenn.runtime", "best dense ÷ ours", f"file: {path.stat().st_size:,} bytes"):
        assert name in text
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    slow = serving.Serving((1, 9), {"torch": (1e-6, 1e-3), serving.OURS: (2e-6, 1e-4)}, {}, 1, 1, "")
    assert "Sparse loses: the best dense way is quicker at batch 1." in str(slow)
    assert slow.speed_up(9) == pytest.approx(10)


def test_a_way_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(serving, "_ways", lambda *_: ({"torch": lambda x: x.sum((1, 2, 3))[:, None].repeat(4, 1)}, {}))
    with pytest.raises(AssertionError, match="torch is off by"):
        serving.bench_model(net(), (1, 6, 6), (2,), seconds=0.01)


def test_that_is_refused_where_python_drops_assertions_too():
    code = (
        "import torch; from sparsenn.training import serving\n"
        "serving._ways = lambda *_: ({'torch': lambda x: x.sum((1, 2))[:, None] * float('nan')}, {})\n"
        "try: serving.bench_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1)), (2, 2), (2,), seconds=0.01)\n"
        "except AssertionError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, check=True)
    assert b"bench_model: torch is off by nan of the largest output" in done.stdout


def test_threads_are_what_they_were(monkeypatch):
    monkeypatch.setattr(serving, "_ways", lambda *_: pytest.fail(f"{torch.get_num_threads()} threads"))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(pytest.fail.Exception, match="1 threads"):
            serving.bench_model(net(), (1, 6, 6), (2,))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_summary_of_a_run_names_both_sizes(tmp_path):
    path = sparsenn.save(net(), tmp_path / "net", about={"sample": [1, 6, 6]})
    text = serving.summary(path, batches=(1, 3), seconds=0.01)
    assert f"net: {path.stat().st_size:,} bytes; the dense tensors take {824 * 4:,}" in text
    assert "batch of 3" in text


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (["FILE"], "does not note the shape of a sample; give it, as --sample 1,28,28", 2),
        (["FILE", "--sample", "6,x"], "--sample is '6,x'; it takes whole numbers", 2),
        (["FILE", "--sample", "36", "--batches", "0"], "batches are [0]", 2),
        (["FILE", "--sample", "35"], "takes 36 features", 2),
        (["nowhere.safetensors", "--sample", "36"], "nowhere.safetensors: there is no such file", 1),
        (["sparsenn.models:nothing", "--sample", "36"], "cannot be imported", 2),
    ],
    ids=range(6),
)
def test_wrong_usage_is_a_sentence(arguments, sentence, code, tmp_path, capsys):
    path = sparsenn.save(net(), tmp_path / "net")
    assert cli.main(["bench-model", *[str(path) if a == "FILE" else a for a in arguments]]) == code
    assert sentence in capsys.readouterr().err


def test_info_of_a_file_says_what_lies_in_it_without_torch(tmp_path):
    path = sparsenn.save(net(), tmp_path / "net", about={"run": 7})
    code = f"import sys; sys.modules['torch'] = None; from sparsenn.cli import main; sys.exit(main(['info', {str(path)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["1.weight"][1:3] == ["20x36", "F32"]
    assert rows["file"][-2:] == [f"{path.stat().st_size:,}", f"{824 * 4:,}"]
    assert lines[-2:] == [
        "network: 0 flatten → 1 linear → 2 relu → 3 linear",
        f"written by: sparsenn {sparsenn.__version__}, run 7",
    ]
    path.write_bytes(path.read_bytes()[:-1])
    assert cli.main(["info", str(path)]) == 1
