"""Train sparse neural networks by principled means, on fused CPU and CUDA kernels.

Importing ``sparsenn`` imports neither PyTorch nor any kernel: each name is resolved when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sparsenn import data, init, metrics, models, nn, ops, optim, penalties, prune, training
    from sparsenn.nn.convert import collapse, factorize
    from sparsenn.nn.spectralize import spectralize

_ROOMS = ("data", "init", "metrics", "models", "nn", "ops", "optim", "penalties", "prune", "training")
_NAMES = {"collapse": "sparsenn.nn.convert", "factorize": "sparsenn.nn.convert", "spectralize": "sparsenn.nn.spectralize"}

__all__ = [
    "__version__",
    "collapse",
    "data",
    "factorize",
    "init",
    "metrics",
    "models",
    "nn",
    "ops",
    "optim",
    "penalties",
    "prune",
    "spectralize",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"sparsenn.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sparsenn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
