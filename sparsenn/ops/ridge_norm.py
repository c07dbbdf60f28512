"""The RBV² norm of ridge blocks (Parhi, Wolf and Nowak 2021, Equation 2): fake, autograd and the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsenn.ops import library, reference  # noqa: F401  (library registers the operators)
from sparsenn.ops.modes import differentiated, needs_definition
from sparsenn.ops.schema import NAMESPACE

_ops = torch.ops.sparsenn


def ridge_norm(outers: Sequence[Tensor], inners: Sequence[Tensor] = (), skips: Sequence[Tensor] = ()) -> Tensor:
    r"""The penalty of Equation 2 over the matrices of any number of ridge blocks, each of which is read once.

    .. math:: \sum_V \sum_k \|v_k\|_1^2 + \sum_W \|W\|_F^2 + \sum_C \|C\|_1

    with the columns :math:`v_k` of each V. :func:`sparsenn.penalties.rbv2` calls it for a module.

    Args:
        outers: the matrices V out of the neurons, (D, K) each; any strides. float64, float32, bfloat16 or float16.
        inners: the matrices W into the neurons, of the same dtype and device.
        skips: the matrices C around them, of the same dtype and device. One of the three lists must hold a matrix.

    Returns:
        A 0-d tensor of the matrices' dtype, float32 for half types. Sums are formed in float64 in an order that does not depend
        on threads. The gradient at a zero weight of V or C is 0.

    Raises:
        ValueError: for no matrix at all, another number of dimensions than 2, different dtypes or devices, or another dtype.

    Source: Parhi, Wolf and Nowak 2021, Equation 2.

    Example:
        >>> import torch, sparsenn
        >>> v, w, c = torch.tensor([[1.0], [-2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([[-1.0, 1.0]])
        >>> sparsenn.ops.ridge_norm([v], [w], [c])
        tensor(36.)
    """
    _check([*outers, *inners, *skips])
    if needs_definition(of_batches=True):
        return reference.summed_norm(outers, inners, skips)
    if torch.compiler.is_compiling() or not differentiated([*outers, *inners, *skips]):
        return _ops.ridge_norm(outers, inners, skips)
    return _RidgeNorm.apply((len(outers), len(inners)), *outers, *inners, *skips)


def _check(matrices: Sequence[Tensor]) -> None:
    if not matrices:
        raise ValueError("ridge_norm: outers, inners and skips are all empty; it takes at least one matrix")
    first = matrices[0]
    for n, x in enumerate(matrices):
        if x.dim() != 2 or x.dtype not in reference.DTYPES:
            raise ValueError(
                f"ridge_norm: matrix {n} is {x.dtype} {tuple(x.shape)}; it takes matrices of a floating-point dtype"
            )
        if x.dtype != first.dtype or x.device != first.device:
            raise ValueError(
                f"ridge_norm: matrix {n} is {x.dtype} on {x.device}, matrix 0 {first.dtype} on {first.device}; they must agree"
            )


def _lists(sizes: tuple[int, int], matrices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    outers, inners = sizes
    return list(matrices[:outers]), list(matrices[outers : outers + inners]), list(matrices[outers + inners :])


class _RidgeNorm(torch.autograd.Function):
    @staticmethod
    def forward(sizes: tuple[int, int], *matrices: Tensor) -> Tensor:
        return _ops.ridge_norm(*_lists(sizes, matrices))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.sizes = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        lists = _lists(ctx.sizes, ctx.saved_tensors)
        if needs_definition(of_batches=True) or differentiated([grad, *ctx.saved_tensors]):
            return None, *reference.summed_norm_gradients(grad, *lists)
        return None, *_ops.ridge_norm_backward(grad, *lists)


def _register() -> None:
    """The operators themselves, for callers of torch.ops and for the compiler."""

    def setup_norm(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.sizes = len(inputs[0]), len(inputs[1])
        ctx.save_for_backward(*inputs[0], *inputs[1], *inputs[2])

    def backward_norm(ctx: Any, grad: Tensor) -> Any:
        return _lists(ctx.sizes, _ops.ridge_norm_backward(grad, *_lists(ctx.sizes, ctx.saved_tensors)))

    def setup_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.sizes = len(inputs[1]), len(inputs[2])
        ctx.save_for_backward(inputs[0], *inputs[1], *inputs[2], *inputs[3])

    def backward_gradients(ctx: Any, cotangents: Sequence[Tensor]) -> Any:
        def gradients(*values: Tensor) -> tuple[Tensor, ...]:
            return tuple(reference.summed_norm_gradients(values[0], *_lists(ctx.sizes, values[1:])))

        _, pull, *_ = torch.func.vjp(gradients, *ctx.saved_tensors)
        grad, *matrices = pull(tuple(cotangents))
        return grad, *_lists(ctx.sizes, matrices)

    torch.library.register_autograd(f"{NAMESPACE}::ridge_norm", backward_norm, setup_context=setup_norm)
    torch.library.register_autograd(f"{NAMESPACE}::ridge_norm_backward", backward_gradients, setup_context=setup_gradients)

    @torch.library.register_fake(f"{NAMESPACE}::ridge_norm")
    def _(outers: Sequence[Tensor], inners: Sequence[Tensor], skips: Sequence[Tensor]) -> Tensor:
        first = [*outers, *inners, *skips][0]
        return first.new_empty((), dtype=torch.float64 if first.dtype == torch.float64 else torch.float32)

    @torch.library.register_fake(f"{NAMESPACE}::ridge_norm_backward")
    def _(grad: Tensor, outers: Sequence[Tensor], inners: Sequence[Tensor], skips: Sequence[Tensor]) -> list[Tensor]:
        return [x.new_empty(x.shape) for x in (*outers, *inners, *skips)]


_register()
