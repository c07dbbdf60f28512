"""The gradient of a loss at the weights as they are, without a trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def gradients(where: str, model: nn.Module, closure: Callable[[], Any], parameters: Sequence[Tensor]) -> list[Tensor]:
    """∂ closure() / ∂ p for each parameter; ``.grad`` is not touched, buffers (running means) are put back.

    Args:
        where: Who asks, for errors.
        model: The model whose buffers are kept.
        closure: Gives the loss, without calling backward.
        parameters: What to differentiate by; zeros for those that the loss doesn't depend on, and for frozen ones.

    Raises:
        ValueError: where the closure gives no differentiable number.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    trained = [p for p in parameters if p.requires_grad]
    try:
        with torch.enable_grad():
            loss = closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"{where}: closure returned {_shown(loss)}; it takes a function that computes the loss, a tensor with one"
                " element that depends on the parameters, and does not call backward"
            )
        found = iter(torch.autograd.grad(loss.reshape(()), trained, allow_unused=True) if trained else ())
    finally:
        with torch.no_grad():
            for buffer, before in buffers:  # after the gradient, which may need them as they were used
                buffer.copy_(before)
    grads = [next(found) if p.requires_grad else None for p in parameters]
    return [torch.zeros_like(p) if g is None else g.detach().to_dense() for p, g in zip(parameters, grads, strict=True)]


def _shown(loss: Any) -> str:
    if isinstance(loss, Tensor):
        return f"a tensor of shape {tuple(loss.shape)}" + ("" if loss.requires_grad else " that requires no grad")
    return repr(loss)
