"""What a flag that names a file or a folder takes."""

from __future__ import annotations

import argparse


def path_name(text: str) -> str:
    """Any name but the empty one, which a shell makes of a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no name of a file or folder")
    return text
