"""Train sparse neural networks by principled means, on fused CPU and CUDA kernels.

Importing ``sparsenn`` imports neither PyTorch nor any kernel: each name is resolved when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sparsenn import artefact, data, init, metrics, models, nn, ops, optim, penalties, prune, runtime, training
    from sparsenn.artefact.files import load, save
    from sparsenn.nn.convert import collapse, factorize
    from sparsenn.nn.spectralize import spectralize

_ROOMS = (
    "artefact",
    "data",
    "init",
    "metrics",
    "models",
    "nn",
    "ops",
    "optim",
    "penalties",
    "prune",
    "runtime",
    "training",
)
_NAMES = {
    "collapse": "sparsenn.nn.convert",
    "factorize": "sparsenn.nn.convert",
    "load": "sparsenn.artefact.files",
    "save": "sparsenn.artefact.files",
    "spectralize": "sparsenn.nn.spectralize",
}

__all__ = [
    "__version__",
    "artefact",
    "collapse",
    "data",
    "factorize",
    "init",
    "load",
    "metrics",
    "models",
    "nn",
    "ops",
    "optim",
    "penalties",
    "prune",
    "runtime",
    "save",
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
