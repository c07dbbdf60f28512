"""What a stack takes back as its state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsenn.training.checks import is_int, shown
from sparsenn.training.stacked.run import ACTIVE, STATUS

ACTIVE_ONLY = ("state", "losses")  # a row for each run that goes on; the other tensors have one for every run


def check_state(state: Any, own: dict[str, Any], batches: int) -> None:
    """Refuse what is no state of the stack whose state is ``own`` now.

    Raises:
        ValueError: for other entries, the state of another stack, or one that is damaged.
    """
    where = "Stack.load_state_dict: the state"
    if not isinstance(state, dict) or not isinstance(state.get("about", {}), dict):
        raise ValueError(f"{where} is no dict that state_dict gave")
    missing, foreign = [key for key in own if key not in state], [key for key in state if key not in own]
    if missing or foreign:
        what = f"lacks {', '.join(missing)}" if missing else f"has the unknown {', '.join(map(repr, foreign))}"
        raise ValueError(f"{where} {what}; it takes what state_dict gave")
    about = state["about"]
    different = [key for key, value in own["about"].items() if about.get(key) != value]
    if different:
        found = ", ".join(f"{key} {shown(about.get(key))} for {shown(own['about'][key])}" for key in different)
        raise ValueError(f"{where} is that of another stack: {found}")
    active = _active(state["status"], own["status"])
    damaged = [key for key in own if key != "about" and not _fits(key, state[key], own, active, batches)]
    if damaged:
        raise ValueError(f"{where} is damaged: {', '.join(damaged)}")


def _active(status: Any, like: Tensor) -> list[int] | None:
    """The runs that go on, by the code of each; None where that is no code of every run."""
    if not isinstance(status, Tensor) or status.shape != like.shape or status.dtype != like.dtype:
        return None
    codes = status.tolist()
    if not set(codes) <= set(range(len(STATUS))):
        return None
    return [index for index, code in enumerate(codes) if code == STATUS.index(ACTIVE)]


def _fits(key: str, value: Any, own: dict[str, Any], active: list[int] | None, batches: int) -> bool:
    like = own[key]
    if key == "status":
        return active is not None
    if active is None:
        return True  # which the status has to say first
    if key == "members":
        return bool(value == active)
    if not isinstance(like, Tensor):
        return is_int(value) and 0 <= value < (batches if key == "step" else max(own["about"]["max_epochs"]) + 1)
    rows = len(active) if key in ACTIVE_ONLY else len(like)
    return isinstance(value, Tensor) and value.dtype == like.dtype and value.shape == (rows, *like.shape[1:])
