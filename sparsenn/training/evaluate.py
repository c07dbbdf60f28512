"""The figures of a net at one moment."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsenn.ops.reference import accumulator

_CHUNK = 2000  # images at once: 1 GB of signals in a layer of a wide ResNet, where a test set of 10,000 is 5 GB


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy; half types are widened first, since a sum of exponentials needs the digits."""
    wide = accumulator(logits)
    return functional.cross_entropy(wide, labels)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss and share of right answers in eval mode; the mode before is restored.

    Shape:
        images (N, K, S, S), labels (N,).
    """
    was_training = model.training
    model.eval()
    loss, right = 0.0, 0
    for start in range(0, len(labels), _CHUNK):
        target = labels[start : start + _CHUNK]
        logits = model(images[start : start + _CHUNK])
        loss += float(loss_of(logits, target)) * len(target)
        right += int((logits.argmax(dim=1) == target).sum())
    model.train(was_training)
    return loss / len(labels), right / len(labels)
