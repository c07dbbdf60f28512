"""Data sets by the names that the command line uses."""

from __future__ import annotations

import os
from pathlib import Path

from sparsenn.data.digits import load_digits
from sparsenn.data.images import ImageData
from sparsenn.data.mnist import FASHION_MNIST, MNIST, load_idx

_IDX = {source.name: source for source in (MNIST, FASHION_MNIST)}


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows.

    Example:
        >>> import sparsenn
        >>> sparsenn.data.names()
        ('digits', 'mnist', 'fashion-mnist')
    """
    return ("digits", *_IDX)


def load(name: str, root: str | Path | None = None, *, download: bool = False) -> ImageData:
    """Load a data set by its name, pixels scaled to [0, 1] and nothing else.

    Args:
        name: one of :func:`names`. ``digits`` comes with scikit-learn; ``mnist`` and ``fashion-mnist`` are read from their
            official idx files.
        root: the folder that holds ``mnist/`` or ``fashion-mnist/``; None for the environment variable ``SPARSENN_DATA``.
            Downloaded files lie in ``~/.cache/sparsenn``, where files that ``root`` lacks are looked for as well.
        download: fetch what is missing from the official addresses, with checksum.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
        DataError: if a file is missing or damaged; the message names the file and the check that failed.
        MissingExtraError: if ``digits`` is asked for and scikit-learn is not installed.

    Example:
        >>> import sparsenn
        >>> data = sparsenn.data.load("digits")
        >>> data.test_images.shape, data.num_classes
        (torch.Size([355, 1, 8, 8]), 10)
    """
    if name == "digits":
        return load_digits()
    if name not in _IDX:
        raise ValueError(f"dataset: unknown name {name!r}; known are {', '.join(names())}")
    return load_idx(_IDX[name], root or os.environ.get("SPARSENN_DATA") or None, download_missing=download)
