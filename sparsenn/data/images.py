"""A labelled set of images that fits in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsenn.data.errors import DataError


@dataclass(frozen=True)
class ImageData:
    """Images and labels for training and for testing.

    Attributes:
        name: the data set's name.
        train_images: (N, channels, S, S), floating point, in [0, 1] or normalized by channel.
        train_labels: (N,), int64 in [0, len(classes)).
        test_images: (M, channels, S, S), floating point, as the training images.
        test_labels: (M,), int64 in [0, len(classes)).
        classes: what each label means.

    Raises:
        DataError: if shapes, dtypes or labels contradict the above.

    Example:
        >>> import torch
        >>> from sparsenn.data import ImageData
        >>> x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 1, 0])
        >>> data = ImageData("noise", x, y, x[:2], y[:2], ("left", "right"))
        >>> data.num_classes, data.in_channels, data.image_size
        (2, 1, 8)
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            self._check_part(part, getattr(self, f"{part}_images"), getattr(self, f"{part}_labels"))
        shapes = [tuple(images.shape[1:]) for images in (self.train_images, self.test_images)]
        if shapes[0] != shapes[1]:
            raise DataError(f"{self.name}, test: images are {shapes[1]}, those to train on {shapes[0]}; they must be alike")

    def _check_part(self, part: str, images: Tensor, labels: Tensor) -> None:
        where = f"{self.name}, {part}"
        for kind, value in (("images", images), ("labels", labels)):
            if not isinstance(value, Tensor):
                raise DataError(f"{where}: {kind} are of type {type(value).__name__}; they must be a tensor")
        if images.dim() != 4 or images.shape[2] != images.shape[3] or not images.is_floating_point():
            raise DataError(
                f"{where}: images are {images.dtype} {tuple(images.shape)}; they must be floating point (N, C, S, S)"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise DataError(
                f"{where}: labels are {labels.dtype} {tuple(labels.shape)}; {len(images)} images need int64 ({len(images)},)"
            )
        if len(labels) == 0:
            raise DataError(f"{where}: there are no images")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            needed = f"{self.num_classes} classes need 0 to {self.num_classes - 1}"
            raise DataError(f"{where}: label range: labels run from {low} to {high}; {needed}")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image."""
        return self.train_images.shape[2]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ImageData:
        """The same data on ``device``, the images in ``dtype``."""
        return replace(
            self,
            train_images=self.train_images.to(device, dtype),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device, dtype),
            test_labels=self.test_labels.to(device),
        )


def shuffle_pixels(data: ImageData, seed: int = 0) -> ImageData:
    """The same images with their pixels in another order, one and the same for all of them.

    What is near to what is lost: a fully connected net sees no difference, a convolution has nothing left to use.

    Args:
        data: The images.
        seed: Of the order.

    Source:
        Giambagli et al. 2023, Figure 3 a and b.

    Example:
        >>> import sparsenn, torch
        >>> digits = sparsenn.data.load("digits")
        >>> shuffled = sparsenn.data.shuffle_pixels(digits)
        >>> shuffled.name, torch.equal(shuffled.train_images.sum((1, 2, 3)).round(), digits.train_images.sum((1, 2, 3)).round())
        ('shuffled-digits', True)
    """
    order = torch.randperm(data.train_images[0].numel(), generator=torch.Generator().manual_seed(seed))

    def shuffled(images: Tensor) -> Tensor:
        return images.flatten(1)[:, order.to(images.device)].reshape(images.shape)

    return replace(
        data,
        name=f"shuffled-{data.name}",
        train_images=shuffled(data.train_images),
        test_images=shuffled(data.test_images),
    )
