"""Files that are whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_PART = ".part"


def write_atomic(path: Path, content: bytes) -> None:
    """Give ``path`` the new content in one step.

    The bytes reach the disk under another name first, so that a crash or a kill leaves the old file or the new one, and at most
    a ``….part`` beside it that the next write takes over.
    """
    part = path.with_name(path.name + _PART)
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def remove_parts(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for part in folder.glob(f"*{_PART}"):
        part.unlink()
