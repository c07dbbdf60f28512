"""Features that a frozen backbone has computed, with their classes, from one file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sparsenn.data.errors import DataError
from sparsenn.data.tabular import TabularData

NAMES = ("train_features", "train_labels", "test_features", "test_labels")


def load_features(path: str | Path) -> TabularData:
    """Read features and classes from an ``.npz`` or a ``.safetensors`` file.

    The file holds ``train_features`` (N, D), ``train_labels`` (N,), ``test_features`` (M, D) and ``test_labels`` (M,): features
    of any floating dtype, which become float32, and whole numbers from 0 on.

    Args:
        path: the file.

    Raises:
        DataError: if the file is missing or damaged, an array is missing, or shapes, dtypes or labels contradict the above; the
            message names the file and the check that failed.

    Example:
        >>> import tempfile, numpy as np, sparsenn
        >>> x, y = np.random.randn(6, 4), np.arange(6) % 3
        >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        ...     np.savez(file.name, train_features=x, train_labels=y, test_features=x[:2], test_labels=y[:2])
        ...     sparsenn.data.load_features(file.name).train_inputs.shape
        torch.Size([6, 4])
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            arrays = load_file(path)
        else:
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise DataError(f"{path}: neither an .npz nor a .safetensors file: {error}") from error
    if missing := [name for name in NAMES if name not in arrays]:
        raise DataError(f"{path}: {', '.join(missing)} is missing; the file holds {', '.join(arrays) or 'nothing'}")
    for name in NAMES:
        kind = np.floating if name.endswith("features") else np.integer
        if not np.issubdtype(arrays[name].dtype, kind):
            raise DataError(f"{path}: {name} has dtype {arrays[name].dtype}; it takes {kind.__name__} numbers")
        if kind is np.floating and not np.isfinite(arrays[name]).all():
            raise DataError(f"{path}: {name} holds NaN or infinity")
    labels = [arrays[name] for name in NAMES if name.endswith("labels")]
    if any(own.size and (own.min() < 0 or own.max() > np.iinfo(np.int64).max) for own in labels):
        raise DataError(f"{path}: label check failed: a label is below 0, or above what int64 holds")
    largest = [int(own.max()) if own.size else -1 for own in labels]
    if largest[1] > largest[0]:
        raise DataError(f"{path}: label check failed: class {largest[1]} is in the test samples alone")
    parts = {
        name: torch.from_numpy(arrays[name].astype(np.float32 if name.endswith("features") else np.int64)) for name in NAMES
    }
    return TabularData(path.stem, *(parts[name] for name in NAMES))
