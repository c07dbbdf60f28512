"""Many students as one: each ends where it would have ended alone, also after a kill."""

import copy

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.models import feature_head, soft_committee
from sparsenn.papers.spectral import stack
from sparsenn.papers.spectral.experiments import loss_of
from sparsenn.papers.spectral.stack import train_together
from sparsenn.penalties import spectral
from sparsenn.training import TrainingDiverged
from sparsenn.training.batches import epoch_order
from sparsenn.training.logging import Quiet


def penalty(net):
    return spectral(net, alpha_lambda=5e-4, alpha_phi=1e-2, alpha_w=1e-2, layers=["0"])


def students(kind, count=3):
    nets = []
    for seed in range(count):
        torch.manual_seed(seed)
        if kind == "head":
            nets.append(sparsenn.spectralize(feature_head(6, (5, 4), 3)).double())
        else:
            net = soft_committee(6, (7, 4)).double()
            nets.append(sparsenn.spectralize(net, include="0") if kind == "spectral" else net)
    return nets


def samples(kind, count=50):
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 3 if kind == "head" else x.square().sum(1, keepdim=True)


def alone(net, x, y, *, lr, batch_size, epochs, seed):
    """The loop that anybody would write."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr)
    for epoch in range(epochs):
        order = epoch_order(len(x), seed, epoch)
        for start in range(0, len(x), batch_size):
            chosen = order[start : start + batch_size]
            optimizer.zero_grad()
            (loss_of(net(x[chosen]), y[chosen]) + penalty(net)).backward()
            optimizer.step()
    return net


@pytest.mark.parametrize("kind", ["spectral", "direct", "head"])
def test_a_stack_is_its_members_alone(kind):
    x, y = samples(kind)
    settings = {"lr": 0.01, "batch_size": 16, "epochs": 12}
    nets = students(kind)
    truth = [alone(copy.deepcopy(net), x, y, seed=5 + i, **settings) for i, net in enumerate(nets)]
    start = copy.deepcopy(nets[0].state_dict())
    train_together(nets, x, y, loss=loss_of, penalty=penalty, seeds=[5, 6, 7], **settings)
    for net, expected in zip(nets, truth, strict=True):
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    moved = [name for name, value in nets[0].state_dict().items() if not torch.equal(value, start[name])]
    assert ("4.weight" in moved) == (kind == "head")  # frozen in the committees
    assert any("phi" in name for name in moved) == (kind != "direct")
    if kind == "head":
        assert int(nets[0][1].num_batches_tracked) == 12 * 4


class Killed(Quiet):
    def __init__(self, epoch):
        self.epoch = epoch

    def advance(self, epoch, record):
        if epoch == self.epoch + 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["spectral", "head"])
def test_a_killed_stack_goes_on_to_the_same_bits(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(stack, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    x, y = samples(kind)
    given = {"loss": loss_of, "penalty": penalty, "lr": 0.01, "batch_size": 16, "epochs": 8, "seeds": [0, 1, 2]}
    whole, broken = students(kind), students(kind)
    train_together(whole, x, y, **given)
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        train_together(broken, x, y, checkpoint=path, label="a", progress=Killed(4), **given)
    assert path.exists()
    other = students(kind)
    train_together(other, x, y, checkpoint=tmp_path / "d.pt", label="a", **{**given, "epochs": 4})
    began = []

    class Watch(Quiet):
        def begin(self, title, epochs, done):
            began.append(done)

    broken = students(kind)
    train_together(broken, x, y, checkpoint=path, label="a", progress=Watch(), **given)
    assert began == [4]
    assert not path.exists()
    for net, expected in zip(broken, whole, strict=True):
        assert all(torch.equal(net.state_dict()[name], value) for name, value in expected.state_dict().items())


def test_the_checkpoint_of_other_students_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    x, y = samples("direct")
    given = {"loss": loss_of, "penalty": penalty, "lr": 0.01, "batch_size": 16, "epochs": 3, "seeds": [0, 1, 2]}
    with pytest.raises(KeyboardInterrupt):
        train_together(students("direct"), x, y, checkpoint=tmp_path / "c.pt", label="a", progress=Killed(1), **given)
    nets, whole = students("direct"), students("direct")
    given["seeds"] = [3, 4, 5]
    train_together(nets, x, y, checkpoint=tmp_path / "c.pt", label="b", **given)
    train_together(whole, x, y, **given)
    assert torch.equal(nets[1][0].weight, whole[1][0].weight)


def test_a_loss_that_is_not_finite_names_the_trial():
    nets = students("direct")
    nn.init.constant_(nets[1][0].weight, float("nan"))
    x, y = samples("direct")
    with pytest.raises(TrainingDiverged, match="label: the loss of seed 11 is not a finite number in epoch 1"):
        train_together(
            nets, x, y, loss=loss_of, penalty=penalty, lr=0.01, batch_size=16, epochs=3, seeds=[10, 11, 12], label="label"
        )
