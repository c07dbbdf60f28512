"""The RBV² experiments: the task as the paper has it, and figures whose runs are computed once."""

import copy
import json

import pytest
import torch

from sparsenn.nn import RidgeNet
from sparsenn.papers import reproduce
from sparsenn.papers.rbv2 import fig4, runs, training
from sparsenn.papers.rbv2.experiment import Choices, grid_data, make_net, singular_values, summary
from sparsenn.papers.rbv2.stack import RidgeStack
from sparsenn.papers.rbv2.training import train
from sparsenn.penalties import rbv2
from sparsenn.training.batches import epoch_order
from sparsenn.training.errors import TrainingDiverged

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
    above, mse, zeros = {}, {}, {}
    for penalty in ("rbv2", "none", "proximal"):
        [(net, curve)] = train("ridge", penalty, 3e-2, [0], 1000, SMALL)
        _, above[penalty], mse[penalty], rank = curve[-1]
        zeros[penalty] = summary(net)["exact_zeros"]
        assert rank == summary(net)["rank"] >= 1
    assert above["none"] > 0.98
    assert above["proximal"] < above["rbv2"] < 0.9 * above["none"]
    assert zeros["proximal"] > 0.3
    assert zeros["rbv2"] == zeros["none"] == 0
    assert mse["none"] < 0.2


@pytest.mark.parametrize(("lam", "mean", "outputs", "features"), [(None, True, 1, 4), (0.1, True, 3, 4), (0.1, False, 1, 9)])
def test_the_gradients_of_a_stack_are_those_of_autograd(backend, lam, mean, outputs, features):
    nets = [RidgeNet(features, outputs, depth=3, width=11, functional_width=5, dtype=torch.float64) for _ in range(2)]
    twins = copy.deepcopy(nets)
    stack = RidgeStack(nets)
    strength = None if lam is None else torch.tensor(lam, dtype=torch.float64)
    for samples in (7, 3):  # memory of one batch must not reach into another's
        x, y = (torch.randn(2, samples, n, dtype=torch.float64) for n in (features, outputs))
        stack.gradients(x, y, strength, mean=mean)
        for net, twin, inputs, targets in zip(nets, twins, x, y, strict=True):
            squares = (twin(inputs) - targets).square()
            twin.zero_grad()
            ((squares.mean() if mean else squares.sum()) + (0 if lam is None else lam * rbv2(twin))).backward()
            for p, q in zip(net.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        stack.weights.zero_()
    assert all(not p.any() for net in nets for p in net.parameters())


@pytest.mark.parametrize("penalty", ["rbv2", "weight decay", "proximal"])
def test_seeds_train_together_as_alone(penalty):
    choices = Choices(width=24, outputs=2, batch_size=32)
    together = train("ridge", penalty, 1e-2, [4, 7], 30, choices)
    for (net, curve), seed in zip(together, (4, 7), strict=True):
        [(own, alone)] = train("ridge", penalty, 1e-2, [seed], 30, choices)
        torch.testing.assert_close(torch.tensor([p[2] for p in curve]), torch.tensor([p[2] for p in alone]), rtol=1e-3, atol=0)
        for p, q in zip(net.parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-3)


def test_each_seed_has_its_own_order():
    x, y = (torch.stack(part) for part in zip(grid_data(2, 4), grid_data(2, 7), strict=True))
    parts = training._batches(x, y, 32, [4, 7], 5)
    assert [len(part[0][0]) for part in parts] == [32, 32, 17]
    for r, seed in enumerate((4, 7)):
        order = epoch_order(81, seed, 5)
        assert torch.equal(torch.cat([part[0][r] for part in parts]), x[r, order])
        assert torch.equal(torch.cat([part[1][r] for part in parts]), y[r, order])


@pytest.mark.parametrize(("net", "penalty"), [("ridge", "rbv2"), ("ridge", "proximal"), ("control", "weight decay")])
def test_a_killed_run_ends_in_the_same_bits(tmp_path, monkeypatch, net, penalty):
    """Killed after a checkpoint: what goes on from it is what went on without a kill."""
    checkpoint, choices = tmp_path / "state.pt", Choices(width=24, batch_size=32)
    whole = train(net, penalty, 1e-2, [0, 1], 12, choices)
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    left = iter(range(5))

    def kill(path, state):
        write(path, state)
        if next(left, None) is None:
            raise KeyboardInterrupt

    write = training.save_checkpoint
    monkeypatch.setattr(training, "save_checkpoint", kill)
    with pytest.raises(KeyboardInterrupt):
        train(net, penalty, 1e-2, [0, 1], 12, choices, checkpoint=checkpoint)
    monkeypatch.setattr(training, "save_checkpoint", write)
    for (resumed, curve), (right, expected) in zip(
        train(net, penalty, 1e-2, [0, 1], 12, choices, checkpoint=checkpoint), whole, strict=True
    ):
        assert curve == expected
        assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), right.parameters(), strict=True))


@pytest.mark.parametrize("penalty", ["rbv2", "weight decay"])
def test_training_is_that_of_the_objective(penalty):
    """Adam on loss + penalty by autograd of the formulas, in float64."""
    net = make_net("ridge", 0, SMALL).double()
    x, y = (t.double() for t in grid_data(1, 0))
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(60):
        value = (net(x) - y).square().mean()
        for block in net:
            if penalty == "rbv2":
                value = value + 0.3 * (block.outer.weight.abs().sum(0) ** 2).sum()
                value = value + 0.3 * (block.inner.weight**2).sum() + 0.3 * block.skip.weight.abs().sum()
            else:
                value = value + 0.3 * sum((p**2).sum() for p in block.parameters())
        adam.zero_grad()
        value.backward()
        adam.step()
    [(own, curve)] = train("ridge", penalty, 0.3, [0], 60, SMALL)
    assert curve[-1][2] == pytest.approx((net(x) - y).square().mean().item(), rel=1e-4)
    for p, q in zip(own.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("item", "count"), [("fig2", 10), ("fig3", 4), ("when", 12)])
def test_a_figure_computes_each_run_once(tmp_path, monkeypatch, item, count):
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    options = {"out": tmp_path, "epochs": 2, "choices": SMALL}
    assert reproduce("rbv2", item, **options).read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(rows) == count
    assert all([point[0] for point in row["curve"]] == [0, 1, 2] for row in rows)
    assert not any((tmp_path / "checkpoints").iterdir())
    monkeypatch.setattr(runs, "train", None)  # nothing is left to train
    reproduce("rbv2", item, **options)
    if item == "fig3":
        drawn = []
        monkeypatch.setattr(fig4, "singular_values", lambda net: drawn.append(singular_values(net)) or drawn[-1])
        reproduce("rbv2", "fig4", **options)
        assert [len(values) for values in drawn] == [16, 16, 24, 24]  # no rounding of a product of which 16 are not 0
        assert {p.name for p in tmp_path.glob("fig4*.png")} == {"fig4a.png", "fig4b.png", "fig4c.png"}
        next(tmp_path.glob("weights/ridge-rbv2-0.001-0-2-*.safetensors")).unlink()
        with pytest.raises(ValueError, match="the weights of a run are gone"):
            reproduce("rbv2", "fig3", **options)


@pytest.mark.parametrize("penalty", ["rbv2", "proximal"])
def test_weights_that_are_no_longer_finite_end_a_run_with_its_epoch(penalty):
    with pytest.raises(TrainingDiverged, match=f"the error of ridge, {penalty}, seed 0 is not a finite number after epoch 1"):
        train("ridge", penalty, 0.1, [0], 3, Choices(width=5, lr=3e38))


def test_smaller_batches_and_sums_and_wrong_choices():
    full, parts, sums = (
        train("ridge", "none", 0.0, [0], 3, Choices.of(["width=24", *words]))[0][1][-1][2]
        for words in ([], ["batch_size=32"], ["reduction=sum"])
    )
    assert full != parts
    assert sums == pytest.approx(full, rel=1e-3)  # Adam does not see a constant factor
    with pytest.raises(ValueError, match="unknown choice 'rate=1'"):
        Choices.of(["rate=1"])
    with pytest.raises(ValueError, match="outputs is 'two'"):
        Choices.of(["outputs=two"])
    with pytest.raises(ValueError, match="penalty of the control is 'rbv2'"):
        train("control", "rbv2", 0.1, [0], 1, SMALL)
    with pytest.raises(ValueError, match="reduction is 'max'"):
        Choices(reduction="max")
    for lr in ("nan", "inf", "0"):
        with pytest.raises(ValueError, match=f"lr is {float(lr)}; it takes a finite float above 0"):
            Choices.of([f"lr={lr}"])
    with pytest.raises(ValueError, match="batch_size is 82; it takes at most 81"):
        Choices.of(["batch_size=82"])
    with pytest.raises(ValueError, match="width is 0"):
        Choices(width=0)
    with pytest.raises(ValueError, match="1 or more epochs"):
        reproduce("rbv2", "fig2", epochs=0)
    assert isinstance(make_net("ridge", 0, SMALL), RidgeNet)
