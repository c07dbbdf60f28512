"""The linear map of a spectral layer: fake, autograd, batching rules and the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsenn.ops import library, reference  # noqa: F401  (library registers the operators)
from sparsenn.ops.checks import kind_of
from sparsenn.ops.modes import apply, below_autograd, cotangents_of, differentiated, needs_definition, one_by_one
from sparsenn.ops.schema import NAMESPACE
from sparsenn.ops.spectral_weight import check_spectrum, check_vector, given, spectral_weight

_ops = torch.ops.sparsenn


def spectral_linear(
    input: Tensor,  # noqa: A002  (torch's name)
    phi: Tensor,
    lambda_in: Tensor | None,
    lambda_out: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    r"""A linear map whose weight is given by eigenvectors and eigenvalues.

    .. math:: z_o = \sum_i (\lambda^{in}_i - \lambda^{out}_o)\, \varphi_{oi}\, x_i + b_o

    The CPU kernels compose the weight in the cache, a block at a time, and never write it out; in the backward pass they turn
    each block of ∂ℓ/∂w into the gradients of φ, λ_in and λ_out while it is there. On CUDA the products
    are the vendor's.

    Under autocast the weight is composed in its own dtype and then cast as ``torch.nn.functional.linear`` casts a weight.

    Args:
        input: x, (\*, in), with any number of leading dimensions and any strides; float64, float32, bfloat16 or float16.
        phi: φ, (out, in), of the input's dtype.
        lambda_in: (in,), or None for zeros.
        lambda_out: (out,), or None for zeros. One of the two must be given.
        bias: b, (out,), or None.

    Returns:
        z, (\*, out). Half types are accumulated in float32 and rounded once. On CUDA, where the product is the vendor's, the
        weight (or the input times λ_in) and the weight's gradient are tensors of the dtype, as in any linear layer, and so are
        rounded too. On the CPU the bits don't depend on the number of threads. Empty tensors are fine; an empty sum is 0.

    Raises:
        ValueError: for a φ that is not (out, in), an input, eigenvalues or a bias of another size, dtype or device than φ asks
            for, and for both eigenvalues None (the weight would be 0).

    Source: Giambagli et al. 2023, Equations 4 to 6.

    Example:
        >>> import torch, sparsenn
        >>> phi = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> sparsenn.ops.spectral_linear(torch.tensor([1.0, 1.0]), phi, None, torch.tensor([-1.0, 0.5]))
        tensor([ 3.0000, -3.5000])
    """
    device = phi.device.type
    autocast = (
        torch._C._is_any_autocast_enabled() and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    )
    _check(input, phi, lambda_in, lambda_out, bias, same_dtype=not autocast)
    if autocast:
        return F.linear(input, spectral_weight(phi, lambda_in, lambda_out), bias)
    tensors = (input, phi, lambda_in, lambda_out, bias)
    if needs_definition(of_batches=True):
        return reference.composed_linear(*tensors)
    if torch.compiler.is_compiling():
        return _ops.spectral_linear(*tensors)
    if not differentiated(tensors):
        return below_autograd(_ops.spectral_linear.default, *tensors)
    return apply(_SpectralLinear, *tensors)


def _check(
    x: Tensor, phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None, bias: Tensor | None, same_dtype: bool
) -> None:
    if phi.dim() != 2:
        raise ValueError(f"spectral_linear: phi is {kind_of(phi)}; it takes two dimensions, (out, in)")
    check_spectrum("spectral_linear", phi, lambda_in, lambda_out)
    fits = x.dim() > 0 and x.shape[-1] == phi.shape[1] and x.device == phi.device
    if not fits or (same_dtype and x.dtype != phi.dtype):
        raise ValueError(
            f"spectral_linear: input is {kind_of(x)}; a phi that is {kind_of(phi)} takes (..., {phi.shape[1]}) of its kind"
        )
    if bias is not None:
        check_vector("spectral_linear", "bias", bias, phi.shape[0], phi)


def _wanted(needs: Sequence[bool]) -> int:
    """The gradients that are asked for, as the operator takes them: it has the input's behind the three of phi's room."""
    x, phi, start, end, bias = needs
    return phi | start << 1 | end << 2 | x << 3 | bias << 4


def _in_order(needs: Sequence[bool], gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The operator's gradients in the order of the forward's arguments."""
    d_phi, d_in, d_out, d_x, d_bias = gradients
    return given(needs, (d_x, d_phi, d_in, d_out, d_bias))


class _SpectralLinear(torch.autograd.Function):
    @staticmethod
    def forward(*tensors: Any) -> Tensor:
        return below_autograd(_ops.spectral_linear.default, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad
        if needs_definition(of_batches=True) or differentiated([grad, *tensors]):
            d_phi, d_in, d_out, d_x, d_bias = reference.composed_linear_gradients(grad, *tensors)
            return given(needs, (d_x, d_phi, d_in, d_out, d_bias))
        return _in_order(needs, below_autograd(_ops.spectral_linear_backward.default, grad, *tensors, _wanted(needs)))


def _register() -> None:
    """The operators themselves, for callers of torch.ops and for the compiler."""

    def setup_linear(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])

    def backward_linear(ctx: Any, grad: Tensor) -> Any:
        needs = ctx.needs_input_grad
        return _in_order(needs, _ops.spectral_linear_backward(grad, *ctx.saved_tensors, _wanted(needs)))

    def setup_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.wanted = inputs
        ctx.save_for_backward(*tensors)

    def backward_gradients(ctx: Any, *cotangents: Tensor) -> Any:
        asked = given([bool(ctx.wanted >> k & 1) for k in range(5)], cotangents)
        return *cotangents_of(reference.composed_linear_gradients, ctx.saved_tensors, asked), None

    torch.library.register_autograd(f"{NAMESPACE}::spectral_linear", backward_linear, setup_context=setup_linear)
    torch.library.register_autograd(f"{NAMESPACE}::spectral_linear_backward", backward_gradients, setup_context=setup_gradients)

    @torch.library.register_fake(f"{NAMESPACE}::spectral_linear")
    def _(input: Tensor, phi: Tensor, lambda_in: Any, lambda_out: Any, bias: Any) -> Tensor:  # noqa: A002
        return input.new_empty(*input.shape[:-1], phi.shape[0])

    @torch.library.register_fake(f"{NAMESPACE}::spectral_linear_backward")
    def _(grad: Tensor, input: Tensor, phi: Tensor, lambda_in: Any, lambda_out: Any, wanted: int) -> Any:  # noqa: A002
        shapes = (phi.shape, phi.shape[1:], phi.shape[:1], input.shape, phi.shape[:1])
        return tuple(phi.new_empty(shape if wanted >> k & 1 else (0,)) for k, shape in enumerate(shapes))

    @torch.library.register_vmap(f"{NAMESPACE}::spectral_linear")
    def _(info: Any, in_dims: Any, *arguments: Any) -> Any:
        if all(dim is None for dim in in_dims[1:]):  # only the input is batched: one more leading dimension
            return _ops.spectral_linear(arguments[0].movedim(in_dims[0], 0), *arguments[1:]), 0
        return one_by_one(info, in_dims, _ops.spectral_linear, arguments)

    @torch.library.register_vmap(f"{NAMESPACE}::spectral_linear_backward")
    def _(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return one_by_one(info, in_dims, _ops.spectral_linear_backward, arguments)


_register()
