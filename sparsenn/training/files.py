"""What a run writes, and the JSON that it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsenn._files import PART, write_atomic

__all__ = ["parse_json", "remove_parts", "write_atomic", "write_json"]


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def parse_json(text: str) -> Any:
    """Read JSON in which no object has a key twice, of which ``json.loads`` would keep the last.

    Raises:
        ValueError: if it is no such JSON.

    Example:
        >>> from sparsenn.training.files import parse_json
        >>> parse_json('{"lr": 0.1, "seed": [0, 1]}')
        {'lr': 0.1, 'seed': [0, 1]}
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given more than once")
        found[key] = value
    return found


def remove_parts(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for part in folder.glob(f"*{PART}"):
        part.unlink()
