"""The idx file format of MNIST and its successors.

A big-endian header, two zero bytes, a type byte, the number d of dimensions, then d 32-bit sizes, followed by the elements in
row-major order. Image sets use one type, unsigned bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from sparsenn.data.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path, *, dimensions: int, md5: str | None = None) -> np.ndarray:
    """Read an idx file of unsigned bytes, packed with gzip (a name that ends in .gz) or not.

    The checks run in this order: gzip, magic number, header, size, checksum; the error names the file and the first to fail.

    Args:
        path: the file.
        dimensions: 3 for images (N, height, width), 1 for labels (N,).
        md5: the digest of the file as it lies on disk, or None for no such check.

    Returns:
        An array of uint8 with ``dimensions`` axes.

    Raises:
        DataError: if the file cannot be read or fails a check.

    Source:
        The format's description on the MNIST page of LeCun, Cortes and Burges.
    """
    path = Path(path)
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    content = _unpack(path, stored)
    shape, start = _header(path, content, dimensions)
    expected, found = math.prod(shape), len(content) - start
    if found != expected:
        raise DataError(
            f"{path}: size check failed: the header {shape} announces {expected} bytes, {found} follow; fetch the file again"
        )
    if md5 is not None:
        check_md5(path, stored, md5)
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def check_md5(path: str | Path, content: bytes, md5: str) -> None:
    """Raise a DataError that names ``path`` unless ``content`` has the digest ``md5``."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path}: checksum check failed: md5 is {found}, the official file has {md5}; fetch the file again")


def _unpack(path: Path, stored: bytes) -> bytes:
    if path.suffix != ".gz":
        return stored
    try:
        return gzip.decompress(stored)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: gzip check failed: {error}; fetch the file again") from error


def _header(path: Path, content: bytes, dimensions: int) -> tuple[tuple[int, ...], int]:
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if content[:4] != magic:
        raise DataError(
            f"{path}: magic number check failed: the file starts with 0x{content[:4].hex()}; "
            f"unsigned bytes in {dimensions} dimensions start with 0x{magic.hex()}"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(
            f"{path}: header check failed: {start} bytes are needed for {dimensions} sizes, the file has {len(content)}"
        )
    return struct.unpack(f">{dimensions}I", content[4:start]), start
