"""Checkpoints: everything that a run needs to go on, in one file that is never half-written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from sparsenn.training.errors import RunFolderError
from sparsenn.training.files import write_atomic

FORMAT = 1
NAME = "checkpoint.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings and containers of them) atomically; the file before it stays until then."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; nothing but tensors and plain values is unpickled.

    Raises:
        RunFolderError: if the file is damaged or was written by another version of the format.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises a different class for every kind of damage
        raise RunFolderError(
            f"{path}: the checkpoint cannot be read ({type(error).__name__}); delete it to train from the start"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunFolderError(f"{path}: not a checkpoint of format {FORMAT}; delete it to train from the start")
    return state
