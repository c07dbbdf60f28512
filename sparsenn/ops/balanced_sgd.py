"""One step of SGD on factors of one magnitude, for many weights: its fake. A step has no derivative."""

from __future__ import annotations

from typing import Any

import torch

from sparsenn.ops import library  # noqa: F401  (registers the operators)
from sparsenn.ops.schema import NAMESPACE


@torch.library.register_fake(f"{NAMESPACE}::balanced_sgd_")
def _(*args: Any) -> None:
    return None
