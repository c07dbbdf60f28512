"""A ``step`` that costs nothing where nobody listens to it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer, optimizer

_profiled = torch.autograd._profiler_enabled
_set_grad_enabled = torch._C._set_grad_enabled


def quiet_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Run ``step`` without gradients, and with torch's hooks and its mark for the profiler only where there are any.

    ``torch.optim.Optimizer`` wraps every step in a ``record_function`` and two loops over hooks, which take as long as a whole
    step on 10,000 weights. A step that is profiled, compiled or has a hook still goes that way.
    """
    announced = Optimizer.profile_hook_step(torch.no_grad()(step))

    @functools.wraps(step)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            torch.compiler.is_compiling()
            or _profiled()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or optimizer._global_optimizer_pre_hooks
            or optimizer._global_optimizer_post_hooks
        ):
            return announced(self, *args, **kwargs)
        if not torch.is_grad_enabled():
            return step(self, *args, **kwargs)
        _set_grad_enabled(False)
        try:
            return step(self, *args, **kwargs)
        finally:
            _set_grad_enabled(True)

    run.hooked = True  # type: ignore[attr-defined]  # or torch would wrap it once more
    return run
