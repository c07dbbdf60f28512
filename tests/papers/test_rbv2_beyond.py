"""The norm on other tasks than the paper's: what the rows say is so, and each is computed once."""

from __future__ import annotations

import copy
import csv
import dataclasses
import functools
import json

import pytest
import torch

from sparsenn.data import TabularData
from sparsenn.nn import RidgeNet
from sparsenn.papers.rbv2 import beyond
from sparsenn.papers.rbv2.beyond import TASKS, cleared, reproduce, train
from sparsenn.prune import compact

WEAK, STRONG = 1e-4, 1.0


def plane(root: str | None) -> TabularData:
    """Two of five numbers count."""
    x = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))
    y = x[:, :1].relu() - x[:, 1:2].abs()
    return TabularData("plane", x[:500], y[:500], x[500:], y[500:])


@pytest.fixture
def small(monkeypatch):
    task = dataclasses.replace(TASKS["california-housing"], load=plane, epochs=20)
    monkeypatch.setattr(beyond, "_BATCH_SIZE", 50)
    monkeypatch.setattr(beyond, "bench_model", functools.partial(beyond.bench_model, seconds=0.01))
    monkeypatch.setattr(beyond, "TASKS", {"california-housing": task})
    methods = {name: ((0.0,) if name == "none" else (WEAK, STRONG), color) for name, (_, color) in beyond.METHODS.items()}
    monkeypatch.setattr(beyond, "METHODS", methods)
    return task


def test_rows_say_what_became_of_the_nets(tmp_path, small, monkeypatch):
    options = {"out": tmp_path, "seeds": 1, "width": 16, "tasks": ["california-housing"]}
    assert reproduce(**options).read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (tmp_path / "beyond.jsonl").read_text().splitlines()]
    assert len(rows) == 11
    data = plane(None)
    by_cell = {(row["method"], row["lam"]): row for row in rows}
    variance = float((data.test_targets - data.train_targets.mean()).square().mean())
    for (method, lam), row in by_cell.items():
        if lam == STRONG:  # a constant is left, or 0 where biases are penalised too
            assert row["error"] > 0.9 * variance, method
        else:
            assert row["error"] < 0.5 * variance, method
            assert row["error_cleared"] == pytest.approx(row["error"], rel=0.05)
    assert by_cell["norm, proximal", STRONG]["exact_zeros"] > 0.5  # all of V and C; W has unit rows until it is cleared
    assert by_cell["norm, proximal", STRONG]["alive"] == by_cell["ProxSGD", STRONG]["alive"] == [0, 0]
    assert by_cell["norm in the loss", STRONG]["exact_zeros"] == by_cell["weight decay", STRONG]["exact_zeros"] == 0
    assert by_cell["none", 0.0]["alive"] == [16, 16]
    speeds = [json.loads(line) for line in (tmp_path / "beyond_speed.jsonl").read_text().splitlines()]
    good = {cell for cell, row in by_cell.items() if row["error_cleared"] <= 1.25 * by_cell["none", 0.0]["error"]}
    assert {(row["method"], row["lam"]) for row in speeds} == good
    assert {lam for _, lam in good} == {WEAK, 0.0}
    assert all(len(row["compact_faster"]) == len(beyond.SERVED) and min(row["compact_faster"]) > 0 for row in speeds)
    lines = list(csv.DictReader((tmp_path / "beyond.csv").open(encoding="utf-8")))
    assert [float(line["error_mean"]) for line in lines] == pytest.approx([row["error"] for row in rows], rel=1e-3)
    timed = {(line["method"], float(line["lam"])) for line in lines if line["compact_faster_batch_1"]}
    assert timed == good

    monkeypatch.setattr(beyond, "_measure", None)  # nothing is left to train
    monkeypatch.setattr(beyond, "_serve", None)
    reproduce(**options)


def test_clearing_keeps_the_function_and_compaction_the_outputs(small):
    row = {"method": "norm, proximal", "lam": 3e-2, "seed": 3, "epochs": 20, "width": 16}
    data = plane(None)
    net = train(small, data, row)
    with torch.no_grad():
        net[1].skip.weight[0, 0] = 5e-4
    own = cleared(net)
    assert own[1].skip.weight[0, 0] == 0
    with torch.no_grad():
        torch.testing.assert_close(own(data.test_inputs), net(data.test_inputs), rtol=0, atol=0.02)
        torch.testing.assert_close(compact(own, data.test_inputs[:2])(data.test_inputs), own(data.test_inputs))
    assert isinstance(own, RidgeNet)
    pairs = list(zip(own.parameters(), copy.deepcopy(net).balance_().parameters(), strict=True))
    negligible = [(p, q.abs() <= 1e-3) for p, q in pairs]
    assert all((p[low] == 0).all() for p, low in negligible if p.dim() == 2)
    assert all((p != 0).any() for p in own.parameters())
    for block in own:  # balanced, up to what was set to 0
        v, w = block.outer.weight.abs().sum(0), block.inner.weight.norm(dim=1)
        torch.testing.assert_close(v, w, rtol=1e-4, atol=1e-6)


def test_wrong_settings(tmp_path):
    with pytest.raises(ValueError, match="tasks are \\['iris'\\]"):
        reproduce(tmp_path, tasks=["iris"])
    with pytest.raises(ValueError, match="methods are \\['dropout'\\]; it takes some of norm, proximal, norm in the loss"):
        reproduce(tmp_path, methods=["dropout"])
    with pytest.raises(ValueError, match=r"tolerance is 0\.9"):
        reproduce(tmp_path, tolerance=0.9)
    for name in ("seeds", "width", "epochs"):
        with pytest.raises(ValueError, match=f"beyond: {name} is 0; it takes 1 or more"):
            reproduce(tmp_path, **{name: 0})
