"""CIFAR-100 features of a pretrained ResNet-50: ``python -m sparsenn.papers.spectral.resnet50 FILE [CIFAR-FOLDER]``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsenn.data import DataError
from sparsenn.data.download import cache_dir

_BATCH = 128


@torch.no_grad()
def extract(path: str | Path, root: str | Path | None = None, *, device: str = "cpu") -> Path:
    """Send all images of CIFAR-100 through the network without its last layer; write the file that ``fig3e`` reads.

    The images are scaled as the pretrained weights want it. 60000 images through a ResNet-50 take hours on a CPU.

    Args:
        path: the file, ``.safetensors``.
        root: where torchvision keeps CIFAR-100, downloaded if it is not there; None for ``~/.cache/sparsenn``.
        device: where the network runs.

    Returns:
        The path.

    Raises:
        DataError: if torchvision is not installed.
    """
    try:
        datasets, models = (importlib.import_module(f"torchvision.{name}") for name in ("datasets", "models"))
    except ImportError as error:
        raise DataError(
            "CIFAR-100 features need torchvision, of the release that goes with torch: pip install torchvision"
        ) from error
    weights = models.ResNet50_Weights.DEFAULT
    network = models.resnet50(weights=weights)
    network.fc = nn.Identity()
    network.eval().to(device)
    arrays: dict[str, Tensor] = {}
    for part in ("train", "test"):
        images = datasets.CIFAR100(
            str(root or cache_dir()), train=part == "train", transform=weights.transforms(), download=True
        )
        features, labels = [], []
        for inputs, classes in torch.utils.data.DataLoader(images, batch_size=_BATCH):
            features.append(network(inputs.to(device)).cpu())
            labels.append(classes)
        arrays |= {f"{part}_features": torch.cat(features), f"{part}_labels": torch.cat(labels)}
    save_file(arrays, path)
    return Path(path)


def main(argv: list[str]) -> Any:
    """The command line of this module."""
    if len(argv) not in (1, 2):
        return "usage: python -m sparsenn.papers.spectral.resnet50 FILE [CIFAR-FOLDER]"
    print(f"The features are in {extract(*argv, device='cuda' if torch.cuda.is_available() else 'cpu')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
