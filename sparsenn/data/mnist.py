"""MNIST, Fashion-MNIST and Kuzushiji-MNIST from their official idx files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsenn.data.download import cache_dir, download
from sparsenn.data.errors import DataError
from sparsenn.data.idx import read_idx
from sparsenn.data.images import ImageData

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"


@dataclass(frozen=True)
class IdxSource:
    """Where an idx data set comes from.

    Attributes:
        name: the data set's name, and that of its folder under a data root.
        md5: the digest of each of the four official files.
        addresses: folders on the web that serve them, in the order to try.
        classes: what each label means.
    """

    name: str
    md5: dict[str, str]
    addresses: tuple[str, ...]
    classes: tuple[str, ...]


MNIST = IdxSource(
    "mnist",
    {
        TRAIN_IMAGES: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        TRAIN_LABELS: "d53e105ee54ea40749a09fcbcd1e9432",
        TEST_IMAGES: "9fb629c4189551a2d022fa330f9573f3",
        TEST_LABELS: "ec29112dd5afa0611ce80d1b7f02629c",
    },
    ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
    tuple("0123456789"),
)
FASHION_MNIST = IdxSource(
    "fashion-mnist",
    {
        TRAIN_IMAGES: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        TRAIN_LABELS: "25c81989df183df01b3e8a0aad5dffbe",
        TEST_IMAGES: "bef4ecab320f06d8554ea6380940ec79",
        TEST_LABELS: "bb300cfdad3c16e7a12a480ee83cd310",
    },
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KUZUSHIJI_MNIST = IdxSource(
    "kuzushiji-mnist",
    {
        TRAIN_IMAGES: "bdb82020997e1d708af4cf47b453dcf7",
        TRAIN_LABELS: "e144d726b3acfaa3e44228e80efcd344",
        TEST_IMAGES: "5c965bf0a639b31b8f53240b1b52f4d7",
        TEST_LABELS: "7320c461ea6c1c855c0b718fb2a4b134",
    },
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist",),
    ("お", "き", "す", "つ", "な", "は", "ま", "や", "れ", "を"),
)


def load_idx(source: IdxSource, root: str | Path | None = None, *, download_missing: bool = False) -> ImageData:
    """Load an idx data set; each of its four files is looked for in ``<root>/<name>/``, then in the download cache.

    A file counts packed (``….gz``, then its checksum must be the official one) or unpacked (then its structure is checked).

    Args:
        source: which data set.
        root: the folder that holds the data set's folder; None for the cache alone. It is only read.
        download_missing: fetch into the cache what is not there.

    Raises:
        DataError: if a file is missing or damaged; the message names it, the check that failed, and the cure.
    """
    if root is not None and not Path(root).is_dir():
        raise DataError(f"data root {root}: there is no such folder")
    folders = [folder / source.name for folder in ([Path(root)] if root is not None else []) + [cache_dir()]]
    paths = {name: _locate(source, name, folders, download_missing) for name in source.md5}
    train, test = _part(source, paths, TRAIN_IMAGES, TRAIN_LABELS), _part(source, paths, TEST_IMAGES, TEST_LABELS)
    return ImageData(source.name, *train, *test, source.classes)


def _locate(source: IdxSource, name: str, folders: list[Path], download_missing: bool) -> Path:
    for folder in folders:
        for candidate in (folder / name, folder / name.removesuffix(".gz")):
            if candidate.is_file():
                return candidate
    cure = f"--data-root or SPARSENN_DATA names the folder that holds {source.name}/{name}"
    if not download_missing:
        looked = " or ".join(str(folder) for folder in folders)
        raise DataError(f"{source.name}: {name} is not in {looked}; {cure}")
    target = folders[-1] / name
    try:
        download([f"{address}/{name}" for address in source.addresses], target, source.md5[name])
    except DataError as error:
        raise DataError(f"{source.name}: {error}; {cure}") from error
    return target


def _part(source: IdxSource, paths: dict[str, Path], images: str, labels: str) -> tuple[Tensor, Tensor]:
    pixels = _read(source, paths, images, dimensions=3)
    marks = _read(source, paths, labels, dimensions=1)
    if len(pixels) != len(marks):
        raise DataError(
            f"{paths[labels]}: count check failed: {len(marks)} labels for the {len(pixels)} images of {paths[images]}"
        )
    if marks.size and marks.max() >= len(source.classes):
        raise DataError(
            f"{paths[labels]}: label range check failed: the largest label is {marks.max()}; "
            f"{source.name} has 0 to {len(source.classes) - 1}"
        )
    scaled = torch.from_numpy(pixels.astype(np.float32)).div_(255).unsqueeze_(1)
    return scaled, torch.from_numpy(marks.astype(np.int64))


def _read(source: IdxSource, paths: dict[str, Path], name: str, dimensions: int) -> np.ndarray:
    path = paths[name]
    return read_idx(path, dimensions=dimensions, md5=source.md5[name] if path.suffix == ".gz" else None)
