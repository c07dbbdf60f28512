"""One step of SGD with momentum and an L1 penalty that makes weights exactly zero."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsenn
from benchmarks.bench_factorized_sgd import huge
from benchmarks.cases import GRADIENT, LIMITS, LR, MOMENTUM, STEPS, Case, Inputs, Provider, Run, cases, parameters, sample
from sparsenn.ops import reference
from sparsenn.optim.memory import staggered_zeros

LAM = GRADIENT / 2  # half of the weights go to zero and stay there, the others move on
# A threshold of LR * LAM would solve the problem at LAM * (1 - MOMENTUM): the peers get the right one.
THRESHOLD = LR / (1 - MOMENTUM) * LAM


class ProxInputs(Inputs):
    @functools.cached_property
    def weights(self) -> list[Tensor]:
        """Of the size of a few thresholds: in the steps that the gate compares, some become zero and some do not."""
        return [(own[0].abs() - 1) * 20 * THRESHOLD for own in self.factors]

    @functools.cached_property
    def expected(self) -> list[Tensor]:
        weights = [sample(w).double() for w in self.weights]
        momenta = [torch.zeros_like(w) for w in weights]
        grads = [sample(g).double() for g in self.grads]
        lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (LR, LAM))
        for _ in range(STEPS):
            none = torch.empty(0, dtype=torch.int64)
            reference.prox_sgd_(weights, momenta, grads, [lam], none, lr, MOMENTUM, 0.0, 0.0, False, False)
        return weights

    def parameters(self) -> list[nn.Parameter]:
        weights = [nn.Parameter(w.clone()) for w in self.weights]
        for weight, grad in zip(weights, self.grads, strict=True):
            weight.grad = grad
        return weights


def optimizer(inputs: ProxInputs) -> Run:
    weights = inputs.parameters()
    ours = sparsenn.optim.ProxSGD(weights, LR, lam=LAM, momentum=MOMENTUM)
    return Run(ours.step, lambda: weights, STEPS)


def raw_operator(inputs: ProxInputs) -> Run:
    weights = [weight.data for weight in inputs.parameters()]
    momenta = [staggered_zeros(weight, weight.dtype, 0) for weight in weights]
    zeros = torch.zeros(len(weights), dtype=torch.int64, device=inputs.case.device)
    lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (LR, LAM))
    step = functools.partial(
        torch.ops.sparsenn.prox_sgd_.default,
        weights, momenta, inputs.grads, [lam], zeros, lr, MOMENTUM, 0.0, 0.0, False, False,
    )  # fmt: skip
    return Run(step, lambda: weights, STEPS)


def sgd_then(prox: Callable[[list[nn.Parameter]], Any], **options: Any) -> Callable[[ProxInputs], Run]:
    def build(inputs: ProxInputs) -> Run:
        weights = inputs.parameters()
        sgd = torch.optim.SGD(weights, lr=LR, momentum=MOMENTUM, **options)

        @torch.no_grad()
        def step() -> None:
            sgd.step()
            prox(weights)

        return Run(step, lambda: weights, STEPS)

    return build


def softshrink_into(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        torch.ops.aten.softshrink.out(weight, THRESHOLD, out=weight)


def softshrink_copied(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        weight.copy_(nn.functional.softshrink(weight, THRESHOLD))


def foreach_prox(weights: list[nn.Parameter]) -> None:
    within = torch._foreach_clamp_min(weights, -THRESHOLD)
    torch._foreach_clamp_max_(within, THRESHOLD)
    torch._foreach_sub_(weights, within)


def formula(weights: list[Tensor], momenta: list[Tensor], grads: list[Tensor]) -> None:
    """The whole step as a user would write it for the compiler, which makes one loop of it."""
    for weight, velocity, grad in zip(weights, momenta, grads, strict=True):
        velocity.mul_(MOMENTUM).add_(grad)
        moved = weight - LR * velocity
        weight.copy_(moved - moved.clamp(-THRESHOLD, THRESHOLD))


def compiled(inputs: ProxInputs) -> Run:
    weights = [weight.data for weight in inputs.parameters()]
    momenta = [torch.zeros_like(weight) for weight in weights]
    step = torch.compile(formula, fullgraph=True, dynamic=False)
    return Run(torch.no_grad()(lambda: step(weights, momenta, inputs.grads)), lambda: weights, STEPS)


def pruning_aware(inputs: ProxInputs) -> Run:
    """torchao's PruneOptimizer. Its threshold grows with the steps and knows no momentum: another truth, not checked."""
    from torchao.prototype.pat.optim import PruneOptimizer

    group = {"params": inputs.parameters(), "prox_type": "ProxLasso", "group_type": "ElemGrouper", "reg_lambda": LAM}
    return Run(PruneOptimizer(torch.optim.SGD([group], lr=LR, momentum=MOMENTUM, fused=True)).step)


def dense(inputs: ProxInputs) -> Run:
    """What the same weights cost without a penalty."""
    weights = inputs.parameters()
    sgd = torch.optim.SGD(weights, lr=LR, momentum=MOMENTUM, fused=True)
    right = [weight.detach().double() for weight in weights]
    for weight, grad in zip(right, inputs.grads, strict=True):
        weight.sub_(grad.double(), alpha=LR * sum(sum(MOMENTUM**k for k in range(n + 1)) for n in range(STEPS)))
    return Run(sgd.step, lambda: weights, STEPS, expected=right)


def many(case: Case) -> bool:
    return case.size == "1000x1000"


PROVIDERS = (
    Provider("optimizer", "ours", optimizer),
    Provider("operator", "ours", raw_operator),
    Provider("softshrink-out", "peer", sgd_then(softshrink_into, fused=True)),
    Provider("softshrink-copy", "peer", sgd_then(softshrink_copied, fused=True), unless=huge),
    Provider("foreach", "peer", sgd_then(foreach_prox, foreach=True)),
    Provider("compile", "peer", compiled, unless=many),  # a graph of a thousand loops takes minutes to compile
    *([Provider("torchao-pat", "peer", pruning_aware, unless=huge)] if importlib.util.find_spec("torchao") else []),
    Provider("dense", "floor", dense),
    *LIMITS,
)
CASES = cases("prox_sgd", ["proximal"], depths=[1], sizes=["1e4", "2.7e5", "1.1e7", "4e7", "1000x1000", "1e8"])


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_prox_sgd(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, ProxInputs)
