"""The 1797 handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import numpy as np
import torch

from sparsenn.data.errors import require_extra
from sparsenn.data.images import ImageData

FOLDS = 5


def load_digits(test_fold: int = FOLDS - 1) -> ImageData:
    """The digits: 8 × 8 grey images, pixels scaled from 0..16 to [0, 1], in a fixed stratified split.

    The k-th image of each class belongs to fold k mod 5, so every fold has the classes in the same shares on every machine and
    with every version of scikit-learn. One fold is the test set (355 images of 1797 for the default), the other four train.

    Args:
        test_fold: which fold tests, 0..4.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
        ValueError: for a fold outside 0..4.

    Example:
        >>> from sparsenn.data import load_digits
        >>> load_digits().train_images.shape
        torch.Size([1442, 1, 8, 8])
    """
    if test_fold not in range(FOLDS):
        raise ValueError(f"load_digits: test_fold is {test_fold}; it takes 0 to {FOLDS - 1}")
    bunch = require_extra("sklearn.datasets", "the digits data").load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16).unsqueeze(1)
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    rank_in_class = torch.empty_like(labels)
    for label in range(10):
        members = labels == label
        rank_in_class[members] = torch.arange(int(members.sum()))
    test = rank_in_class % FOLDS == test_fold
    return ImageData("digits", images[~test], labels[~test], images[test], labels[test], tuple("0123456789"))
