"""How one tensor lies in a file: dense, by gaps, as compressed rows or under a bit mask, whichever takes the fewest bytes.

An entry is left out where it equals 0, as −0.0 does, which a mask makes of a negative weight; infinities and NaN keep
their bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsenn.runtime.errors import ArtefactError

# safetensors' names. BF16 has no NumPy type: its bits are held as whole numbers.
NUMPY: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
FLOATS = ("F64", "F32", "F16", "BF16")
SKIP = 255  # a gap byte that skips so many entries and stores none
PARTS = {
    "dense": (),
    "gaps8": ("gaps",),
    "csr16": ("columns", "rows"),
    "csr32": ("columns", "rows"),
    "bitmask": ("mask",),
}
_PART_DTYPES = {"gaps": "U8", "rows": "U32", "mask": "U8"}


@dataclass(frozen=True)
class Array:
    """Raw numbers and safetensors' name of their type."""

    dtype: str
    data: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.data.nbytes


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in a file.

    Attributes:
        how: ``"dense"``, ``"gaps8"``, ``"csr16"``, ``"csr32"`` or ``"bitmask"``.
        shape: of the tensor.
        dtype: of the tensor, in safetensors' names; its values may be stored in fewer bits.
        values: the entries that are stored, all of them where it is dense.
        index: the arrays that say where they belong.
    """

    how: str
    shape: tuple[int, ...]
    dtype: str
    values: Array
    index: Mapping[str, Array]

    @property
    def numel(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without its part of the header."""
        return self.values.nbytes + sum(part.nbytes for part in self.index.values())

    @property
    def dense_bytes(self) -> int:
        """Bytes of the tensor in memory."""
        return self.numel * NUMPY[self.dtype].itemsize

    @property
    def nonzeros(self) -> int:
        """Entries that are not 0."""
        data = self.values.data
        if self.values.dtype == "BF16":
            data = data & 0x7FFF
        return int(np.count_nonzero(data))

    def positions(self) -> np.ndarray | None:
        """Where the values belong in the flattened tensor, ascending; None where it is dense."""
        if self.how == "dense":
            return None
        if self.how == "gaps8":
            gaps = self.index["gaps"].data
            stored = gaps != SKIP
            return (np.cumsum(gaps.astype(np.int64) + stored) - 1)[stored]
        if self.how == "bitmask":
            return np.flatnonzero(np.unpackbits(self.index["mask"].data, bitorder="little")).astype(np.int64)
        rows = self.index["rows"].data.astype(np.int64)
        columns = self.index["columns"].data.astype(np.int64)
        return np.repeat(np.arange(len(rows) - 1), np.diff(rows)) * _matrix(self.shape)[1] + columns

    def dense(self) -> np.ndarray:
        """The tensor in memory of its own; bfloat16 as its bits."""
        values = cast(self.values, self.dtype).data
        positions = self.positions()
        if positions is None:
            return values.reshape(self.shape).copy()
        flat = np.zeros(self.numel, NUMPY[self.dtype])
        flat[positions] = values
        return flat.reshape(self.shape)

    def check(self, name: str) -> None:
        """Refuse an index that does not fit, before anything of the tensor's size is allocated.

        Raises:
            ArtefactError: with the tensor's name.
        """
        count, numel = self.values.data.size, self.numel
        if self.how == "dense":
            _require(count == numel, name, f"it has {numel} entries, {count} values are stored")
        elif self.how == "gaps8":
            gaps = self.index["gaps"].data
            _require(int(np.count_nonzero(gaps != SKIP)) == count, name, "its gaps and its values differ in number")
            _require(not gaps.size or gaps[-1] != SKIP, name, "its gaps end in a skip")
            _require(int(gaps.sum(dtype=np.int64)) + count <= numel, name, "its gaps lead beyond its end")
        elif self.how == "bitmask":
            mask = self.index["mask"].data
            _require(mask.size == -(-numel // 8), name, "its mask has the wrong length")
            spare = -numel % 8
            _require(not spare or int(mask[-1]) >> (8 - spare) == 0, name, "its mask has bits beyond its end")
            ones = int(np.unpackbits(mask).sum(dtype=np.int64))
            _require(ones == count, name, "its mask and its values differ in number")
        else:
            self._check_rows(name)

    def _check_rows(self, name: str) -> None:
        rows, columns = (self.index[part].data.astype(np.int64) for part in ("rows", "columns"))
        height, width = _matrix(self.shape)
        count = self.values.data.size
        _require(rows.size == height + 1 and columns.size == count, name, "its rows or its columns have the wrong number")
        good = rows[0] == 0 and rows[-1] == count and bool((np.diff(rows) >= 0).all())
        _require(good, name, "its rows do not ascend from 0 to the number of its values")
        _require(not count or int(columns.max()) < width, name, "a column lies beyond its width")
        ascending = np.diff(columns) > 0
        starts = rows[1:-1]
        ascending[starts[(starts > 0) & (starts < count)] - 1] = True
        _require(bool(ascending.all()), name, "the columns of a row do not ascend")


def cast(array: Array, dtype: str) -> Array:
    """Numbers in another floating type: exact upward, to nearest even downward."""
    if array.dtype == dtype:
        return array
    data = array.data
    if array.dtype == "BF16":
        data = (data.astype(np.uint32) << 16).view(np.float32)
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return Array(dtype, data.astype(NUMPY[dtype]))
    with np.errstate(over="ignore"):
        bits = data.astype(np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = ((bits >> 16) | 0x40).astype(np.uint16)  # rounding must not carry a NaN to infinity
    return Array("BF16", np.where(np.isnan(data), quiet, rounded))


def shrink(array: Array, dtype: str, name: str) -> Array:
    """Values in a half type, or a sentence where one leaves its range."""
    small = cast(array, dtype)
    wide = cast(small, "F64").data
    if (np.isinf(wide) & np.isfinite(cast(array, "F64").data)).any():
        raise ValueError(f"save: {name} has values beyond the range of {dtype}; store it as float32")
    return small


def encode(array: Array, shape: tuple[int, ...], values: str) -> Stored:
    """The tensor in the form that takes the fewest bytes.

    Args:
        array: its entries, C-contiguous.
        shape: of the tensor.
        values: the type of the stored values.
    """
    small = cast(array, values)
    flat = small.data.reshape(-1)
    at = np.flatnonzero(flat & 0x7FFF if values == "BF16" else flat)
    steps = np.diff(at, prepend=-1) - 1
    rows, width = _matrix(shape)
    index = 2 if width <= 1 << 16 else 4
    sizes = {
        "dense": flat.nbytes,
        "gaps8": int(len(at) + (steps // SKIP).sum()),
        f"csr{8 * index}": len(at) * index + 4 * (rows + 1),
        "bitmask": -(-flat.size // 8),
    }
    if width > 1 << 32 or len(at) >= 1 << 32:
        del sizes[f"csr{8 * index}"]
    for how in sizes:
        sizes[how] += 0 if how == "dense" else len(at) * flat.itemsize + 70  # about what one more entry of the header takes
    how = min(sizes, key=lambda name: sizes[name])
    if how == "dense":
        return Stored(how, shape, array.dtype, Array(values, flat), {})
    return Stored(how, shape, array.dtype, Array(values, flat[at]), _index(how, at, steps, flat.size, rows, width))


def part_dtype(how: str, part: str) -> str:
    """The type of an index array."""
    return _PART_DTYPES.get(part, "U16" if how == "csr16" else "U32")


def _index(how: str, at: np.ndarray, steps: np.ndarray, numel: int, rows: int, width: int) -> dict[str, Array]:
    if how == "gaps8":
        gaps = np.full(len(at) + int((steps // SKIP).sum()), SKIP, np.uint8)
        gaps[np.cumsum(steps // SKIP + 1) - 1] = steps % SKIP
        return {"gaps": Array("U8", gaps)}
    if how == "bitmask":
        mask = np.zeros(numel, bool)
        mask[at] = True
        return {"mask": Array("U8", np.packbits(mask, bitorder="little"))}
    dtype = part_dtype(how, "columns")
    starts = np.searchsorted(at, np.arange(rows + 1) * width)
    return {"columns": Array(dtype, (at % width).astype(NUMPY[dtype])), "rows": Array("U32", starts.astype(np.uint32))}


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor: its first dimension, and all others."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def _require(holds: Any, name: str, problem: str) -> None:
    if not holds:
        raise ArtefactError(f"the tensor {name!r} is damaged: {problem}")
