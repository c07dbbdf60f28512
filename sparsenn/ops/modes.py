"""Under which mode or transform an operator is called, and so which of its forms serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers


def needs_definition(*, of_batches: bool = False) -> bool:
    """Whether a public function must run the plain PyTorch definition.

    Reverse mode runs the kernels: through a Function, which serves torch.func's transforms and costs less than the operator's
    own autograd, or through the operator, which is what a compiler traces. Forward mode, and a transform inside a compiled
    function, get the definition: nesting one forward mode in another turns a Function's tangents into zeros without a word.

    Args:
        of_batches: For operators without a kernel for batches of their arguments: the definition serves vmap too.
    """
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    if torch.compiler.is_compiling():
        return True
    levels = torch._C._functorch.get_interpreter_stack() or []
    kinds = torch._C._functorch.TransformType
    return any(level.key() == kinds.Jvp or (of_batches and level.key() == kinds.Vmap) for level in levels)


def differentiated(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a gradient may be asked of what is computed from these tensors now."""
    if torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def below_autograd(operator: Callable[..., Any], *args: Any) -> Any:
    """Call an operator where no gradient is asked of it, or where a Function looks after it.

    The operators' own autograd is written in Python: even with nothing to record it costs more than many a kernel.
    """
    if torch._C._are_functorch_transforms_active():
        return operator(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply``, which outside of transforms need not read the signature of ``forward`` in each call."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def batched(info: Any, dims: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Every tensor with the batch dimension in front; one without it is expanded."""
    dims = [None] * len(tensors) if dims is None else dims
    return [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, dims, strict=True)
    ]


def one_by_one(info: Any, in_dims: Any, operator: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """A batching rule: the operator on one element of the batch after the other, the results stacked in front."""
    found = [
        operator(*(a if dim is None else a.select(dim, n) for a, dim in zip(arguments, in_dims, strict=True)))
        for n in range(info.batch_size)
    ]
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])


def cotangents_of(
    definition: Callable[..., Sequence[Tensor | None]], tensors: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """What a definition's results hand back to each of its tensors; differentiable in turn.

    Results whose gradient is None take no part, and neither do tensors that are None.
    """
    given = [k for k, t in enumerate(tensors) if t is not None]
    used = [k for k, g in enumerate(grads) if g is not None]

    def results(*values: Tensor) -> tuple[Tensor, ...]:
        arguments = dict(zip(given, values, strict=True))
        found = definition(*(arguments.get(k) for k in range(len(tensors))))
        return tuple(found[k] for k in used)  # type: ignore[misc]

    _, pull, *_ = torch.func.vjp(results, *(tensors[k] for k in given))
    handed = dict(zip(given, pull(tuple(grads[k] for k in used)), strict=True)) if used else {}
    return [handed.get(k) for k in range(len(tensors))]
