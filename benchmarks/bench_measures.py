"""A step of SGD on factors that says what it leaves: weights above a threshold, norms and misalignment of every tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sparsenn
from benchmarks.cases import LR, MOMENTUM, STEPS, Case, Inputs, Provider, Run, cases, parameters, penalty
from sparsenn import metrics
from sparsenn.ops import reference

THRESHOLD = 0.9


class MeasuredInputs(Inputs):
    def optimizer(self) -> sparsenn.optim.FactorizedSGD:
        depth = self.case.depth
        weights = [nn.Parameter(torch.ones(shape, device=self.case.device)) for shape in self.case.shapes]
        optimizer = sparsenn.optim.FactorizedSGD(
            weights, LR, depth=depth, lam=penalty(depth), momentum=MOMENTUM, factor_init="root"
        )
        for weight, own, grad in zip(weights, self.factors, self.grads, strict=True):
            weight.grad = grad
            for kept, factor in zip(optimizer.factors(weight), own, strict=True):
                kept.copy_(factor)
            with torch.no_grad():
                sparsenn.ops.hadamard_product(optimizer.factors(weight), out=weight)
        return optimizer

    @property
    def rows(self) -> Tensor:
        """The numbers of every tensor after STEPS steps, in float64."""
        rows = []
        lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (LR, penalty(self.case.depth)))
        for grad, factors in zip(self.grads, self.factors, strict=True):
            own, grads = [f.double() for f in factors], [grad.double()]
            velocities, weights = [torch.zeros_like(f) for f in own], [torch.empty_like(grads[0])]
            for _ in range(STEPS):
                reference.factorized_sgd_(weights, own, velocities, grads, lr, lam, MOMENTUM, 0.0, 0.0, False, False)
            weight = weights[0]
            decay = sum(float(f.square().sum()) for f in own) / len(own)
            least = float(weight.abs().pow(2 / len(own)).sum())
            rows.append([float((weight.abs() > THRESHOLD).sum()), float(weight.norm()), decay, decay - least])
        return torch.tensor(rows, dtype=torch.float64)


def measuring(inputs: MeasuredInputs) -> Run:
    optimizer = inputs.optimizer()
    found: list[sparsenn.optim.FactorMeasures] = []

    def step() -> None:
        optimizer.measure_next(THRESHOLD)
        optimizer.step()
        found[:] = optimizer.measures(THRESHOLD).values()

    return Run(step, lambda: [torch.tensor(found, dtype=torch.float64)], STEPS, [inputs.rows], tolerance=1e-4)


def step_and_pass(inputs: MeasuredInputs) -> Run:
    """The same numbers from the factors afterwards, tensor by tensor."""
    optimizer = inputs.optimizer()
    found: list[list[float]] = []
    weights = optimizer.param_groups[0]["params"]

    @torch.no_grad()
    def step() -> None:
        optimizer.step()
        found.clear()
        for weight in weights:
            factors = optimizer.factors(weight)
            kept = int((weight.abs() > THRESHOLD).sum())
            decay = sum(float(factor.norm()) ** 2 for factor in factors) / len(factors)
            found.append([kept, float(weight.norm()), decay, float(metrics.misalignment(factors))])

    return Run(step, lambda: [torch.tensor(found, dtype=torch.float64)], STEPS, [inputs.rows], tolerance=1e-4)


def step_alone(inputs: MeasuredInputs) -> Run:
    return Run(inputs.optimizer().step)


PROVIDERS = (
    Provider("measuring", "ours", measuring),
    Provider("pass", "peer", step_and_pass),
    Provider("unmeasured", "floor", step_alone),
)
CASES = cases("measures", ["step"], depths=[2, 3, 4], sizes=["1e4", "lenet", "1.1e7"])


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_measures(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, MeasuredInputs)
