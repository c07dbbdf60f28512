"""One step of SGD with momentum on the factors of given weights: from the weights' gradient to factors and weights moved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sparsenn
from benchmarks.cases import (
    DECAY,
    LIMITS,
    LR,
    MOMENTUM,
    SIZES,
    STEPS,
    Case,
    Inputs,
    Provider,
    Run,
    cases,
    parameters,
    penalty,
)


class StepInputs(Inputs):
    @functools.cached_property
    def ours(self) -> sparsenn.optim.FactorizedSGD:
        """One optimizer for both of our rows, which so work on the same memory."""
        weights = [nn.Parameter(torch.ones(shape, device=self.case.device)) for shape in self.case.shapes]
        return sparsenn.optim.FactorizedSGD(
            weights, LR, depth=self.case.depth, lam=penalty(self.case.depth), momentum=MOMENTUM, factor_init="root"
        )

    def restart(self) -> tuple[sparsenn.optim.FactorizedSGD, list[Tensor], list[Tensor], list[Tensor]]:
        """Our optimizer with this case's factors and gradients and no momentum; its weights, factors and momenta."""
        weights = self.ours.param_groups[0]["params"]
        for weight, own, grad in zip(weights, self.factors, self.grads, strict=True):
            weight.grad = grad
            state = self.ours.state[weight]
            for d, factor in enumerate(own):
                state[f"factor_{d}"].copy_(factor)
                state[f"momentum_{d}"].zero_()
            with torch.no_grad():
                sparsenn.ops.hadamard_product(self.ours.factors(weight), out=weight)
        names = [(w, d) for w in weights for d in range(self.case.depth)]
        factors = [self.ours.state[w][f"factor_{d}"] for w, d in names]
        return self.ours, weights, factors, [self.ours.state[w][f"momentum_{d}"] for w, d in names]

    def copies(self) -> list[list[nn.Parameter]]:
        return [[nn.Parameter(factor.clone()) for factor in own] for own in self.factors]


def optimizer(inputs: StepInputs) -> Run:
    ours, weights, factors, _ = inputs.restart()
    return Run(ours.step, lambda: factors + weights, STEPS)


def raw_operator(inputs: StepInputs) -> Run:
    _, weights, factors, momenta = inputs.restart()
    weights = [weight.data for weight in weights]  # with a version of their own: the optimizer would notice these steps
    lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (LR, penalty(inputs.case.depth)))
    step = functools.partial(
        torch.ops.sparsenn.factorized_sgd_,
        weights, factors, momenta, inputs.grads, lr, lam, MOMENTUM, 0.0, 0.0, False, False,
    )  # fmt: skip
    return Run(step, lambda: factors + weights, STEPS)


def chain(factors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, factors)


def through_autograd(
    inputs: StepInputs, weights: Callable[[], list[Tensor]], factors: list[nn.Parameter], **options: Any
) -> Run:
    """Products, their gradients by autograd, then torch's SGD on the factors."""
    sgd = torch.optim.SGD(factors, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, **options)

    def step() -> None:
        torch.autograd.backward(weights(), inputs.grads)
        sgd.step()
        sgd.zero_grad(set_to_none=True)

    return Run(step, lambda: factors + weights(), STEPS)


def of_products(product: Callable[[Sequence[Tensor]], Tensor], **options: Any) -> Callable[[StepInputs], Run]:
    def build(inputs: StepInputs) -> Run:
        factors = inputs.copies()
        flat = [factor for own in factors for factor in own]
        return through_autograd(inputs, lambda: [product(own) for own in factors], flat, **options)

    return build


class EagerProduct(nn.Module):
    def forward(self, *factors: Tensor) -> Tensor:
        return chain(factors)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        return self.factors

    def __init__(self, factors: Sequence[Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "factors", tuple(factors))


def parametrized(inputs: StepInputs) -> Run:
    modules = nn.ModuleList()
    for own in inputs.factors:
        module = nn.Module()
        module.weight = nn.Parameter(chain(own))
        parametrize.register_parametrization(module, "weight", EagerProduct([factor.clone() for factor in own]))
        modules.append(module)
    return through_autograd(inputs, lambda: [module.weight for module in modules], list(modules.parameters()), fused=True)


def formula(weights: list[Tensor], factors: list[list[Tensor]], momenta: list[list[Tensor]], grads: list[Tensor]) -> None:
    """The whole step as a user would write it for the compiler, which makes one loop of it."""
    for weight, own, velocities, grad in zip(weights, factors, momenta, grads, strict=True):
        others = [chain([f for k, f in enumerate(own) if k != d]) for d in range(len(own))]
        for factor, velocity, other in zip(own, velocities, others, strict=True):
            velocity.mul_(MOMENTUM).add_(grad * other + DECAY * factor)
            factor.add_(velocity, alpha=-LR)
        weight.copy_(chain(own))


def compiled(inputs: StepInputs) -> Run:
    factors = [[factor.clone() for factor in own] for own in inputs.factors]
    momenta = [[torch.zeros_like(factor) for factor in own] for own in factors]
    weights = [torch.empty_like(grad) for grad in inputs.grads]
    step = torch.compile(formula, fullgraph=True, dynamic=False)
    flat = [factor for own in factors for factor in own]
    return Run(torch.no_grad()(lambda: step(weights, factors, momenta, inputs.grads)), lambda: flat + weights, STEPS)


def dense(inputs: StepInputs) -> Run:
    """What the same weights cost without factors."""
    weights = [nn.Parameter(own[0].clone()) for own in inputs.factors]
    for weight, grad in zip(weights, inputs.grads, strict=True):
        weight.grad = grad
    sgd = torch.optim.SGD(weights, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
    right = [own[0].double() for own in inputs.factors]
    momenta = [torch.zeros_like(weight) for weight in right]
    for _ in range(STEPS):
        for weight, velocity, grad in zip(right, momenta, inputs.grads, strict=True):
            velocity.mul_(MOMENTUM).add_(grad + DECAY * weight)
            weight.sub_(velocity, alpha=LR)
    return Run(sgd.step, lambda: weights, STEPS, expected=right)


def huge(case: Case) -> bool:
    return case.size in ("4e7", "1e8")


PROVIDERS = (
    Provider("optimizer", "ours", optimizer),
    Provider("operator", "ours", raw_operator),
    Provider("eager-foreach", "peer", of_products(chain, foreach=True)),
    Provider("eager-fused", "peer", of_products(chain, fused=True), unless=huge),
    Provider("parametrize", "peer", parametrized, unless=huge),
    Provider("own-product", "peer", of_products(sparsenn.ops.hadamard_product, fused=True), unless=huge),
    Provider("compile", "peer", compiled),
    Provider("dense", "floor", dense, lambda case: 5 * case.numel * 4),
    *LIMITS,
)
CASES = cases("factorized_sgd", ["step"], depths=[2, 3, 4], sizes=[size for size in SIZES if size != "1000x1000"])


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_factorized_sgd(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, StepInputs)
