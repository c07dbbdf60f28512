"""Which way a stack goes, and why."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparsenn.training.stacked.fused_engine import FusedEngine, NotCoveredError, has_kernel
from sparsenn.training.stacked.rows import Engine, Task
from sparsenn.training.stacked.run import Run
from sparsenn.training.stacked.torch_engine import TorchEngine

COVERS = (
    "chains of Linear and PatchConv1d layers with one of ReLU, tanh, sigmoid and GELU between them, vectors in and out, any "
    "optimizer of a run"
)


def choose_engine(engine: str, modules: Sequence[nn.Module], runs: Sequence[Run], task: Task) -> tuple[Engine, str]:
    """The engine for these runs, and a sentence that says why it is that one.

    Raises:
        ValueError: for "fused" where the operator does not cover the networks, and for networks that can't take a step.
    """
    if engine == "torch":
        return TorchEngine(modules, runs, task), "through torch.func, as asked for"
    try:
        fused = FusedEngine(modules, runs, task)
    except NotCoveredError as error:
        if engine == "fused":
            raise ValueError(f"Stack: engine is 'fused', which does not cover {error}; it covers {COVERS}") from error
        return TorchEngine(modules, runs, task), f"through torch.func: the fused operator does not cover {error}"
    if engine == "fused":
        return fused, "through the fused operator, as asked for"
    device = task.x.device
    if not has_kernel(device):
        return TorchEngine(modules, runs, task), f"through torch.func: the fused operator has no kernel for {device.type} here"
    return fused, "through the fused operator"
