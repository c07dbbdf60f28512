"""Data sets by the names that the command line uses."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sparsenn.data.cifar import CIFAR_10, CIFAR_100, load_cifar
from sparsenn.data.digits import load_digits
from sparsenn.data.images import ImageData
from sparsenn.data.mnist import FASHION_MNIST, KUZUSHIJI_MNIST, MNIST, load_idx
from sparsenn.data.tiny_imagenet import TINY_IMAGENET, load_tiny_imagenet

_LOADERS: dict[str, Callable[..., ImageData]] = {
    **{source.name: partial(load_idx, source) for source in (MNIST, FASHION_MNIST, KUZUSHIJI_MNIST)},
    **{source.name: partial(load_cifar, source) for source in (CIFAR_10, CIFAR_100)},
    TINY_IMAGENET.name: partial(load_tiny_imagenet, TINY_IMAGENET),
}


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows.

    Example:
        >>> import sparsenn
        >>> sparsenn.data.names()
        ('digits', 'mnist', 'fashion-mnist', 'kuzushiji-mnist', 'cifar-10', 'cifar-100', 'tiny-imagenet')
    """
    return ("digits", *_LOADERS)


def load(name: str, root: str | Path | None = None, *, download: bool = False) -> ImageData:
    """Load a data set by its name: colour images normalized by channel, grey ones with pixels in [0, 1] and nothing else.

    Args:
        name: one of :func:`names`. ``digits`` comes with scikit-learn; ``mnist``, ``fashion-mnist`` and ``kuzushiji-mnist`` are
            read from their official idx files, ``cifar-10`` and ``cifar-100`` from their binary archives, ``tiny-imagenet``
            from its zip file.
        root: the folder that holds one folder a data set, of its name; None for the environment variable ``SPARSENN_DATA``.
            Downloaded files lie in ``~/.cache/sparsenn``, where files that ``root`` lacks are looked for as well.
        download: fetch what is missing from the official addresses, with checksum.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
        DataError: if a file is missing or damaged; the message names the file and the check that failed.
        MissingExtraError: if ``digits`` is asked for and scikit-learn is not installed, or ``tiny-imagenet`` and Pillow is not.

    Example:
        >>> import sparsenn
        >>> data = sparsenn.data.load("digits")
        >>> data.test_images.shape, data.num_classes
        (torch.Size([355, 1, 8, 8]), 10)
    """
    if name == "digits":
        return load_digits()
    if name not in _LOADERS:
        raise ValueError(f"dataset: unknown name {name!r}; known are {', '.join(names())}")
    return _LOADERS[name](root=root or os.environ.get("SPARSENN_DATA") or None, download_missing=download)
