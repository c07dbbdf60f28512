"""A weight composed of eigenvector entries and eigenvalues: fake, autograd, batching rules and the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsenn.ops import library, reference  # noqa: F401  (library registers the operators)
from sparsenn.ops.checks import kind_of
from sparsenn.ops.modes import cotangents_of, differentiated, needs_definition, one_by_one
from sparsenn.ops.schema import NAMESPACE

_ops = torch.ops.sparsenn


def spectral_weight(phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None) -> Tensor:
    r"""The weight that a spectral layer computes with.

    .. math:: w_{oi\dots} = (\lambda^{in}_i - \lambda^{out}_o)\, \varphi_{oi\dots}

    Args:
        phi: φ, the off-diagonal entries of the eigenvectors: (out, in), or (out, in / groups, \*kernel) for a convolution; any
            strides. float64, float32, bfloat16 or float16.
        lambda_in: (in,), or (in / groups,) for a convolution, of φ's dtype; None stands for zeros.
        lambda_out: (out,), of φ's dtype; None stands for zeros. One of the two must be given.

    Returns:
        The weight, in φ's shape, dtype and layout. Half types are composed in float32 and rounded once. Empty tensors are fine.

    Raises:
        ValueError: for a φ of fewer than two dimensions or of another dtype, eigenvalues of another shape, dtype or device than
            φ asks for, and for both eigenvalues None (the weight would be 0).

    Source: Giambagli et al. 2023, Equation 4, and Appendix B.2 for convolutions.

    Example:
        >>> import torch, sparsenn
        >>> phi = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> sparsenn.ops.spectral_weight(phi, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        tensor([[ 1.,  0.],
                [ 0., -4.]])
    """
    check_spectrum("spectral_weight", phi, lambda_in, lambda_out)
    if needs_definition(of_batches=True):
        return reference.composed_weight(phi, lambda_in, lambda_out).to(phi.dtype)
    if torch.compiler.is_compiling() or not differentiated([phi, lambda_in, lambda_out]):
        return _ops.spectral_weight(phi, lambda_in, lambda_out)
    return _SpectralWeight.apply(phi, lambda_in, lambda_out)


def check_spectrum(name: str, phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None) -> None:
    """Raise unless the eigenvalues fit the eigenvectors; `name` is the function that was called."""
    if phi.dim() < 2 or phi.dtype not in reference.DTYPES:
        raise ValueError(f"{name}: phi is {kind_of(phi)}; it takes (out, in, ...) in float64, float32, bfloat16 or float16")
    if lambda_in is None and lambda_out is None:
        raise ValueError(f"{name}: lambda_in and lambda_out are both None, so that the weight would be 0; give one of them")
    if lambda_in is not None:
        check_vector(name, "lambda_in", lambda_in, phi.shape[1], phi)
    if lambda_out is not None:
        check_vector(name, "lambda_out", lambda_out, phi.shape[0], phi)


def check_vector(name: str, argument: str, value: Tensor, size: int, phi: Tensor) -> None:
    """Raise unless a tensor is a vector of a size, of phi's dtype and on its device."""
    if value.shape != (size,) or value.dtype != phi.dtype or value.device != phi.device:
        raise ValueError(f"{name}: {argument} is {kind_of(value)}; a phi that is {kind_of(phi)} takes ({size},) of its kind")


def wanted_of(needs: Sequence[bool]) -> int:
    """Which gradients are asked for, as the operators take it: bit k for the k-th."""
    return sum(1 << k for k, need in enumerate(needs) if need)


def given(needs: Sequence[bool], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients that are asked for, None for the others."""
    return tuple(g if need else None for need, g in zip(needs, gradients, strict=True))


class _SpectralWeight(torch.autograd.Function):
    @staticmethod
    def forward(*tensors: Any) -> Tensor:
        return _ops.spectral_weight(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad
        if needs_definition(of_batches=True) or differentiated([grad, *tensors]):
            return given(needs, reference.composed_weight_gradients(grad, *tensors))
        return given(needs, _ops.spectral_weight_backward(grad, *tensors, wanted_of(needs)))


def _register() -> None:
    """The operators themselves, for callers of torch.ops and for the compiler."""

    def setup_weight(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    def backward_weight(ctx: Any, grad: Tensor) -> Any:
        needs = ctx.needs_input_grad
        return given(needs, _ops.spectral_weight_backward(grad, *ctx.saved_tensors, wanted_of(needs)))

    def setup_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.wanted = inputs
        ctx.save_for_backward(*tensors)

    def backward_gradients(ctx: Any, *cotangents: Tensor) -> Any:
        asked = given([bool(ctx.wanted >> k & 1) for k in range(3)], cotangents)
        return *cotangents_of(reference.composed_weight_gradients, ctx.saved_tensors, asked), None

    torch.library.register_autograd(f"{NAMESPACE}::spectral_weight", backward_weight, setup_context=setup_weight)
    torch.library.register_autograd(f"{NAMESPACE}::spectral_weight_backward", backward_gradients, setup_context=setup_gradients)

    @torch.library.register_fake(f"{NAMESPACE}::spectral_weight")
    def _(phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None) -> Tensor:
        return torch.empty_like(phi)

    @torch.library.register_fake(f"{NAMESPACE}::spectral_weight_backward")
    def _(grad: Tensor, phi: Tensor, lambda_in: Tensor | None, lambda_out: Tensor | None, wanted: int) -> Any:
        d_phi = torch.empty_like(phi) if wanted & 1 else phi.new_empty(0)
        return d_phi, phi.new_empty(phi.shape[1] if wanted & 2 else 0), phi.new_empty(phi.shape[0] if wanted & 4 else 0)

    @torch.library.register_vmap(f"{NAMESPACE}::spectral_weight")
    def _(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return one_by_one(info, in_dims, _ops.spectral_weight, arguments)

    @torch.library.register_vmap(f"{NAMESPACE}::spectral_weight_backward")
    def _(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return one_by_one(info, in_dims, _ops.spectral_weight_backward, arguments)


_register()
