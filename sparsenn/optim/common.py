"""What the one-pass optimizers share: checks of options and parameters, scalars as tensors, state that keeps its precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsenn._numbers import plain
from sparsenn.ops.reference import DTYPES
from sparsenn.optim.memory import staggered_zeros

_ROUNDING = 1e-12


class Scalars:
    """Numbers as the 0-d float64 tensors that the operators take, each made once; a tensor passes as it is."""

    def __init__(self) -> None:
        self._made: dict[float, Tensor] = {}

    def __call__(self, value: float | Tensor) -> Tensor:
        """The number as a tensor."""
        if isinstance(value, Tensor):
            return value
        if torch.compiler.is_compiling():
            return torch.scalar_tensor(value, dtype=torch.float64)
        scalar = self._made.get(value)
        if scalar is None:
            if len(self._made) > 64:  # a schedule makes one at every step; the constants of any real groups are fewer
                self._made.clear()
            scalar = self._made[value] = torch.scalar_tensor(value, dtype=torch.float64)
        return scalar


def state_dtype(p: Tensor) -> torch.dtype:
    """What a parameter's state is kept in: its own dtype, float32 for half types."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def checked_number(owner: str, name: str, value: Any, *, may_be_tensor: bool = False) -> Any:
    """A finite number >= 0 as Python has it; lr and lam also as a float32 or float64 tensor of one element."""
    if isinstance(value, Tensor) and not (may_be_tensor and _is_scalar(value)):
        raise ValueError(
            f"{owner}: {name} is a {value.dtype} tensor of shape {tuple(value.shape)}; it takes a number"
            " (lr and lam also a 0-d float32 or float64 tensor)"
        )
    number = value if isinstance(value, Tensor) else plain(value)
    if number is None or not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{owner}: {name} is {value!r}; it takes a finite number >= 0")
    return number


def checked_rate(owner: str, value: Any) -> Any:
    """A learning rate, as `checked_number` takes it or below 0 by a rounding, which is 0: torch's LinearLR ends so.

    A tensor is set to 0 in place, for it is the caller's tensor that steps, compiled ones too, and schedules read.
    """
    if isinstance(value, Tensor):
        if _is_scalar(value) and -_ROUNDING < value < 0:
            value.zero_()
    elif (number := plain(value)) is not None and -_ROUNDING < number < 0:
        value = 0.0
    return checked_number(owner, "lr", value, may_be_tensor=True)


def checked_flag(owner: str, name: str, value: Any) -> bool:
    """A bool as Python has it, of NumPy's and of 0 and 1 too, which torch takes."""
    plainly = value.item() if getattr(value, "ndim", None) == 0 and not isinstance(value, Tensor) else value
    if not isinstance(plainly, int) or plainly not in (0, 1):
        raise ValueError(f"{owner}: {name} is {value!r}; it takes True or False")
    return bool(plainly)


def _is_scalar(x: Tensor) -> bool:
    return x.numel() == 1 and x.dtype in (torch.float32, torch.float64)


def check_momentum(owner: str, group: dict[str, Any]) -> None:
    """The options that torch.optim.SGD has but for lr; numbers and flags become Python's."""
    for name in ("momentum", "dampening", "weight_decay"):
        group[name] = checked_number(owner, name, group[name])
    for name in ("nesterov", "maximize"):
        group[name] = checked_flag(owner, name, group[name])
    if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError(f"{owner}: nesterov needs momentum > 0 and dampening 0")


def check_parameter(owner: str, p: Tensor) -> None:
    """A dense parameter of a dtype that the kernels know, whose elements are their own."""
    if p.dtype not in DTYPES:
        raise ValueError(f"{owner}: a parameter has dtype {p.dtype}; it takes float64, float32, bfloat16 or float16")
    if p.layout is not torch.strided:
        raise ValueError(f"{owner}: a parameter has layout {p.layout}; it takes dense ones")
    if any(size > 1 and stride == 0 for size, stride in zip(p.shape, p.stride(), strict=True)):
        raise ValueError(
            f"{owner}: a parameter of shape {tuple(p.shape)} is expanded; it takes ones whose elements are their own"
        )


def check_once(owner: str, params: list[Tensor]) -> None:
    """Refuse a parameter that stands twice in a group: one call of an operator would move it twice at the same time."""
    if len(set(map(id, params))) < len(params):
        raise ValueError(f"{owner}: a parameter stands twice in a group; it takes each once")


def check_state_fits(owner: str, position: Callable[[Tensor], int], p: Tensor, tensor: Tensor) -> None:
    """Refuse a parameter that was converted to another dtype than its state is made for."""
    if tensor.dtype != state_dtype(p):
        raise RuntimeError(
            f"{owner}: parameter {position(p)} (shape {tuple(p.shape)}) is {p.dtype}, and its state {tensor.dtype}: it was"
            " converted after the optimizer was made. Make the optimizer after converting the model"
        )


def sparse_gradient(owner: str) -> RuntimeError:
    """The error for a gradient that is not dense."""
    return RuntimeError(f"{owner}.step: a gradient is sparse; it takes dense ones")


def current_dampening(group: dict[str, Any], state: dict[str, Any]) -> float:
    """Torch's first momentum is the gradient itself: a momentum that starts from zeros is not dampened at its first step."""
    dampening = group["dampening"]
    return dampening if dampening and state.get("momentum_started") else 0.0


def parameters(groups: list[dict[str, Any]]) -> Iterator[Any]:
    """The parameters of all groups, or what stands for them in a state dict, in order."""
    return chain.from_iterable(group["params"] for group in groups)


def saved_parameters(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[Any, Tensor]:
    """The optimizer's parameter for every one that a state dict names, by position."""
    return dict(zip(parameters(state_dict["param_groups"]), parameters(optimizer.param_groups), strict=False))


def check_shapes(owner: str, p: Tensor, entries: dict[str, Any], is_ours: Callable[[str], bool]) -> None:
    """Every tensor of a parameter's saved state has the parameter's shape."""
    for name, value in entries.items():
        if is_ours(name) and isinstance(value, Tensor) and value.shape != p.shape:
            raise ValueError(f"{owner}.load_state_dict: {name} has shape {tuple(value.shape)}, its parameter {tuple(p.shape)}")


def restore_precision(
    optimizer: Optimizer, saved: dict[Any, Tensor], state_dict: dict[str, Any], is_ours: Callable[[str], bool]
) -> None:
    """Put back what ``Optimizer.load_state_dict`` has cast to the parameters' dtype."""
    for index, p in saved.items():
        entries = state_dict["state"].get(index, {})
        ours = [(name, value) for name, value in entries.items() if is_ours(name) and isinstance(value, Tensor)]
        for slot, (name, value) in enumerate(ours):
            optimizer.state[p][name] = staggered_zeros(p, state_dtype(p), slot).copy_(value)
