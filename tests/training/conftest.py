import pytest
import torch

from sparsenn.data import ImageData


@pytest.fixture(scope="session")
def shapes() -> ImageData:
    """Three noisy patterns of 8 × 8, 90 to train and 30 to test: a net of a few epochs tells them apart."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(3, 1, 8, 8, generator=generator)
    labels = torch.arange(120) % 3
    images = (patterns[labels] + 0.3 * torch.rand(120, 1, 8, 8, generator=generator)) / 1.3
    return ImageData("shapes", images[:90], labels[:90], images[90:], labels[90:], ("a", "b", "c"))
