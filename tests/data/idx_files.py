"""Writes small files in the official idx format, from its description and not from the reader under test."""

import gzip
import hashlib

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path, array: np.ndarray) -> str:
    """Write packed or not, by the name; returns the md5 of the file."""
    content = idx_bytes(array)
    stored = gzip.compress(content, mtime=0) if path.suffix == ".gz" else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stored)
    return hashlib.md5(stored).hexdigest()
