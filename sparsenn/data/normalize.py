"""From stored bytes to the numbers that a network takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def normalized(train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
    r"""Training and test images as float32, each channel with the training set's mean 0 and standard deviation 1.

    .. math:: x = \frac{b / 255 - \mu_c}{\sigma_c}

    μ and σ are taken over all pixels of a channel of the training images, in float64. A constant channel becomes 0.

    Shape:
        Arrays of bytes (N, C, S, S) and (M, C, S, S), both with at least one image; tensors of the same shapes.

    Example:
        >>> import numpy as np
        >>> from sparsenn.data.normalize import normalized
        >>> train = np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1)
        >>> [x.flatten().tolist() for x in normalized(train, train[1:])]
        [[-1.0, 1.0], [1.0]]
    """
    channels = range(train.shape[1])
    counts = np.stack([np.bincount(train[:, c].reshape(-1), minlength=256) for c in channels]).astype(np.float64)
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(1)
    deviation = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1))
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    table = torch.from_numpy((levels - mean[:, None]) * scale[:, None]).float()
    return _looked_up(train, table), _looked_up(test, table)


def _looked_up(images: np.ndarray, table: Tensor) -> Tensor:
    """Each byte's number, from a table with a row for each channel."""
    found = torch.empty(images.shape)
    for c in range(images.shape[1]):
        for start in range(0, len(images), 1000):
            part = torch.from_numpy(images[start : start + 1000, c].astype(np.int64))
            found[start : start + 1000, c] = table[c][part]
    return found
