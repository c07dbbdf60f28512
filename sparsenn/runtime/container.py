"""The file: a safetensors file whose header is checked against the file's size before anything is allocated.

Any reader of safetensors opens it. What is ours lies in the metadata: ``tensors`` says how each sparse tensor is stored,
``architecture`` how the network computes, ``about`` who wrote it, and ``sha256`` is the digest of the whole file with zeros in
its own place. A sparse tensor ``w`` is stored as ``w.values`` and its index, such as ``w.gaps``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsenn._files import write_atomic
from sparsenn.runtime.architecture import Op, check_name, parse
from sparsenn.runtime.errors import ArtefactError
from sparsenn.runtime.storage import FLOATS, NUMPY, PARTS, Array, Stored, encode, part_dtype

VERSION = "sparsenn 1"
MAX_HEADER = 1 << 23
MAX_BYTES = 1 << 32
_MAX_DIMS = 16
_DIGEST = '"sha256":"'
_NO_DIGEST = "0" * 64
_METADATA = ("format", "sha256", "tensors", "architecture", "about")


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        path: where it lies.
        tensors: by name, in the order of the model.
        architecture: the operations; None for tensors alone.
        about: what the writer noted.
        size: bytes of the file.
    """

    path: Path
    tensors: dict[str, Stored]
    architecture: list[Op] | None
    about: dict[str, Any]
    size: int


def write(
    path: str | Path,
    tensors: Mapping[str, tuple[Array, tuple[int, ...], str]],
    architecture: list[Op] | None,
    about: Mapping[str, Any],
) -> Path:
    """Write a file in one step: it is whole or not there.

    Args:
        path: the file.
        tensors: for each name the entries, the shape, and the type that the values are stored in.
        architecture: the operations, or None.
        about: what to note, ready for JSON.

    Raises:
        ArtefactError: if the file cannot be written.
    """
    path = Path(path)
    stored = {name: encode(*tensor) for name, tensor in tensors.items()}
    arrays: dict[str, tuple[Array, tuple[int, ...]]] = {}
    for name, tensor in stored.items():
        if tensor.how == "dense":
            arrays[name] = (tensor.values, tensor.shape)
        else:
            arrays[f"{name}.values"] = (tensor.values, tensor.values.data.shape)
            arrays |= {f"{name}.{part}": (array, array.data.shape) for part, array in tensor.index.items()}
    special = {
        name: [t.how, list(t.shape)] if t.dtype == t.values.dtype else [t.how, list(t.shape), t.dtype]
        for name, t in stored.items()
        if t.how != "dense" or t.dtype != t.values.dtype
    }
    metadata = {"format": VERSION, "sha256": _NO_DIGEST, "tensors": _json(special)}
    if architecture is not None:
        metadata["architecture"] = _json([op.to_json() for op in architecture])
    metadata["about"] = _json(dict(about))
    # the widest types first, so that each lies at a multiple of its size
    ordered = sorted(arrays.items(), key=lambda item: -NUMPY[item[1][0].dtype].itemsize)
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, (array, shape) in ordered:
        header[name] = {"dtype": array.dtype, "shape": list(shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = _json(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ArtefactError(f"{path}: its header would take {len(text)} bytes; the format takes {MAX_HEADER}")
    data = b"".join(np.ascontiguousarray(array.data).tobytes() for _, (array, _) in ordered)
    content = len(text).to_bytes(8, "little") + text + data
    digest = hashlib.sha256(content).hexdigest()
    content = content.replace((_DIGEST + _NO_DIGEST).encode(), (_DIGEST + digest).encode(), 1)
    try:
        write_atomic(path, content)
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def read(path: str | Path, max_bytes: int = MAX_BYTES) -> Contents:
    """Read a file strictly: every byte of it is accounted for, and its digest is right.

    Args:
        path: the file.
        max_bytes: refuse a file, or tensors, that take more.

    Raises:
        ArtefactError: with the file's name and what is wrong with it.
    """
    path = Path(path)
    try:
        if not path.is_file():
            problem = "there is no such file" if not path.exists() else "it is not a regular file"
            raise ArtefactError(f"{path}: {problem}")
        size = path.stat().st_size
        with path.open("rb") as file:
            length = _header_length(file.read(8), size, max_bytes)
            text = file.read(length)
            header, metadata = _header(text)
            entries = _entries(header, size - 8 - length)
            data = file.read(size - 8 - length + 1)
        if len(data) != size - 8 - length:
            raise ArtefactError("its size changed while it was read")
        _check_digest(metadata["sha256"], length, text, data)
        tensors = _tensors(entries, metadata, data, max_bytes)
        architecture = parse(_parsed(metadata["architecture"], "architecture")) if "architecture" in metadata else None
        about = _parsed(metadata["about"], "about")
        if not isinstance(about, dict):
            raise ArtefactError("its note 'about' is no JSON object")
    except ArtefactError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ArtefactError(f"{path}: {error}") from error
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror or error}") from error
    return Contents(path, tensors, architecture, about, size)


def _header_length(first: bytes, size: int, max_bytes: int) -> int:
    if size < 10 or len(first) < 8:
        raise ArtefactError("it is no safetensors file, which has 10 bytes at least")
    if size > max_bytes:
        raise ArtefactError(f"it has {size} bytes; max_bytes is {max_bytes}")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER:
        raise ArtefactError(f"it says that its header has {length} bytes; {MAX_HEADER} are allowed")
    if length > size - 8:
        raise ArtefactError(
            f"it says that its header has {length} bytes, and only {size - 8} follow: it is cut off, or no artefact"
        )
    return length


def _header(text: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    header = _parsed(text, "header")
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise ArtefactError("its header is no JSON object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ArtefactError("it has no metadata of text: it is no sparse artefact")
    if metadata.get("format") != VERSION:
        raise ArtefactError(f"its format is {metadata.get('format')!r}; this version reads {VERSION!r}")
    unknown = sorted(metadata.keys() - set(_METADATA))
    missing = sorted(set(_METADATA) - {"architecture"} - metadata.keys())
    if unknown or missing:
        raise ArtefactError(f"its metadata has unknown keys {unknown} and lacks {missing}")
    return header, metadata


def _entries(header: dict[str, Any], available: int) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """The arrays by name: type, shape, begin, end. Together they cover the data without a gap."""
    entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ArtefactError(f"the header's entry {name!r} has not exactly dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], _sizes(entry["shape"], name), _sizes(entry["data_offsets"], name)
        if not isinstance(dtype, str) or dtype not in NUMPY:
            raise ArtefactError(f"the array {name!r} has the unknown type {dtype!r}")
        if len(offsets) != 2 or not offsets[0] <= offsets[1] <= available:
            raise ArtefactError(f"the array {name!r} lies outside of the file, which is cut off or damaged")
        if math.prod(shape) * NUMPY[dtype].itemsize != offsets[1] - offsets[0]:
            raise ArtefactError(f"the array {name!r} of shape {list(shape)} does not fill its {offsets[1] - offsets[0]} bytes")
        entries[name] = (dtype, shape, *offsets)
    end = 0
    for _, _, begin, stop in sorted(entries.values(), key=lambda entry: entry[2:]):
        if begin != end:
            raise ArtefactError(f"its arrays overlap or leave a hole at byte {min(begin, end)} of the data")
        end = stop
    if end != available:
        raise ArtefactError(f"its arrays take {end} bytes, {available} are there")
    return entries


def _check_digest(digest: str, length: int, text: bytes, data: bytes) -> None:
    mark = (_DIGEST + digest).encode()
    if not re.fullmatch("[0-9a-f]{64}", digest) or text.count(mark) != 1:
        raise ArtefactError("it has no readable digest")
    whole = hashlib.sha256(length.to_bytes(8, "little"))
    whole.update(text.replace(mark, (_DIGEST + _NO_DIGEST).encode(), 1))
    whole.update(data)
    if whole.hexdigest() != digest:
        raise ArtefactError("its digest does not match: it was damaged or changed after it was written")


def _tensors(
    entries: dict[str, tuple[str, tuple[int, ...], int, int]], metadata: dict[str, str], data: bytes, max_bytes: int
) -> dict[str, Stored]:
    special = _parsed(metadata["tensors"], "tensors")
    if not isinstance(special, dict):
        raise ArtefactError("its list of tensors is no JSON object")
    arrays = {
        name: (Array(dtype, np.frombuffer(data, NUMPY[dtype], math.prod(shape), begin)), shape)
        for name, (dtype, shape, begin, _) in entries.items()
    }
    tensors: dict[str, Stored] = {}
    taken: set[str] = set()
    total = 0
    for name, how, shape, dtype in _described(special):
        parts = {part: f"{name}.{part}" for part in PARTS[how]}
        source = name if how == "dense" else f"{name}.values"
        for need in (source, *parts.values()):
            if need not in arrays or need in taken:
                raise ArtefactError(f"the tensor {name!r} lacks its array {need!r}")
            taken.add(need)
        values, own = arrays[source]
        if how == "dense" and own != shape:
            raise ArtefactError(f"the tensor {name!r} has two shapes, {list(shape)} and {list(own)}")
        dtype = dtype or values.dtype
        if dtype != values.dtype and not (dtype in FLOATS and values.dtype in FLOATS):
            raise ArtefactError(f"the tensor {name!r} of type {dtype} has values of type {values.dtype}")
        index = {part: arrays[key][0] for part, key in parts.items()}
        for part, array in index.items():
            if array.dtype != part_dtype(how, part):
                raise ArtefactError(f"the array {parts[part]!r} has type {array.dtype}; it takes {part_dtype(how, part)}")
        tensors[name] = Stored(how, shape, dtype, values, index)
    for name, (array, shape) in arrays.items():
        if name not in taken:
            if name in tensors:
                raise ArtefactError(f"the tensor {name!r} is there twice")
            tensors[name] = Stored("dense", shape, array.dtype, array, {})
    for name, tensor in tensors.items():
        check_name(name)
        total += tensor.dense_bytes
        if total > max_bytes:
            raise ArtefactError(f"its tensors take {total} bytes and more; max_bytes is {max_bytes}")
    for name, tensor in tensors.items():
        tensor.check(name)
    return tensors


def _described(special: dict[str, Any]) -> list[tuple[str, str, tuple[int, ...], str | None]]:
    found = []
    for name, entry in special.items():
        if not isinstance(entry, list) or len(entry) not in (2, 3) or not isinstance(entry[0], str) or entry[0] not in PARTS:
            raise ArtefactError(f"the tensor {name!r} is stored in an unknown way: {str(entry)[:80]}")
        dtype = entry[2] if len(entry) == 3 else None
        if dtype is not None and (not isinstance(dtype, str) or dtype not in NUMPY):
            raise ArtefactError(f"the tensor {name!r} has the unknown type {str(dtype)[:80]!r}")
        found.append((name, entry[0], _sizes(entry[1], name), dtype))
    return found


def _sizes(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MAX_DIMS or not all(type(x) is int and 0 <= x < 1 << 48 for x in value):
        raise ArtefactError(f"{name!r} has a shape or offsets that are no list of a few sizes")
    return tuple(value)


def _parsed(text: bytes | str, what: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except ArtefactError:
        raise
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"its {what} is no JSON: {str(error)[:80]}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ArtefactError("its JSON names something twice")
    return found


def _refuse(constant: str) -> Any:
    raise ArtefactError(f"its JSON holds {constant}")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
