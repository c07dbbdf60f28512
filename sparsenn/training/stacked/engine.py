"""Which way a stack goes, and why."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparsenn.training.stacked.rows import Engine, Task
from sparsenn.training.stacked.run import Run
from sparsenn.training.stacked.torch_engine import TorchEngine

ENGINES = ("auto", "fused", "torch")


def choose_engine(engine: str, modules: Sequence[nn.Module], runs: Sequence[Run], task: Task) -> tuple[Engine, str]:
    """The engine for these runs, and a sentence that says why it is that one.

    Raises:
        ValueError: for an unknown name, or "fused" where the operator does not cover the networks.
    """
    if engine not in ENGINES:
        raise ValueError(f"Stack: engine is {engine!r}; it takes one of {', '.join(ENGINES)}")
    return TorchEngine(modules, runs, task), "torch.func, as asked for"
