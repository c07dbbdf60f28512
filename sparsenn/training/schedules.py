"""How the learning rate falls over a run, as a closed form of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(step: int, steps: int) -> float:
    """½ (1 + cos(π t / T)): 1 at the first step t = 0, near 0 at the last, 0 at t = T.

    Example:
        >>> from sparsenn.training.schedules import cosine
        >>> cosine(0, 8), cosine(4, 8), cosine(8, 8)
        (1.0, 0.5, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / steps))


def constant(step: int, steps: int) -> float:
    """1 at every step."""
    return 1.0


def step_decay(step: int, steps: int) -> float:
    """1, from half of the steps on 1/10, from three quarters on 1/100."""
    if 4 * step >= 3 * steps:
        return 0.01
    return 0.1 if 2 * step >= steps else 1.0


SCHEDULES: dict[str, Callable[[int, int], float]] = {"cosine": cosine, "constant": constant, "step": step_decay}


def make_scheduler(optimizer: Optimizer, name: str, steps: int, warmup: int = 0) -> LambdaLR:
    """A scheduler that is stepped after every optimizer step and multiplies each group's learning rate.

    Args:
        optimizer: whose learning rates fall.
        name: ``cosine``, ``constant`` or ``step``.
        steps: optimizer steps T of the whole run.
        warmup: of these, the first W, in which the learning rate grows linearly: step t has (t + 1) / W of it. The schedule
            has the T - W others.

    Raises:
        ValueError: for an unknown name, fewer than one step, or a warmup that is negative or leaves no step.

    Example:
        >>> import torch
        >>> from sparsenn.training import make_scheduler
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
        >>> scheduler, rates = make_scheduler(optimizer, "cosine", steps=6, warmup=2), []
        >>> for _ in range(6):
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if name not in SCHEDULES:
        raise ValueError(f"make_scheduler: unknown name {name!r}; known are {', '.join(SCHEDULES)}")
    if steps < 1:
        raise ValueError(f"make_scheduler: steps is {steps}; it takes 1 or more")
    if not 0 <= warmup < steps:
        raise ValueError(f"make_scheduler: warmup is {warmup}; with {steps} steps it takes 0 to {steps - 1}")
    factor = SCHEDULES[name]

    def rate(step: int) -> float:
        return (step + 1) / warmup if step < warmup else factor(step - warmup, steps - warmup)

    return LambdaLR(optimizer, rate)
