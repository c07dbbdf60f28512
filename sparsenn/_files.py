"""Files that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

PART = ".part"


def write_atomic(path: Path, content: bytes) -> None:
    """Give ``path`` the new content in one step.

    The bytes reach the disk under another name first, so that a crash or a kill leaves the old file or the new one, and at most
    a ``….part`` beside it that the next write takes over.
    """
    part = path.with_name(path.name + PART)
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
