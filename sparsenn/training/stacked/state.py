"""What a stack takes back as its state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsenn.training.checks import is_int, shown

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
    damaged = [key for key in own if key != "about" and not _fits(key, state, own, batches)]
    if damaged:
        raise ValueError(f"{where} is damaged: {', '.join(damaged)}")


def _fits(key: str, state: dict[str, Any], own: dict[str, Any], batches: int) -> bool:
    value, like, members = state[key], own[key], state["members"]
    if key == "members":
        runs = range(len(own["weights"]))
        return isinstance(value, list) and all(is_int(i) and i in runs for i in value) and value == sorted(set(value))
    if not isinstance(like, Tensor):
        return is_int(value) and 0 <= value < (batches if key == "step" else max(own["about"]["max_epochs"]) + 1)
    rows = len(members) if key in ACTIVE_ONLY and isinstance(members, list) else len(like)
    return isinstance(value, Tensor) and value.dtype == like.dtype and value.shape == (rows, *like.shape[1:])
