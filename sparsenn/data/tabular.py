"""Inputs and targets for regression, and the synthetic ones of a teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsenn.data.errors import DataError
from sparsenn.data.images import ImageData


@dataclass(frozen=True)
class TabularData:
    """Inputs and targets for training and for testing.

    Attributes:
        name: the data set's name.
        train_inputs: (N, D), floating point.
        train_targets: (N, K), floating point, or (N,), int64 classes.
        test_inputs: (M, D), floating point.
        test_targets: (M, K) or (M,), as in training.

    Raises:
        DataError: if shapes or dtypes contradict the above.

    Example:
        >>> import torch
        >>> from sparsenn.data import TabularData
        >>> x, y = torch.randn(4, 3), torch.randn(4, 1)
        >>> TabularData("noise", x, y, x[:2], y[:2]).in_features
        3
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            inputs, targets = getattr(self, f"{part}_inputs"), getattr(self, f"{part}_targets")
            where = f"{self.name}, {part}"
            if inputs.dim() != 2 or not inputs.is_floating_point() or len(inputs) == 0:
                raise DataError(f"{where}: inputs are {inputs.dtype} {tuple(inputs.shape)}; they must be floating point (N, D)")
            fits = targets.dim() == 2 if targets.is_floating_point() else targets.dtype == torch.int64 and targets.dim() == 1
            if not fits or len(targets) != len(inputs):
                raise DataError(
                    f"{where}: targets are {targets.dtype} {tuple(targets.shape)}; {len(inputs)} inputs need floating point "
                    f"({len(inputs)}, K) or int64 ({len(inputs)},)"
                )
        sizes = {(p.shape[1], q.shape[1:], q.dtype) for p, q in ((self.train_inputs, self.train_targets), self._test)}
        if len(sizes) > 1:
            raise DataError(f"{self.name}: training and test samples have other sizes or dtypes: {sizes}")

    @classmethod
    def of_images(cls, images: ImageData, train: int | None = None) -> TabularData:
        """Images as rows of pixels; the first ``train`` of those for training, None for all."""
        inputs, labels = images.train_images[:train].flatten(1), images.train_labels[:train]
        return cls(images.name, inputs, labels, images.test_images.flatten(1), images.test_labels)

    @property
    def _test(self) -> tuple[Tensor, Tensor]:
        return self.test_inputs, self.test_targets

    @property
    def in_features(self) -> int:
        """Size of an input."""
        return self.train_inputs.shape[1]


@torch.no_grad()
def from_teacher(teacher: nn.Module, in_features: int, *, train: int = 13_000, test: int = 1_000, seed: int = 0) -> TabularData:
    r"""Samples of a function that a teacher net knows: standard normal inputs and its outputs.

    .. math:: x \sim N(0, I), \qquad y = T(x)

    Args:
        teacher: the net T, (N, in_features) to (N, K); in eval mode where that matters.
        in_features: size of an input.
        train: number of training samples.
        test: number of test samples, drawn after them.
        seed: of the inputs.

    Raises:
        ValueError: for a size below 1.

    Source:
        Giambagli et al. 2023, Section 3.

    Example:
        >>> import sparsenn
        >>> data = sparsenn.data.from_teacher(sparsenn.models.soft_committee(10, (20, 20)), 10)
        >>> data.train_inputs.shape, data.test_targets.shape
        (torch.Size([13000, 10]), torch.Size([1000, 1]))
    """
    for name, value in (("in_features", in_features), ("train", train), ("test", test)):
        if value < 1:
            raise ValueError(f"from_teacher: {name} is {value}; it takes 1 or more")
    inputs = torch.randn(train + test, in_features, generator=torch.Generator().manual_seed(seed))
    targets = teacher(inputs)
    return TabularData("teacher", inputs[:train], targets[:train], inputs[train:], targets[train:])
