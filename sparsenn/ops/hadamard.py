"""The elementwise product of D factors: fake, autograd, batching rules and the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsenn.ops import library, reference  # noqa: F401  (library registers the operators)
from sparsenn.ops.checks import kind_of
from sparsenn.ops.modes import batched, differentiated, needs_definition
from sparsenn.ops.schema import NAMESPACE

_ops = torch.ops.sparsenn


def hadamard_product(factors: Sequence[Tensor], *, out: Tensor | None = None) -> Tensor:
    r"""Elementwise product of D tensors of one shape, with a gradient that is exact at zeros.

    .. math:: w = \omega_1 \odot \dots \odot \omega_D, \qquad
        \frac{\partial \ell}{\partial \omega_d} = \frac{\partial \ell}{\partial w} \odot \bigodot_{k \ne d} \omega_k

    The gradient is formed by prefix and suffix products and never by dividing: for factors (0, 2, 3) it is (6, 0, 0), so that a
    weight can leave zero. Half-precision factors are accumulated in float32 and rounded once.

    Args:
        factors: D ≥ 1 tensors of the same shape, dtype (float64, float32, bfloat16, float16) and device, with any strides.
            The result has the memory format of the first.
        out: A tensor to write into, of the factors' shape, dtype and device, not expanded. No gradient flows through this form.

    Returns:
        The product; ``out`` where it is given. Empty and 0-d tensors are fine.

    Raises:
        TypeError: for one tensor in the place of a list.
        ValueError: for no factors, different shapes, dtypes or devices, a dtype that is not one of the four, an ``out``
            of another kind.
        RuntimeError: for ``out`` with a factor that requires grad; from the kernels for an ``out`` that overlaps itself or a
            part of a factor.

    Source: Kolb et al. 2025, Definition 2 and Equation 15.

    Example:
        >>> import torch, sparsenn
        >>> factors = [torch.tensor(x, requires_grad=True) for x in (0.0, 2.0, 3.0)]
        >>> sparsenn.ops.hadamard_product(factors).backward()
        >>> [factor.grad.item() for factor in factors]
        [6.0, 0.0, 0.0]
    """
    _check_factors(factors)
    if out is not None:
        _check_out(factors, out)
        _ops.hadamard_out(factors, out)
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(out)
        return out
    return _product(factors)


def _product(factors: Sequence[Tensor]) -> Tensor:
    if needs_definition():
        return reference.product(factors)
    if torch.compiler.is_compiling() or not differentiated(factors):
        return _ops.hadamard(factors)
    return _Hadamard.apply(*factors)


def _gradients(grad: Tensor, factors: Sequence[Tensor]) -> Sequence[Tensor]:
    if needs_definition():
        return reference.gradients(grad, factors)
    if torch.compiler.is_compiling() or not differentiated([grad, *factors]):
        return _ops.hadamard_backward(grad, factors)
    return _HadamardBackward.apply(grad, *factors)


def _replaced(factors: Sequence[Tensor], d: int, value: Tensor) -> list[Tensor]:
    return [*factors[:d], value, *factors[d + 1 :]]


def _derivative(factors: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
    """The product's derivative in a direction: it is linear in each factor, so each is replaced in turn."""
    return sum((_product(_replaced(factors, d, v)) for d, v in enumerate(direction)), torch.zeros_like(factors[0]))


def _gradients_derivative(grad: Tensor, factors: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """The derivative of the D gradients in a direction of the factors; gradient d does not depend on factor d."""
    total = [torch.zeros_like(factor) for factor in factors]
    for d, v in enumerate(direction):
        for j, term in enumerate(_gradients(grad, _replaced(factors, d, v))):
            if j != d:
                total[j] = total[j] + term
    return total


class _Hadamard(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*factors: Tensor) -> Tensor:
        return _ops.hadamard(factors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return tuple(_gradients(grad, ctx.saved_tensors))


class _HadamardBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_ops.hadamard_backward(grad, factors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        grad, *factors = ctx.saved_tensors
        return _derivative(factors, cotangents), *_gradients_derivative(grad, factors, cotangents)


def _register() -> None:
    """The operators themselves, for callers of torch.ops and for the compiler."""

    def setup_product(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[0])

    def backward_product(ctx: Any, grad: Tensor) -> Any:
        return list(_ops.hadamard_backward(grad, ctx.saved_tensors))

    def setup_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0], *inputs[1])

    def backward_gradients(ctx: Any, cotangents: Sequence[Tensor]) -> Any:
        grad, *factors = _HadamardBackward.backward(ctx, *cotangents)
        return grad, factors

    torch.library.register_autograd(f"{NAMESPACE}::hadamard", backward_product, setup_context=setup_product)
    torch.library.register_autograd(f"{NAMESPACE}::hadamard_backward", backward_gradients, setup_context=setup_gradients)

    @torch.library.register_fake(f"{NAMESPACE}::hadamard")
    def _(factors: Sequence[Tensor]) -> Tensor:
        return torch.empty_like(factors[0])

    @torch.library.register_fake(f"{NAMESPACE}::hadamard_backward")
    def _(grad: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.empty_like(factor) for factor in factors]

    @torch.library.register_vmap(f"{NAMESPACE}::hadamard")
    def _(info: Any, in_dims: Any, factors: Sequence[Tensor]) -> Any:
        return _ops.hadamard(batched(info, in_dims[0], factors)), 0

    @torch.library.register_vmap(f"{NAMESPACE}::hadamard_backward")
    def _(info: Any, in_dims: Any, grad: Tensor, factors: Sequence[Tensor]) -> Any:
        (grad,) = batched(info, in_dims[:1], (grad,))
        return _ops.hadamard_backward(grad, batched(info, in_dims[1], factors)), [0] * len(factors)


_register()


def _check_factors(factors: Sequence[Tensor]) -> None:
    if isinstance(factors, Tensor):
        raise TypeError(
            f"hadamard_product: factors is a tensor of shape {tuple(factors.shape)}; it takes a list or tuple of tensors"
        )
    if len(factors) == 0:
        raise ValueError("hadamard_product: factors is empty; it takes at least one tensor")
    first = factors[0]
    shape, dtype, device = first.shape, first.dtype, first.device
    if dtype not in reference.DTYPES:
        raise ValueError(f"hadamard_product: factors have dtype {dtype}; it takes float64, float32, bfloat16 or float16")
    for d, factor in enumerate(factors):
        if factor.shape != shape or factor.dtype != dtype or factor.device != device:
            raise ValueError(
                f"hadamard_product: factor {d} is {kind_of(factor)}, factor 0 is {kind_of(first)}; they must agree"
            )


def _check_out(factors: Sequence[Tensor], out: Tensor) -> None:
    first = factors[0]
    if out.shape != first.shape or out.dtype != first.dtype or out.device != first.device:
        raise ValueError(f"hadamard_product: out is {kind_of(out)}; the factors need {kind_of(first)}")
    if needs_definition() or (torch.is_grad_enabled() and any(t.requires_grad for t in (*factors, out))):
        raise RuntimeError(
            "hadamard_product: out= has no gradient, but an argument requires grad; call it under torch.no_grad()"
        )
