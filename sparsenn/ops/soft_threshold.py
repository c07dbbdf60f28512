"""Soft thresholding, the proximal map of the L1 norm: fake, autograd, batching rules and the public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsenn._numbers import plain
from sparsenn.ops import library, reference  # noqa: F401  (library registers the operators)
from sparsenn.ops.checks import kind_of
from sparsenn.ops.modes import batched, below_autograd, differentiated, needs_definition
from sparsenn.ops.schema import NAMESPACE

_ops = torch.ops.sparsenn


def soft_threshold(input: Tensor, threshold: float | Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
    r"""Shrink every element towards zero by a threshold, and to exactly zero where it is no larger than that.

    .. math:: S_t(x) = \operatorname{sign}(x) \max(|x| - t, 0)
        = \operatorname*{argmin}_w \tfrac{1}{2} (w - x)^2 + t |w|, \qquad
        \frac{\partial S_t}{\partial x} = [|x| > t], \quad \frac{\partial S_t}{\partial t} = -\operatorname{sign}(x)\, [|x| > t]

    Zeros in the result are positive. NaN in the input or in a threshold gives NaN. Half-precision elements are computed in
    float32 and rounded once.

    Args:
        input: x, of float64, float32, bfloat16 or float16, with any strides. The result has its memory format.
        threshold: t ≥ 0: a number, or a tensor that broadcasts to ``input``'s shape, of its dtype (or float32 for half types)
            and on its device; a 0-d one may lie on the CPU. A gradient flows to it, summed to its shape. The values of a tensor
            are not looked at: negative ones have no meaning.

    Returns:
        A new tensor of ``input``'s shape and dtype. Empty and 0-d tensors are fine.

    Raises:
        ValueError: for a negative or NaN number, a dtype that is not one of the four, a ``threshold`` of another dtype, another
            device or a shape that does not broadcast to that of ``input``.

    Source: Donoho 1995, De-noising by soft-thresholding; Parikh and Boyd 2014, Proximal algorithms, section 6.5.2.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.ops.soft_threshold(torch.tensor([-3.0, -0.5, 0.0, 1.0, 2.5]), 1.0)
        tensor([-2.0000,  0.0000,  0.0000,  0.0000,  1.5000])
    """
    level = _level(input, threshold)
    if needs_definition():
        return reference.thresholded(input, level)
    if torch.compiler.is_compiling():
        return _ops.soft_threshold(input, level)
    if not differentiated([input, level]):
        return below_autograd(_ops.soft_threshold.default, input, level)
    return _SoftThreshold.apply(input, level)


def _level(x: Tensor, threshold: float | Tensor) -> Tensor:
    """The threshold as the operators take it: numbers in the dtype that elements are computed in."""
    if x.dtype not in reference.DTYPES:
        raise ValueError(f"soft_threshold: input has dtype {x.dtype}; it takes float64, float32, bfloat16 or float16")
    wide = torch.float32 if x.dtype in reference.HALF else x.dtype
    if not isinstance(threshold, Tensor):
        number = plain(threshold)
        if number is None or not number >= 0:
            raise ValueError(f"soft_threshold: threshold is {threshold!r}; it takes a number >= 0 or a tensor")
        return torch.scalar_tensor(number, dtype=wide)
    if threshold.dtype not in (x.dtype, wide):
        raise ValueError(f"soft_threshold: threshold is {kind_of(threshold)}; an input that is {kind_of(x)} takes {wide}")
    if threshold.device != x.device and (threshold.dim() or not threshold.is_cpu):
        raise ValueError(
            f"soft_threshold: threshold is {kind_of(threshold)}; the input is {kind_of(x)}; they must be on one device"
        )
    added = x.dim() - threshold.dim()
    if added < 0 or any(t not in (1, n) for t, n in zip(threshold.shape, x.shape[added:], strict=True)):
        raise ValueError(f"soft_threshold: threshold is {kind_of(threshold)}; it must broadcast to the input, {kind_of(x)}")
    return threshold if threshold.dim() else threshold.to(wide)


def _gradient(grad: Tensor, x: Tensor, level: Tensor) -> Tensor:
    """The gradient that reaches the input; it is linear in grad, and its own adjoint."""
    if needs_definition():
        return reference.thresholded_gradient(grad, x, level)
    if torch.compiler.is_compiling() or not differentiated([grad, x, level]):
        return _ops.soft_threshold_backward(grad, x, level)
    return _SoftThresholdBackward.apply(grad, x, level)


def _level_gradient(grad: Tensor, x: Tensor, level: Tensor) -> Tensor:
    """The gradient that reaches the threshold, from that which reaches the input: summed over what it was broadcast to."""
    lead = x.dim() - level.dim()
    dims = [*range(lead), *(lead + i for i, size in enumerate(level.shape) if size == 1)]
    total = -(grad * x.sign())
    if dims:
        total = total.sum(dims, keepdim=True, dtype=level.dtype)
    return total.reshape(level.shape).to(level.device, level.dtype)


def _gradients(needs: tuple[bool, ...], grad: Tensor, x: Tensor, level: Tensor) -> tuple[Tensor | None, Tensor | None]:
    of_input = _gradient(grad, x, level)
    return of_input if needs[0] else None, _level_gradient(of_input, x, level) if needs[1] else None


class _SoftThreshold(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, level: Tensor) -> Tensor:
        return _ops.soft_threshold(x, level)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _gradients(ctx.needs_input_grad, grad, *ctx.saved_tensors)


class _SoftThresholdBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, level: Tensor) -> Tensor:
        return _ops.soft_threshold_backward(grad, x, level)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return _gradient(cotangent, *ctx.saved_tensors), None, None


def _register() -> None:
    """The operators themselves, for callers of torch.ops and for the compiler."""

    def setup_values(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    def backward_values(ctx: Any, grad: Tensor) -> Any:
        x, level = ctx.saved_tensors
        of_input = _ops.soft_threshold_backward(grad, x, level)
        return of_input, _level_gradient(of_input, x, level) if ctx.needs_input_grad[1] else None

    def setup_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    def backward_gradient(ctx: Any, cotangent: Tensor) -> Any:
        return _ops.soft_threshold_backward(cotangent, *ctx.saved_tensors), None, None

    torch.library.register_autograd(f"{NAMESPACE}::soft_threshold", backward_values, setup_context=setup_values)
    torch.library.register_autograd(f"{NAMESPACE}::soft_threshold_backward", backward_gradient, setup_context=setup_gradient)

    @torch.library.register_fake(f"{NAMESPACE}::soft_threshold")
    def _(input: Tensor, threshold: Tensor) -> Tensor:  # noqa: A002
        return torch.empty_like(input)

    @torch.library.register_fake(f"{NAMESPACE}::soft_threshold_backward")
    def _(grad: Tensor, input: Tensor, threshold: Tensor) -> Tensor:  # noqa: A002
        return torch.empty_like(input)

    @torch.library.register_vmap(f"{NAMESPACE}::soft_threshold")
    def _(info: Any, in_dims: Any, x: Tensor, level: Tensor) -> Any:
        (own,) = batched(info, in_dims[:1], [x])
        return _ops.soft_threshold(own, _batched_level(in_dims[1], own, level)), 0

    @torch.library.register_vmap(f"{NAMESPACE}::soft_threshold_backward")
    def _(info: Any, in_dims: Any, grad: Tensor, x: Tensor, level: Tensor) -> Any:
        upstream, own = batched(info, in_dims[:2], [grad, x])
        return _ops.soft_threshold_backward(upstream, own, _batched_level(in_dims[2], own, level)), 0


def _batched_level(dim: int | None, x: Tensor, level: Tensor) -> Tensor:
    """The threshold with its batch dimension where it broadcasts to that of x, which is in front."""
    if dim is None:
        return level
    level = level.movedim(dim, 0)
    return level.reshape(level.shape[0], *[1] * (x.dim() - level.dim()), *level.shape[1:])


_register()
