"""Soft committees: the teacher and the students of the spectral student-teacher experiments."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from sparsenn.models.lenet import check_sizes


def soft_committee(in_features: int = 10, hidden: Sequence[int] = (20, 20), outputs: int = 1) -> nn.Sequential:
    r"""A fully connected ReLU net without biases, whose last layer is a plain sum where it has one output.

    .. math:: T(x) = \sum_i \rho\big(w^{(2)} \rho(w^{(1)} x)\big)_i

    With one output the last layer's weights are 1 and frozen, as in the paper's teacher and in its students; with more, for
    classes, they are trained like the others. All weights start by Glorot's uniform draw. The student :math:`S_\lambda` with
    the same links is ``sparsenn.spectralize(student, include="0")``.

    Args:
        in_features: Size of the input.
        hidden: Widths of the hidden layers, at least one.
        outputs: Size of the output.

    Shape:
        Input (\*, in_features), output (\*, outputs).

    Raises:
        ValueError: for a size below 1, or no hidden layer.

    Source:
        Giambagli et al. 2023, Section 3: a teacher of widths 10-20-20-1, students 10-h-20-1. That the students' last layer is
        frozen as well is what the public code does.

    Example:
        >>> import torch, sparsenn
        >>> teacher = sparsenn.models.soft_committee(10, (20, 20))
        >>> teacher(torch.randn(5, 10)).shape, [p.requires_grad for p in teacher.parameters()]
        (torch.Size([5, 1]), [True, True, False])
    """
    if not hidden:
        raise ValueError("soft_committee: hidden is empty; it takes the width of one hidden layer or more")
    widths = [in_features, *hidden, outputs]
    check_sizes("soft_committee", in_features=in_features, hidden=min(hidden), outputs=outputs)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), nn.ReLU()]
        nn.init.xavier_uniform_(layers[-2].weight)  # type: ignore[arg-type]
    net = nn.Sequential(*layers[:-1])
    if outputs == 1:
        nn.init.ones_(net[-1].weight).requires_grad_(False)  # type: ignore[arg-type]
    return net


def feature_head(in_features: int = 2048, hidden: Sequence[int] = (512, 512), outputs: int = 100) -> nn.Sequential:
    """Linear layers with batch normalization and ReLU between them: what is trained on a frozen backbone's features.

    Args:
        in_features: Size of the features; 2048 for a ResNet-50.
        hidden: Widths of the hidden layers, at least one; two make the three layers of the paper.
        outputs: Number of classes.

    Shape:
        Input (N, in_features), output (N, outputs), the logits.

    Raises:
        ValueError: for a size below 1, or no hidden layer.

    Source:
        Giambagli et al. 2023, Figure 3 e: CIFAR-100 features of a pretrained ResNet-50, three spectral layers and batch
        normalization. Their widths are not in the text; ours are a choice.

    Example:
        >>> import sparsenn
        >>> head = sparsenn.spectralize(sparsenn.models.feature_head(2048, (200, 512)))
        >>> [type(layer).__name__ for layer in head][:3]
        ['SpectralLinear', 'BatchNorm1d', 'ReLU']
    """
    if not hidden:
        raise ValueError("feature_head: hidden is empty; it takes the width of one hidden layer or more")
    check_sizes("feature_head", in_features=in_features, hidden=min(hidden), outputs=outputs)
    layers: list[nn.Module] = []
    for before, after in pairwise([in_features, *hidden]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
        nn.init.xavier_uniform_(layers[-3].weight)  # type: ignore[arg-type]
    layers.append(nn.Linear(hidden[-1], outputs))
    nn.init.xavier_uniform_(layers[-1].weight)  # type: ignore[arg-type]
    return nn.Sequential(*layers)
