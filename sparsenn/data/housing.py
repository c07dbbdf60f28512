"""California Housing: block groups of the 1990 census and the median value of their houses."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from sparsenn.data.download import cache_dir, download
from sparsenn.data.errors import DataError
from sparsenn.data.idx import check_md5
from sparsenn.data.tabular import TabularData

_FOLDER, _FILE = "california-housing", "housing.csv"
_MD5 = "d1c47305887e2252bf1ccbd74ff159a6"
_ADDRESSES = ("https://raw.githubusercontent.com/ageron/handson-ml2/master/datasets/housing/housing.csv",)
_TARGET, _GAPS = "median_house_value", "total_bedrooms"
COLUMNS = (
    "longitude",
    "latitude",
    "housing_median_age",
    "total_rooms",
    "total_bedrooms",
    "population",
    "households",
    "median_income",
)
_TEST_OF = 5


def load_california_housing(root: str | Path | None = None, *, download_missing: bool = False) -> TabularData:
    """The 20640 block groups with eight numbers each, standardized, and the median house value, standardized.

    The text column ``ocean_proximity`` is left out and an empty ``total_bedrooms`` (207 rows) becomes the mean of the others. A
    fixed shuffle makes every fifth row a test row (4128); mean and standard deviation are those of the training rows.

    Args:
        root: the folder that holds ``california-housing/housing.csv``, packed (``.gz``) or not; None for ``SPARSENN_DATA``.
            What is not there is looked for in ``~/.cache/sparsenn``.
        download_missing: fetch into the cache what is not there, with checksum.

    Raises:
        DataError: if the file is missing or damaged; the message names it, the check that failed, and the cure.

    Source:
        Pace and Barry 1997, Sparse spatial autoregressions (StatLib); the copy with the text column is that of Géron's
        *Hands-On Machine Learning*.
    """
    content = _read(root or os.environ.get("SPARSENN_DATA") or None, download_missing)
    rows = torch.from_numpy(_numbers(content))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    is_test = torch.arange(len(rows)) % _TEST_OF == 0
    mean, std = rows[~is_test].mean(0), rows[~is_test].std(0)
    rows = ((rows - mean) / std).float()
    train, test = rows[~is_test], rows[is_test]
    return TabularData(_FOLDER, train[:, :-1], train[:, -1:], test[:, :-1], test[:, -1:])


def _read(root: str | Path | None, download_missing: bool) -> bytes:
    if root is not None and not Path(root).is_dir():
        raise DataError(f"data root {root}: there is no such folder")
    folders = [folder / _FOLDER for folder in ([Path(root)] if root is not None else []) + [cache_dir()]]
    found = [path for folder in folders for path in (folder / _FILE, folder / f"{_FILE}.gz") if path.is_file()]
    if not found:
        cure = f"--data-root or SPARSENN_DATA names the folder that holds {_FOLDER}/{_FILE}"
        if not download_missing:
            raise DataError(f"{_FOLDER}: {_FILE} is not in {' or '.join(map(str, folders))}; {cure}")
        try:
            download(_ADDRESSES, folders[-1] / _FILE, _MD5)
        except DataError as error:
            raise DataError(f"{_FOLDER}: {error}; {cure}") from error
        found = [folders[-1] / _FILE]
    path = found[0]
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; fetch the file again") from error
    check_md5(path, content, _MD5)
    return content


def _numbers(content: bytes) -> np.ndarray:
    """The columns and, last, the target, in float64; gaps filled. The checksum has made sure that all are there."""
    reader = csv.DictReader(io.StringIO(content.decode()))
    rows = np.array([[float(row[name] or "nan") for name in (*COLUMNS, _TARGET)] for row in reader])
    gaps = COLUMNS.index(_GAPS)
    rows[np.isnan(rows[:, gaps]), gaps] = np.nanmean(rows[:, gaps])
    return rows
