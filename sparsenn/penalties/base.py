"""What every penalty can do, and the checks that all of them share."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from sparsenn._numbers import plain
from sparsenn.ops.reference import DTYPES, accumulator

_P = TypeVar("_P", bound="Penalty")


class Penalty(ABC):
    r"""A function P of a weight tensor with a strength λ ≥ 0, and its proximal map. The base class of all penalties.

    .. math:: \operatorname{prox}_{s P}(w) = \arg\min_x \tfrac12 \|x - w\|_{S^{-1}}^2 + P(x), \qquad S = \operatorname{diag}(s)

    With a number for the step this is the usual proximal map of s · P. With one step per element it is the map in the diagonal
    metric that an adaptive optimizer moves in. A point is stationary for loss + P where −∂loss/∂w is a (limiting)
    subgradient of P; `subdiff_distance` measures by how much it is not.

    All methods take float64, float32, bfloat16 and float16 (computed in float32), any strides, 0-d and empty tensors. NaN stays
    NaN, infinity stays infinity, no result is a negative zero, and a step of 0 or a λ of 0 leaves the weights.

    Attributes:
        lam: The strength λ, as given.
    """

    lam: float | Tensor

    def __init__(self, lam: float | Tensor) -> None:
        self._set_lam(lam)

    def value(self, w: Tensor) -> Tensor:
        """P(w), a 0-d tensor (float32 for half types) through which autograd flows; the gradient at a zero weight is 0."""
        self.check_fits(w)
        return self._value(accumulator(w))

    @torch.no_grad()
    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The proximal map at w, a new tensor of its dtype; no gradient flows. ``step`` is a number ≥ 0 or broadcasts to w."""
        self.check_fits(w)
        self._check_step(step, w)
        x = accumulator(w)
        return self._prox(x, like(x, step)).to(w.dtype)

    @torch.no_grad()
    def subdiff_distance(self, w: Tensor, grad: Tensor) -> Tensor:
        """How far −grad is from the subdifferential at w: 0 where w is stationary. One number per element or per group."""
        self.check_fits(w)
        if grad.shape != w.shape:
            kind = f"{type(self).__name__}.subdiff_distance"
            raise ValueError(f"{kind}: grad has shape {tuple(grad.shape)}, w {tuple(w.shape)}; they must agree")
        x = accumulator(w)
        return self._distance(x, grad.to(x))

    @torch.no_grad()
    def lambda_max(self, grad: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The smallest λ, the same for all weights, that keeps them at 0 where the loss has this gradient; a 0-d tensor."""
        self.check_fits(grad, "grad")
        g = accumulator(grad)
        return self._lambda_max(g, like(g, step)) if g.numel() else g.new_zeros(())

    @abstractmethod
    def _value(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _prox(self, x: Tensor, step: Tensor) -> Tensor: ...

    @abstractmethod
    def _distance(self, x: Tensor, g: Tensor) -> Tensor: ...

    @abstractmethod
    def _lambda_max(self, g: Tensor, step: Tensor) -> Tensor: ...

    def check_fits(self, w: Tensor, name: str = "w") -> None:
        """Raise ValueError where the penalty can't be one of this tensor: by its dtype, its shape or that of ``lam``."""
        kind = type(self).__name__
        if w.dtype not in DTYPES:
            raise ValueError(f"{kind}: {name} has dtype {w.dtype}; it takes float64, float32, bfloat16 or float16")
        if w.layout is not torch.strided:
            raise ValueError(f"{kind}: {name} has layout {w.layout}; it takes dense tensors")
        if isinstance(self.lam, Tensor) and not broadcasts_to(self.lam, w):
            raise ValueError(
                f"{kind}: lam has shape {tuple(self.lam.shape)}, which does not broadcast to {name} of shape {tuple(w.shape)}"
            )

    def with_lam(self: _P, lam: float | Tensor) -> _P:
        """The same penalty at another strength; the given one is left as it is.

        Raises:
            ValueError: for a λ that is negative or not finite.
        """
        other = copy.copy(self)
        other._set_lam(lam)
        return other

    def _set_lam(self, lam: float | Tensor) -> None:
        self.lam = checked_nonnegative(type(self).__name__, "lam", lam)

    def _check_step(self, step: float | Tensor, w: Tensor) -> None:
        # Values of a tensor are not looked at: that would wait for the device at every step.
        kind = type(self).__name__
        if isinstance(step, Tensor):
            if not broadcasts_to(step, w):
                raise ValueError(
                    f"{kind}.prox: step has shape {tuple(step.shape)}, which does not broadcast to w of shape {tuple(w.shape)}"
                )
        elif (number := plain(step)) is None or not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{kind}.prox: step is {step!r}; it takes a finite number >= 0, or a tensor of them")

    def _options(self) -> dict[str, object]:
        return {}

    def __repr__(self) -> str:
        lam = f"tensor of shape {tuple(self.lam.shape)}" if isinstance(self.lam, Tensor) and self.lam.dim() else float(self.lam)
        options = {"lam": lam, **self._options()}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in options.items())})"


def like(x: Tensor, value: float | Tensor) -> Tensor:
    """A number as a tensor of x's dtype and device. Filled there: no copy from the host."""
    return value.to(x) if isinstance(value, Tensor) else x.new_full((), value)


def signed(magnitude: Tensor, sign_of: Tensor) -> Tensor:
    """The magnitude, in its own memory, with another tensor's signs; zeros stay positive, NaN stays NaN."""
    return magnitude.copysign_(sign_of).add_(0.0)


def broadcasts_to(x: Tensor, w: Tensor) -> bool:
    """Whether x has w's shape once it is expanded to it."""
    if x.shape == w.shape or not x.dim():  # as in every step; the question below is a slow one
        return True
    try:
        return torch.broadcast_shapes(x.shape, w.shape) == w.shape
    except RuntimeError:
        return False


def checked_nonnegative(kind: str, name: str, value: float | Tensor) -> float | Tensor:
    """A strength as Python's number or the tensor given, or ValueError. Looks at a tensor's values: waits for the device."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise ValueError(f"{kind}: {name} is a {value.dtype} tensor; it takes a number or a floating-point tensor")
        values = value.detach()
        if not (value.is_meta or bool(((values >= 0) & values.isfinite()).all())):
            raise ValueError(f"{kind}: {name} holds a negative or non-finite number; it takes finite numbers >= 0")
        return value
    number = plain(value)
    if number is None or not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{kind}: {name} is {value!r}; it takes a finite number >= 0, or a tensor of them")
    return number


def single_nonnegative(kind: str, name: str, value: float | Tensor) -> float | Tensor:
    """`checked_nonnegative` of one number, which a tensor then holds without dimensions."""
    strength = checked_nonnegative(kind, name, value)
    if isinstance(strength, Tensor):
        if strength.numel() != 1:
            raise ValueError(f"{kind}: {name} is a tensor of shape {tuple(strength.shape)}; it takes a single number")
        return strength.reshape(())
    return strength
