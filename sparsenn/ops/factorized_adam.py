"""One step of Adam on the factors of many weights: its fake. A step has no derivative; it is called under ``no_grad``."""

from __future__ import annotations

from typing import Any

import torch

from sparsenn.ops import library  # noqa: F401  (registers the operators)
from sparsenn.ops.schema import NAMESPACE


@torch.library.register_fake(f"{NAMESPACE}::factorized_adam_")
def _(*args: Any) -> None:
    return None
