"""One step of Adam on the factors of given weights: from the weights' gradient to factors and weights moved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsenn
from benchmarks.bench_factorized_sgd import chain, huge
from benchmarks.cases import (
    DECAY,
    LIMITS,
    SIZES,
    STEPS,
    Case,
    Inputs,
    Provider,
    Run,
    cases,
    parameters,
    penalty,
    sample,
)
from sparsenn.ops import reference

# A factor moves by about this much in a step, whatever its gradient; later the decay holds it there.
LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamInputs(Inputs):
    @functools.cached_property
    def expected(self) -> list[Tensor]:
        factors = [sample(f).double() for own in self.factors for f in own]
        grads = [sample(g).double() for g in self.grads]
        moments = [[torch.zeros_like(factor) for factor in factors] for _ in MOMENTS]
        weights, steps = [torch.empty_like(g) for g in grads], [torch.zeros(()) for _ in grads]
        lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (LR, penalty(self.case.depth)))
        for _ in range(STEPS):
            reference.factorized_adam_(
                weights, factors, *moments, [], steps, grads, lr, lam, BETA1, BETA2, EPS, 0.0, False, False
            )
        return factors + weights

    @functools.cached_property
    def ours(self) -> sparsenn.optim.FactorizedAdam:
        """One optimizer for both of our rows, which so work on the same memory."""
        weights = [nn.Parameter(torch.ones(shape, device=self.case.device)) for shape in self.case.shapes]
        return sparsenn.optim.FactorizedAdam(
            weights, LR, depth=self.case.depth, lam=penalty(self.case.depth), factor_init="root"
        )

    def restart(self) -> list[list[Tensor]]:
        """Our optimizer with this case's factors and gradients and nothing else; weights, factors, both moments, steps."""
        weights = self.ours.param_groups[0]["params"]
        for weight, own, grad in zip(weights, self.factors, self.grads, strict=True):
            weight.grad = grad
            state = self.ours.state[weight]
            for value in state.values():
                value.zero_()
            for d, factor in enumerate(own):
                state[f"factor_{d}"].copy_(factor)
            with torch.no_grad():
                sparsenn.ops.hadamard_product(self.ours.factors(weight), out=weight)
        state = self.ours.state
        kinds = [[state[w][f"{kind}_{d}"] for w in weights for d in range(self.case.depth)] for kind in ("factor", *MOMENTS)]
        return [weights, *kinds, [state[w]["step"] for w in weights]]

    def copies(self) -> list[list[nn.Parameter]]:
        return [[nn.Parameter(factor.clone()) for factor in own] for own in self.factors]


def optimizer(inputs: AdamInputs) -> Run:
    weights, factors, *_ = inputs.restart()
    return Run(inputs.ours.step, lambda: factors + weights, STEPS)


def raw_operator(inputs: AdamInputs) -> Run:
    weights, factors, means, squares, steps = inputs.restart()
    weights = [weight.data for weight in weights]  # with a version of their own: the optimizer would notice these steps
    lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (LR, penalty(inputs.case.depth)))
    step = functools.partial(
        torch.ops.sparsenn.factorized_adam_,
        weights, factors, means, squares, [], steps, inputs.grads, lr, lam, BETA1, BETA2, EPS, 0.0, False, False,
    )  # fmt: skip
    return Run(step, lambda: factors + weights, STEPS)


def of_products(product: Callable[[Sequence[Tensor]], Tensor], **options: Any) -> Callable[[AdamInputs], Run]:
    """Products, their gradients by autograd, then torch's Adam on the factors."""

    def build(inputs: AdamInputs) -> Run:
        factors = inputs.copies()
        flat = [factor for own in factors for factor in own]
        adam = torch.optim.Adam(flat, lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY, **options)

        def step() -> None:
            torch.autograd.backward([product(own) for own in factors], inputs.grads)
            adam.step()
            adam.zero_grad(set_to_none=True)

        return Run(step, lambda: flat + [product(own) for own in factors], STEPS)

    return build


def formula(
    weights: list[Tensor],
    factors: list[list[Tensor]],
    moments: list[list[tuple[Tensor, Tensor]]],
    grads: list[Tensor],
    count: Tensor,
) -> None:
    """The whole step as a user would write it for the compiler, which makes one loop of it."""
    pace, root = LR / (1 - BETA1**count), (1 - BETA2**count).sqrt()
    for weight, own, running, grad in zip(weights, factors, moments, grads, strict=True):
        others = [chain([f for k, f in enumerate(own) if k != d]) for d in range(len(own))]
        for factor, (mean, square), other in zip(own, running, others, strict=True):
            update = grad * other + DECAY * factor
            mean.lerp_(update, 1 - BETA1)
            square.mul_(BETA2).addcmul_(update, update, value=1 - BETA2)
            factor.sub_(pace * mean / (square.sqrt() / root + EPS))
        weight.copy_(chain(own))


def compiled(inputs: AdamInputs) -> Run:
    factors = [[factor.clone() for factor in own] for own in inputs.factors]
    moments = [[(torch.zeros_like(factor), torch.zeros_like(factor)) for factor in own] for own in factors]
    weights = [torch.empty_like(grad) for grad in inputs.grads]
    count = torch.zeros((), dtype=torch.float64, device=inputs.case.device)
    step = torch.compile(formula, fullgraph=True, dynamic=False)
    flat = [factor for own in factors for factor in own]
    return Run(
        torch.no_grad()(lambda: step(weights, factors, moments, inputs.grads, count.add_(1))), lambda: flat + weights, STEPS
    )


def dense(inputs: AdamInputs) -> Run:
    """What the same weights cost without factors."""
    weights = [nn.Parameter(own[0].clone()) for own in inputs.factors]
    right = [nn.Parameter(sample(own[0]).double()) for own in inputs.factors]
    for several, grads in ((weights, inputs.grads), (right, [sample(grad).double() for grad in inputs.grads])):
        for weight, grad in zip(several, grads, strict=True):
            weight.grad = grad
    options: dict[str, Any] = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS, "weight_decay": DECAY}
    truth = torch.optim.Adam(right, foreach=False, **options)
    for _ in range(STEPS):
        truth.step()
    adam = torch.optim.Adam(weights, fused=True, **options)
    return Run(adam.step, lambda: [sample(w) for w in weights], STEPS, expected=[w.detach() for w in right])


PROVIDERS = (
    Provider("optimizer", "ours", optimizer),
    Provider("operator", "ours", raw_operator),
    Provider("eager-foreach", "peer", of_products(chain, foreach=True)),
    Provider("eager-fused", "peer", of_products(chain, fused=True), unless=huge),
    Provider("own-product", "peer", of_products(sparsenn.ops.hadamard_product, fused=True), unless=huge),
    Provider("compile", "peer", compiled),
    Provider("dense", "floor", dense, lambda case: 7 * case.numel * 4),
    *LIMITS,
)
CASES = cases("factorized_adam", ["adam"], depths=[2, 3, 4], sizes=[s for s in SIZES if s not in ("1000x1000", "4e7")])


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_factorized_adam(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, AdamInputs)
