"""Training runs: settings, the loop, checkpoints, reports.

The settings can be read and checked without PyTorch, which the command line's ``--help`` relies on; the rest is imported when
it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparsenn.training.config import TrainConfig, configure, read_config_file
from sparsenn.training.errors import ConfigError, RunFolderError, TrainingDiverged, TrainingInterrupted
from sparsenn.training.grid.config import SweepConfig, configure_sweep, read_sweep

if TYPE_CHECKING:
    from sparsenn.training import stacked
    from sparsenn.training.fit import Fit
    from sparsenn.training.grid.sweep import sweep
    from sparsenn.training.result import Outcome, Result
    from sparsenn.training.run import resume, train
    from sparsenn.training.schedules import make_scheduler

_LATER = {
    "Fit": "fit",
    "Outcome": "result",
    "Result": "result",
    "make_scheduler": "schedules",
    "resume": "run",
    "sweep": "grid.sweep",
    "train": "run",
}

__all__ = [
    "ConfigError",
    "Fit",
    "Outcome",
    "Result",
    "RunFolderError",
    "SweepConfig",
    "TrainConfig",
    "TrainingDiverged",
    "TrainingInterrupted",
    "configure",
    "configure_sweep",
    "make_scheduler",
    "read_config_file",
    "read_sweep",
    "resume",
    "stacked",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "stacked":
        return importlib.import_module("sparsenn.training.stacked")
    if name in _LATER:
        return getattr(importlib.import_module(f"sparsenn.training.{_LATER[name]}"), name)
    raise AttributeError(f"module 'sparsenn.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
