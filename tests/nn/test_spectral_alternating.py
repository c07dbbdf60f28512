"""The recipes of docs/spectral.md: eigenvalues and eigenvectors trained in turn, and eigenvalues first."""

import re
from pathlib import Path

import torch
from torch import nn

import sparsenn

DOCS = Path(__file__).parents[2] / "docs" / "spectral.md"


def recipe(heading: str) -> str:
    """The code block that stands under a heading."""
    text = DOCS.read_text(encoding="utf-8")
    return re.search(rf"## {heading}\n.*?```python\n(.*?)```", text, re.DOTALL)[1]


def test_each_half_moves_in_its_epochs_alone_and_the_loss_falls():
    x = torch.randn(64, 6, dtype=torch.float64)
    y = x[:, :1] * x[:, 1:2]
    net = nn.Sequential(
        sparsenn.nn.SpectralLinear(6, 12, train_lambda_in=True, lambda_in_init=nn.init.normal_),
        nn.ReLU(),
        sparsenn.nn.SpectralLinear(12, 1),
    ).double()
    seen = []

    def train_one_epoch(net, optimizer):
        for _ in range(10):
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        seen.append((float(loss.detach()), {name: p.detach().clone() for name, p in net.named_parameters()}))

    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)  # its momentum would move what only has no new gradient
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    exec(recipe("In turn"), {"net": net, "optimizer": optimizer, "train_one_epoch": train_one_epoch, "epochs": 8, "period": 2})
    for epoch, (_, now) in enumerate(seen):
        moved = {name.split(".")[1] for name in now if not torch.equal(now[name], before[name])}
        assert moved == ({"lambda_in", "lambda_out", "bias"} if epoch // 2 % 2 == 0 else {"phi", "bias"})
        before = now
    losses = [loss for loss, _ in seen]
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.requires_grad for p in net.parameters())


def test_the_eigenvalues_alone_find_neurons_that_are_enough():
    x = torch.randn(200, 5, dtype=torch.float64)
    y = x[:, :1].relu() - x[:, 1:2].relu()
    net = nn.Sequential(sparsenn.nn.SpectralLinear(5, 24), nn.ReLU(), sparsenn.nn.SpectralLinear(24, 1)).double()
    phi, losses = net[0].phi.detach().clone(), []

    def train(net):
        if not losses:
            trained = {name for name, p in net.named_parameters() if p.requires_grad}
            assert trained == {"0.lambda_out", "0.bias", "2.lambda_out", "2.bias"}
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.02)
        for _ in range(400):
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))

    space = {"net": net, "train": train, "x": x, "sparsenn": sparsenn}
    exec(recipe("Eigenvalues first"), space)
    assert torch.equal(net[0].phi, phi)
    assert int(net[0].lambda_out.count_nonzero()) == 12
    assert [type(layer) for layer in space["net"]] == [nn.Linear, nn.ReLU, nn.Linear]
    assert space["net"][0].out_features <= 12
    assert losses[1] < 1e-3 < losses[0]
