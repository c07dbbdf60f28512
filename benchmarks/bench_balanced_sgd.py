"""One step of SGD with momentum on balanced factors: as one root a weight, as all D factors, and without factors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsenn
from benchmarks.bench_factorized_sgd import StepInputs, dense
from benchmarks.cases import (
    DECAY,
    FLOAT,
    LIMITS,
    LR,
    MOMENTUM,
    STEPS,
    Case,
    Provider,
    Run,
    cases,
    parameters,
    penalty,
)

OPTIONS: dict[str, Any] = {"momentum": MOMENTUM, "factor_init": "root"}


class BalancedInputs(StepInputs):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.factors = [[own[0], *[own[0].abs()] * (len(own) - 1)] for own in self.factors]

    def weights(self) -> list[nn.Parameter]:
        weights = [nn.Parameter(functools.reduce(torch.mul, own)) for own in self.factors]
        for weight, grad in zip(weights, self.grads, strict=True):
            weight.grad = grad
        return weights


def optimizer(inputs: BalancedInputs, *, balanced: bool) -> Run:
    depth, weights = inputs.case.depth, inputs.weights()
    ours = sparsenn.optim.FactorizedSGD(weights, LR, depth=depth, lam=penalty(depth), balanced=balanced, **OPTIONS)
    return Run(ours.step, lambda: [f for w in weights for f in ours.factors(w)] + weights, STEPS)


def raw_operator(inputs: BalancedInputs) -> Run:
    depth = inputs.case.depth
    roots, weights = [own[0].clone() for own in inputs.factors], [torch.empty_like(grad) for grad in inputs.grads]
    momenta = [torch.zeros_like(root) for root in roots]
    lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (LR, penalty(depth)))
    step = functools.partial(
        torch.ops.sparsenn.balanced_sgd_,
        weights, roots, momenta, inputs.grads, lr, lam, depth, MOMENTUM, 0.0, 0.0, False, False,
    )  # fmt: skip
    return Run(step, lambda: _factors(roots, depth) + weights, STEPS)


def _factors(roots: list[Tensor], depth: int) -> list[Tensor]:
    return [factor for root in roots for factor in (root, *[root.abs()] * (depth - 1))]


def formula(weights: list[Tensor], roots: list[Tensor], momenta: list[Tensor], grads: list[Tensor], depth: int) -> None:
    """The step as a user would write it for the compiler."""
    for weight, root, velocity, grad in zip(weights, roots, momenta, grads, strict=True):
        velocity.mul_(MOMENTUM).add_(grad * root.abs() ** (depth - 1) + DECAY * root)
        moved = root - LR * velocity
        if depth % 2 == 0:
            crossed = moved.sign() * root.sign() < 0
            velocity.copy_(torch.where(crossed, -velocity, velocity))
            moved = torch.where(crossed, -moved, moved)
        root.copy_(moved)
        weight.copy_(moved * moved.abs() ** (depth - 1))


def compiled(inputs: BalancedInputs) -> Run:
    depth = inputs.case.depth
    roots, weights = [own[0].clone() for own in inputs.factors], [torch.empty_like(grad) for grad in inputs.grads]
    momenta = [torch.zeros_like(root) for root in roots]
    step = torch.compile(formula, fullgraph=True, dynamic=False)
    call = torch.no_grad()(lambda: step(weights, roots, momenta, inputs.grads, depth))
    return Run(call, lambda: _factors(roots, depth) + weights, STEPS)


PROVIDERS = (
    Provider("optimizer", "ours", functools.partial(optimizer, balanced=True)),
    Provider("operator", "ours", raw_operator),
    Provider(
        "all-factors",
        "peer",
        functools.partial(optimizer, balanced=False),
        lambda case: (4 * case.depth + 2) * case.numel * FLOAT,
    ),
    Provider("compile", "peer", compiled),
    Provider("dense", "floor", dense, lambda case: 5 * case.numel * FLOAT),
    *LIMITS,
)
CASES = cases("balanced_sgd", ["balanced"], depths=[2, 3, 4], sizes=["1e4", "2.7e5", "lenet", "1.1e7", "4e7", "60x4096", "1e8"])


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_balanced_sgd(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, BalancedInputs)
