"""The elementwise product of D factors, and the gradients of the factors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.cases import LIMITS, Case, Inputs, Provider, Run, cases, parameters
from sparsenn.ops import hadamard_product

_ops = torch.ops.sparsenn


def chain(factors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, factors)


def ours_forward(inputs: Inputs) -> Run:
    (factors,) = inputs.factors
    out = torch.empty_like(factors[0])
    return Run(lambda: hadamard_product(factors, out=out), lambda: [out])


def raw_forward(inputs: Inputs) -> Run:
    """Without the public function's checks."""
    (factors,) = inputs.factors
    out = torch.empty_like(factors[0])
    return Run(lambda: _ops.hadamard_out(factors, out), lambda: [out])


def eager_forward(inputs: Inputs) -> Run:
    (factors,) = inputs.factors
    first, second, *rest = factors
    out = torch.empty_like(first)

    def product() -> None:
        torch.mul(first, second, out=out)
        for factor in rest:
            torch.mul(out, factor, out=out)

    return Run(product, lambda: [out])


def compiled_forward(inputs: Inputs) -> Run:
    (factors,) = inputs.factors
    out = torch.empty_like(factors[0])
    product = torch.compile(lambda factors, out: out.copy_(chain(factors)), fullgraph=True, dynamic=False)
    return Run(lambda: product(factors, out), lambda: [out])


def allocating_forward(product: Callable[[Sequence[Tensor]], Tensor]) -> Callable[[Inputs], Run]:
    def build(inputs: Inputs) -> Run:
        (factors,) = inputs.factors
        return Run(lambda: product(factors), lambda: [product(factors)])

    return build


def ours_backward(inputs: Inputs) -> Run:
    (factors,), (grad,) = inputs.factors, inputs.grads
    grads = [torch.empty_like(factor) for factor in factors]
    return Run(lambda: _ops.hadamard_backward_out(grad, factors, grads), lambda: grads)


def ours_allocating_backward(inputs: Inputs) -> Run:
    (factors,), (grad,) = inputs.factors, inputs.grads
    return Run(lambda: _ops.hadamard_backward(grad, factors), lambda: _ops.hadamard_backward(grad, factors))


def eager_backward(inputs: Inputs) -> Run:
    """The fewest multiplications, 3D - 4, all into given memory: prefixes with the gradient, then a running suffix."""
    (factors,), (grad,) = inputs.factors, inputs.grads
    grads = [torch.empty_like(factor) for factor in factors]
    suffix = torch.empty_like(grad)
    last = len(factors) - 1

    def gradients() -> None:
        before = grad
        for d in range(last):
            before = torch.mul(before, factors[d], out=grads[d + 1])
        after = factors[last]
        for d in range(last - 1, 0, -1):
            torch.mul(grads[d], after, out=grads[d])
            after = torch.mul(after, factors[d], out=suffix)
        torch.mul(grad, after, out=grads[0])

    return Run(gradients, lambda: grads)


def compiled_backward(inputs: Inputs) -> Run:
    (factors,), (grad,) = inputs.factors, inputs.grads
    grads = [torch.empty_like(factor) for factor in factors]

    def formula(grad: Tensor, factors: list[Tensor], grads: list[Tensor]) -> None:
        for d, out in enumerate(grads):
            out.copy_(grad * chain([factor for k, factor in enumerate(factors) if k != d]))

    gradients = torch.compile(formula, fullgraph=True, dynamic=False)
    return Run(lambda: gradients(grad, factors, grads), lambda: grads)


def autograd(product: Callable[[Sequence[Tensor]], Tensor]) -> Callable[[Inputs], Run]:
    """The backward pass alone, of a graph that is kept."""

    def build(inputs: Inputs) -> Run:
        (factors,), (grad,) = inputs.factors, inputs.grads
        leaves = [factor.detach().requires_grad_() for factor in factors]
        weight = product(leaves)

        def gradients() -> tuple[Tensor, ...]:
            return torch.autograd.grad(weight, leaves, grad, retain_graph=True)

        return Run(gradients, gradients)

    return build


PROVIDERS = {
    "forward": (
        Provider("out", "ours", ours_forward),
        Provider("operator", "ours", raw_forward),
        Provider("allocating", "ours", allocating_forward(hadamard_product)),
        Provider("eager-out", "peer", eager_forward),
        Provider("eager-allocating", "peer", allocating_forward(chain)),
        Provider("compile", "peer", compiled_forward),
        *LIMITS,
    ),
    "backward": (
        Provider("out", "ours", ours_backward),
        Provider("allocating", "ours", ours_allocating_backward),
        Provider("autograd", "ours", autograd(hadamard_product)),
        Provider("eager-out", "peer", eager_backward),
        Provider("eager-autograd", "peer", autograd(chain)),
        Provider("compile", "peer", compiled_backward),
        *LIMITS,
    ),
}
SIZES = ("1e4", "2.7e5", "1.1e7", "4e7", "1e8")


@pytest.mark.parametrize(
    ("case", "provider"),
    [
        parameter
        for direction, providers in PROVIDERS.items()
        for parameter in parameters(cases("hadamard", [direction], depths=[2, 3, 4, 8], sizes=SIZES), providers)
    ],
)
def test_hadamard(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, Inputs)
