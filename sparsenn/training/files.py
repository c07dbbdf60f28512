"""What a run writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsenn._files import PART, write_atomic

__all__ = ["remove_parts", "write_atomic", "write_json"]


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def remove_parts(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for part in folder.glob(f"*{PART}"):
        part.unlink()
