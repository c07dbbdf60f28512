"""The transformer under every means: what the rows say is so, all begin alike, and each is computed once."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings

import pytest
import torch

from sparsenn.data import ImageData
from sparsenn.models import row_transformer
from sparsenn.nn import RidgeBlock
from sparsenn.papers import reproduce
from sparsenn.papers.dwf import transformer
from sparsenn.papers.dwf.transformer import METHODS, finished, train
from sparsenn.penalties import GroupL1, factor_decay_min, rbv2_path
from sparsenn.prune import LayerCollapseWarning, compact
from sparsenn.training.evaluate import evaluate

LAM = {"dense": 0.0, "magnitude": 8.0}  # 0.05 for the others
TRAINED = ("dense", "magnitude", "proximal L1", "RBV² norm")


def shapes() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(800) % 3
    images = (torch.rand(3, 1, 8, 8, generator=generator)[labels] + 0.3 * torch.rand(800, 1, 8, 8, generator=generator)) / 1.3
    return ImageData("shapes", images[:700], labels[:700], images[700:], labels[700:], ("a", "b", "c"))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(transformer.datasets, "load", lambda *_: shapes())
    monkeypatch.setattr(transformer.models, "build", lambda name, *sizes: row_transformer(*sizes, width=8, hidden=16))
    methods = {name: dataclasses.replace(m, strengths=(LAM.get(name, 0.05),)) for name, m in METHODS.items()}
    monkeypatch.setattr(transformer, "METHODS", methods)


def test_rows_say_what_became_of_the_nets_and_nothing_is_trained_twice(tmp_path, monkeypatch):
    options = {"out": tmp_path, "seeds": 1, "epochs": 2, "methods": TRAINED}
    assert reproduce("dwf", "transformer", **options).read_bytes().startswith(b"\x89PNG")
    rows = {row["method"]: row for row in map(json.loads, (tmp_path / "transformer.jsonl").read_text().splitlines())}
    assert tuple(rows) == TRAINED
    assert rows["dense"]["accuracy"] > 0.9
    assert rows["dense"]["compression"] < 1.2
    assert rows["magnitude"]["compression_trained"] == pytest.approx(8, rel=0.01)
    assert rows["magnitude"]["compression"] >= 8
    assert rows["proximal L1"]["compression"] > 1.2
    lines = (tmp_path / "transformer.md").read_text().splitlines()
    assert [line.split(" |")[0] for line in lines if line.startswith("| ")] == ["| method", *(f"| {m}" for m in TRAINED[1:])]

    images, row = shapes(), rows["proximal L1"]
    net = train(images, transformer._start(images, 0, 2), row)
    small = compact(finished(net).eval(), images.test_images[:1])
    assert evaluate(small, images.test_images, images.test_labels)[1] == row["accuracy"]
    assert sum(int((p != 0).sum()) for p in small.parameters()) == row["weights"]
    assert [block.inner.out_features for block in small.modules() if isinstance(block, RidgeBlock)] == row["neurons"]

    monkeypatch.setattr(transformer, "_measure", None)  # nothing is left to train
    monkeypatch.setattr(transformer, "_start", None)
    reproduce("dwf", "transformer", **options)
    monkeypatch.setattr(transformer, "_fill", None)
    reproduce("dwf", "transformer", **options, no_train=True)
    assert (tmp_path / "transformer.md").read_text().splitlines() == lines


def test_a_finished_net_is_plain_and_what_is_small_or_dead_is_zero():
    start, x = row_transformer(3, 1, 8, width=8, hidden=16), shapes().test_images
    masked, spectral = copy.deepcopy(start), copy.deepcopy(start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerCollapseWarning)
        METHODS["magnitude"].prepare(masked, 4.0, 0)
    METHODS["spectral"].prepare(spectral, 0.01, 0)
    with torch.no_grad():
        spectral.blocks[0].neurons.outer.lambda_out.mul_(3.0)
        spectral.embed.lambda_out[2] = 0.01
        spectral.embed.bias[2] = 1.0
        start.head.weight[0, :2] = torch.tensor([1e-3, 1.1e-3])
    shared = copy.deepcopy(start)
    METHODS["rows, D = 2"].prepare(shared, 0.01, 0)
    for net in (start, masked, spectral, shared):
        done = finished(net)
        if net is not spectral:
            torch.testing.assert_close(done(x), net(x), rtol=0, atol=0.05)  # zeros up to 1e-3
        assert [name for name, _ in done.named_parameters()] == [name for name, _ in start.named_parameters()]
        assert min(p.detach()[p != 0].abs().min().item() for p in done.parameters() if p.any()) > 1e-3
        block = done.blocks[0].neurons
        alive = block.inner.weight.any(1) & block.outer.weight.any(0)
        norms = block.inner.weight.norm(dim=1)[alive], block.outer.weight.abs().sum(0)[alive]
        torch.testing.assert_close(*norms, rtol=0.02, atol=0)
    assert finished(start).head.weight[0, 0] == 0 != finished(start).head.weight[0, 1]
    dead = finished(spectral).embed
    assert dead.weight[2].count_nonzero() == dead.bias[2].count_nonzero() == 0
    assert dead.weight.any(1).sum() == 7


def test_every_method_begins_with_the_function_of_the_dense_net():
    images, start = shapes(), transformer._start(shapes(), 0, 1)
    expected = start(images.test_images)
    for name, method in METHODS.items():
        net = copy.deepcopy(start)
        method.prepare(net, 1.0 if name == "magnitude" else 1e-3, 0)
        torch.testing.assert_close(net(images.test_images), expected, rtol=1e-3, atol=2e-2, msg=name)


def test_the_penalties_are_those_of_the_text():
    net = transformer._start(shapes(), 0, 1)
    matrices = {
        name: p.detach() for name, p in net.named_parameters() if p.dim() == 2 and name not in ("position", "head.weight")
    }
    shared = copy.deepcopy(net)
    (factors, free) = METHODS["rows, D = 2"].prepare(shared, 0.01, 0).param_groups
    assert (factors["weight_decay"], free["weight_decay"]) == (0.01, 0)
    lasso = sum(GroupL1(1.0, "rows", weighted=False).value(w) for w in matrices.values())
    torch.testing.assert_close(factor_decay_min(shared), lasso)
    assert len(free["params"]) + len(factors["params"]) == len(list(shared.parameters()))
    spectral = copy.deepcopy(net)
    METHODS["spectral"].prepare(spectral, 0.01, 0)
    nodes = sum(w.shape[0] for w in matrices.values())  # all eigenvalues begin at 1
    expected = nodes + sum(w.square().sum() for w in matrices.values())
    torch.testing.assert_close(METHODS["spectral"].penalty(spectral), expected)
    ridge = copy.deepcopy(net)
    before = rbv2_path(ridge)
    for name, free in (("RBV² norm", None), ("RBV² norm, L1 elsewhere", 0.01)):
        optimizer = METHODS[name].prepare(copy.deepcopy(ridge), 0.01, 0)
        _, outer, others = optimizer.param_groups
        assert (len(outer["params"]), len(others["params"])) == (2, 27)
        value = sum(optimizer.penalties[1].value(p) for p in outer["params"])
        torch.testing.assert_close(value, 0.01 * before)
        assert (optimizer.penalties[2] and optimizer.penalties[2].lam) == free


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["snip"]}, r"methods are \['snip'\]; it takes some of dense, magnitude"),
        ({"seeds": 0}, "seeds is 0; it takes 1 or more"),
        ({"epochs": -1}, "epochs is -1; it takes 1 or more"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        reproduce("dwf", "transformer", out=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
