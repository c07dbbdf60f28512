"""What the public functions of the operators say of their arguments."""

from __future__ import annotations

from torch import Tensor


def kind_of(x: Tensor) -> str:
    """Dtype, shape and device of a tensor, for messages."""
    return f"{x.dtype} {tuple(x.shape)} on {x.device}"
