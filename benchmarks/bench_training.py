"""A whole training step of LeNet-300-100: forward, backward, optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import sparsenn
from benchmarks.bench_factorized_sgd import EagerProduct, chain
from benchmarks.cases import DECAY, MOMENTUM, STEPS, Case, Provider, Run, cases, parameters, penalty
from sparsenn.models import lenet_300_100

BATCHES = {"lenet-b64": 64, "lenet-b256": 256, "lenet-b1024": 1024}
LR = 1e-3  # small: after thousands of steps on one batch the gradients are still ordinary numbers
TOLERANCE = 2e-5


class TrainingInputs:
    """A batch, and a net that every provider takes a copy of."""

    def __init__(self, case: Case) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(0)
        size = BATCHES[case.size]
        self.x = torch.rand(size, 1, 28, 28, generator=generator).to(case.device)
        self.y = torch.randint(10, (size,), generator=generator).to(case.device)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.weights = [p.detach() for p in lenet_300_100().to(case.device).parameters()]

    def net(self) -> nn.Sequential:
        net = lenet_300_100().to(self.case.device)
        with torch.no_grad():
            for p, weight in zip(net.parameters(), self.weights, strict=True):
                p.copy_(weight)
        return net

    def truth(self, factors: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The weights after the gate's steps of SGD on given factors, in float64."""
        leaves = [[f.detach().double().requires_grad_() for f in own] for own in factors]
        flat = [leaf for own in leaves for leaf in own]
        sgd = torch.optim.SGD(flat, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, foreach=False)
        for _ in range(STEPS):
            weights = [chain(own) for own in leaves]
            hidden = self.x.double().flatten(1)
            for layer in range(0, len(weights), 2):
                hidden = F.linear(hidden if layer == 0 else hidden.relu(), weights[layer], weights[layer + 1])
            sgd.zero_grad()
            F.cross_entropy(hidden, self.y).backward()
            sgd.step()
        return [chain(own).detach() for own in leaves]


def train(inputs: TrainingInputs, net: nn.Module, optimizer: torch.optim.Optimizer, factors: Sequence[Sequence[Tensor]]) -> Run:
    """The step of any training loop. Factors are those at the start, from which the truth is computed."""
    right = inputs.truth(factors)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(inputs.x), inputs.y).backward()
        optimizer.step()

    def moved() -> list[Tensor]:
        layers = [layer for layer in net if isinstance(layer, nn.Linear)]
        return [p for layer in layers for p in (layer.weight, layer.bias)]

    return Run(step, moved, STEPS, expected=right, tolerance=TOLERANCE)


def ours(inputs: TrainingInputs) -> Run:
    net, depth = inputs.net(), inputs.case.depth
    optimizer = sparsenn.optim.FactorizedSGD(
        net.parameters(), LR, depth=depth, lam=penalty(depth), momentum=MOMENTUM, generator=torch.Generator().manual_seed(0)
    )
    return train(inputs, net, optimizer, [optimizer.factors(p) for p in net.parameters()])


def dense(**options: Any) -> Callable[[TrainingInputs], Run]:
    def build(inputs: TrainingInputs) -> Run:
        net = inputs.net()
        sgd = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, **options)
        return train(inputs, net, sgd, [[p] for p in net.parameters()])

    return build


def factorized(inputs: TrainingInputs) -> Run:
    """Our factor modules, which any optimizer can train."""
    net = sparsenn.factorize(inputs.net(), inputs.case.depth, "root")
    return train(inputs, net, _sgd(net), _factors(net))


def parametrized(inputs: TrainingInputs) -> Run:
    net, depth = inputs.net(), inputs.case.depth
    for layer in net:
        if isinstance(layer, nn.Linear):
            for name in ("weight", "bias"):
                weight = getattr(layer, name).detach()
                root = weight.abs() ** (1 / depth)
                factors = [weight.sign() * root] + [root.clone() for _ in range(depth - 1)]
                parametrize.register_parametrization(layer, name, EagerProduct(factors))
    return train(inputs, net, _sgd(net), _factors(net))


def _sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, fused=True)


def _factors(net: nn.Sequential) -> list[list[Tensor]]:
    pieces = [layer.parametrizations[name] for layer in net if isinstance(layer, nn.Linear) for name in ("weight", "bias")]
    return [[piece.get_parameter(f"original{d}") for d in range(len(list(piece.parameters())))] for piece in pieces]


unmeasured = functools.partial(Provider, bytes=lambda case: None)
PROVIDERS = (
    unmeasured("optimizer", "ours", ours),
    unmeasured("factorize", "peer", factorized),
    unmeasured("parametrize", "peer", parametrized),
    unmeasured("dense", "floor", dense(fused=True)),
)
CASES = cases("training", ["step"], depths=[2, 3, 4], sizes=BATCHES)


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_training(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, TrainingInputs)
