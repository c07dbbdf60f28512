"""The RBV² experiments: the task as the paper has it, and figures whose runs are computed once."""

import json

import pytest
import torch

from sparsenn.nn import RidgeNet
from sparsenn.papers import reproduce
from sparsenn.papers.rbv2 import experiment
from sparsenn.papers.rbv2.experiment import Choices, grid_data, make_net, train

SMALL = Choices(width=24)


def test_the_task_is_the_papers():
    x, y = grid_data(1, seed=3)
    assert x.shape == (81, 4)
    assert len({tuple(row) for row in x.tolist()}) == 81
    assert set(x.flatten().tolist()) == {0.0, 0.5, 1.0}
    assert y.abs().max() <= 1
    many = torch.cat([grid_data(16, seed)[1].flatten() for seed in range(20)])
    assert many.square().mean().item() == pytest.approx(1 / 3, rel=0.02)
    net = make_net("ridge", 0, Choices())
    assert [tuple(b.inner.weight.shape) + tuple(b.outer.weight.shape) for b in net] == [
        (1296, 4, 16, 1296),
        (1296, 16, 1, 1296),
    ]
    parameters = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert parameters.abs().max() <= 1
    assert parameters.square().mean().item() == pytest.approx(1 / 3, rel=0.02)
    assert make_net("control", 0, Choices()).layers[1].weight.shape == (1296, 1296)


def test_the_norm_makes_weights_small_and_none_does_not():
    results = {penalty: train("ridge", penalty, 3e-2, 0, 1200, SMALL) for penalty in ("rbv2", "none", "proximal")}
    assert results["none"]["above"] > 0.98
    assert results["proximal"]["above"] < results["rbv2"]["above"] < 0.9 * results["none"]["above"]
    assert results["proximal"]["exact_zeros"] > 0.3
    assert results["rbv2"]["exact_zeros"] == results["none"]["exact_zeros"] == 0
    assert results["none"]["mse"] < 0.2


def test_a_gradient_step_is_that_of_the_objective():
    """One step of Adam from the same start by hand: the sign of the gradient of loss + penalty, times the learning rate."""
    result = {}
    for penalty in ("rbv2", "weight decay"):
        net = make_net("ridge", 0, SMALL).double()
        x, y = (t.double() for t in grid_data(1, 0))
        value = (net(x) - y).square().mean()
        for block in net:
            if penalty == "rbv2":
                value = value + 0.1 * (block.outer.weight.abs().sum(0) ** 2).sum()
                value = value + 0.1 * (block.inner.weight**2).sum() + 0.1 * block.skip.weight.abs().sum()
            else:
                value = value + 0.1 * sum((p**2).sum() for p in block.parameters())
        value.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 1e-3 * p.grad / (p.grad.abs() + 1e-8)
        result[penalty] = (net(x) - y).square().mean().item()
        assert train("ridge", penalty, 0.1, 0, 1, SMALL)["mse"] == pytest.approx(result[penalty], rel=1e-4)
    assert result["rbv2"] != result["weight decay"]


@pytest.mark.parametrize(("item", "runs"), [("fig2", 10), ("fig3", 4)])
def test_a_figure_computes_each_run_once(tmp_path, monkeypatch, item, runs):
    options = {"out": tmp_path, "epochs": 2, "choices": SMALL}
    assert reproduce("rbv2", item, **options).read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(rows) == runs
    assert all([point[0] for point in row["curve"]] == [0, 1, 2] for row in rows)
    monkeypatch.setattr(experiment, "train", None)  # nothing is left to train
    reproduce("rbv2", item, **options)
    if item == "fig3":
        reproduce("rbv2", "fig4", **options)
        assert {p.name for p in tmp_path.glob("fig4*.png")} == {"fig4a.png", "fig4b.png", "fig4c.png"}
        (tmp_path / "weights" / "ridge-rbv2-0.001-0-2-1.safetensors").unlink()
        with pytest.raises(ValueError, match="the weights of a run are gone"):
            reproduce("rbv2", "fig3", **options)


def test_smaller_batches_and_sums_and_wrong_choices():
    full, parts, sums = (
        train("ridge", "none", 0.0, 0, 3, c)
        for c in (SMALL, Choices(width=24, batch_size=32), Choices(width=24, reduction="sum"))
    )
    assert len({full["mse"], parts["mse"]}) == 2
    assert sums["mse"] == pytest.approx(full["mse"], rel=1e-3)  # Adam does not see a constant factor
    with pytest.raises(ValueError, match="reduction is 'max'"):
        Choices(reduction="max")
    with pytest.raises(ValueError, match="width is 0"):
        Choices(width=0)
    with pytest.raises(ValueError, match="1 or more epochs"):
        reproduce("rbv2", "fig2", epochs=0)
    assert isinstance(make_net("ridge", 0, SMALL), RidgeNet)
