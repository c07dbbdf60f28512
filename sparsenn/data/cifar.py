"""CIFAR-10 and CIFAR-100 from their official binary archives, which hold no Python objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sparsenn.data.archives import ArchiveSource, Files, locate, opened
from sparsenn.data.errors import DataError
from sparsenn.data.images import ImageData
from sparsenn.data.normalize import normalized

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarSource(ArchiveSource):
    """A CIFAR archive and what is in it.

    Attributes:
        train: the files of the training set, in order.
        test: the file of the test set.
        names: the file that names the classes, one a line.
        labels: bytes before the pixels of an image; the last of them is the label.
        classes: how many there are.
    """

    train: tuple[str, ...]
    test: str
    names: str
    labels: int
    classes: int


CIFAR_10 = CifarSource(
    "cifar-10",
    "cifar-10-binary.tar.gz",
    "cifar-10-batches-bin",
    "c32a1d4ab5d03f1284b67883e8d87530",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test_batch.bin",
    "batches.meta.txt",
    labels=1,
    classes=10,
)
CIFAR_100 = CifarSource(
    "cifar-100",
    "cifar-100-binary.tar.gz",
    "cifar-100-binary",
    "03b5dce01913d631647c71ecec9e9cb8",
    ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
    ("train.bin",),
    "test.bin",
    "fine_label_names.txt",
    labels=2,  # the superclass, then the class
    classes=100,
)


def load_cifar(source: CifarSource, root: str | Path | None = None, *, download_missing: bool = False) -> ImageData:
    """Load CIFAR-10 or CIFAR-100, each channel normalized by the training set's mean and standard deviation.

    The archive is looked for in ``<root>/<name>/``, then in the download cache, packed (then its checksum must be the official
    one) or as the folder that it unpacks to (then the structure of its files is checked).

    Args:
        source: which of the two.
        root: the folder that holds the data set's folder; None for the cache alone. It is only read.
        download_missing: fetch the archive into the cache if it is not there.

    Raises:
        DataError: if a file is missing or damaged; the message names it, the check that failed, and the cure.

    Source:
        Krizhevsky 2009; the format as described on the data sets' page. Normalized as in Deep Weight Factorization
        (arXiv 2502.02496), Appendix G.2.
    """
    path = locate(source, root, download_missing)
    with opened(source, path) as files:
        parts = [_records(source, files, name, path) for name in source.train]
        sizes = [len(labels) for _, labels in parts]
        if len(set(sizes)) > 1:  # one that ends with a record is whole by itself
            raise DataError(f"{path}: size check of {', '.join(source.train)} failed: they hold {sizes} images; they are alike")
        test_images, test_labels = _records(source, files, source.test, path)
        lines = files.read(source.names).decode("utf-8", "replace").split("\n")
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != source.classes:
        raise DataError(f"{path}: {source.names} names {len(names)} classes; {source.name} has {source.classes}")
    train_images, train_labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    train, test = normalized(train_images, test_images)
    return ImageData(source.name, train, torch.from_numpy(train_labels), test, torch.from_numpy(test_labels), names)


def _records(source: CifarSource, files: Files, name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    content, size = files.read(name), source.labels + _PIXELS
    if not content or len(content) % size:
        raise DataError(
            f"{path}: size check of {name} failed: it has {len(content)} bytes; {source.name} takes a multiple of {size}, one "
            "or more"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
    labels = records[:, source.labels - 1].astype(np.int64)
    if labels.max() >= source.classes:
        raise DataError(
            f"{path}: label range check of {name} failed: the largest label is {labels.max()}; {source.name} has 0 to "
            f"{source.classes - 1}"
        )
    return records[:, source.labels :].reshape(-1, *_SHAPE), labels
