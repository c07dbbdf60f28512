"""Tiny ImageNet from its official zip file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsenn.data.archives import ArchiveSource, Files, locate, opened
from sparsenn.data.errors import DataError, require_extra
from sparsenn.data.images import ImageData
from sparsenn.data.normalize import normalized

_SIDE = 64
_SYNSET = re.compile(r"n\d{8}")

TINY_IMAGENET = ArchiveSource(
    "tiny-imagenet",
    "tiny-imagenet-200.zip",
    "tiny-imagenet-200",
    "90528d7ca1a48142e341f4ef8d21d0de",
    ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
)


def load_tiny_imagenet(
    source: ArchiveSource = TINY_IMAGENET, root: str | Path | None = None, *, download_missing: bool = False
) -> ImageData:
    """Load Tiny ImageNet, each channel normalized by the training set's mean and standard deviation.

    200 classes of 500 training images; the test set is the official validation set, 50 images a class, since the labels of
    the official test set are not published. Grey images get three equal channels. The zip file is looked for in
    ``<root>/tiny-imagenet/``, then in the download cache, packed (then its checksum must be the official one) or as the folder
    that it unpacks to. In memory the images take 5 GB; decoding them takes about a minute.

    Args:
        source: which archive.
        root: the folder that holds ``tiny-imagenet/``; None for the cache alone. It is only read.
        download_missing: fetch the archive into the cache if it is not there.

    Raises:
        DataError: if a file is missing or damaged; the message names it, the check that failed, and the cure.
        MissingExtraError: if Pillow, which decodes JPEG, is not installed.

    Source:
        Stanford's CS231n course, 2015. Normalized as in Deep Weight Factorization (arXiv 2502.02496), Appendix G.2.
    """
    pillow = require_extra("PIL.Image", "decoding Tiny ImageNet's JPEG files")
    path = locate(source, root, download_missing)
    with opened(source, path) as files:
        synsets = _lines(files, "wnids.txt")
        index = {synset: i for i, synset in enumerate(synsets)}
        if not synsets or len(index) != len(synsets) or not all(map(_SYNSET.fullmatch, synsets)):
            raise DataError(f"{path}: wnids.txt does not name synsets, each once and one a line; fetch the file again")
        words = dict(line.split("\t", 1) for line in _lines(files, "words.txt") if "\t" in line)
        train, train_labels = _decoded(pillow, files, path, list(_training_files(files, index, path)))
        test, test_labels = _decoded(pillow, files, path, list(_validation_files(files, index, path)))
    classes = tuple(words.get(synset, synset) for synset in synsets)
    train_images, test_images = normalized(train, test)
    return ImageData(source.name, train_images, train_labels, test_images, test_labels, classes)


def _lines(files: Files, name: str) -> list[str]:
    return [line.rstrip("\r") for line in files.read(name).decode("utf-8", "replace").split("\n") if line.strip()]


def _training_files(files: Files, index: dict[str, int], path: Path) -> Iterator[tuple[str, int]]:
    """The images of each class, as the list of its bounding boxes names them."""
    for synset, label in index.items():
        listing = f"train/{synset}/{synset}_boxes.txt"
        for line in _lines(files, listing):
            yield f"train/{synset}/images/{_file_name(line, listing, path)}", label


def _validation_files(files: Files, index: dict[str, int], path: Path) -> Iterator[tuple[str, int]]:
    for line in _lines(files, "val/val_annotations.txt"):
        name, synset = _file_name(line, "val/val_annotations.txt", path), line.split("\t")[1]
        if synset not in index:
            raise DataError(f"{path}: val/val_annotations.txt gives {name} the class {synset!r}, which wnids.txt does not name")
        yield f"val/images/{name}", index[synset]


def _file_name(line: str, listing: str, path: Path) -> str:
    name, *rest = line.split("\t")
    if not rest or not re.fullmatch(r"\w+\.JPEG", name):
        raise DataError(f"{path}: {listing} has the line {line!r}; it takes a name ….JPEG and more, with tabs between them")
    return name


def _decoded(pillow: Any, files: Files, path: Path, named: list[tuple[str, int]]) -> tuple[np.ndarray, torch.Tensor]:
    if not named:
        raise DataError(f"{path}: it lists no images; fetch the file again")
    images = np.empty((len(named), 3, _SIDE, _SIDE), dtype=np.uint8)
    for image, (name, _) in zip(images, named, strict=True):
        content = files.read(name)
        try:
            with pillow.open(io.BytesIO(content), formats=("JPEG",)) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path}: {name} cannot be decoded: {error}; fetch the file again") from error
        if pixels.shape != (_SIDE, _SIDE, 3):
            raise DataError(f"{path}: {name} has {pixels.shape[1]} x {pixels.shape[0]} pixels; it takes {_SIDE} x {_SIDE}")
        image[:] = pixels.transpose(2, 0, 1)
    return images, torch.tensor([label for _, label in named], dtype=torch.int64)
