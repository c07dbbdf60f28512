"""The teachers of the L1 paper, with their published weights."""

from __future__ import annotations

import torch
from torch import nn

from sparsenn.models.students import ACTIVATIONS, build_student
from sparsenn.nn.patch_conv import PatchConv1d

_LAYER_1 = [2.59, -2.83, 0.87]
_LAYER_2 = [-1.38, 1.29]
_LAYER_3 = [0.86, -0.84]
# One entry a layer, nested as the layer's weight is: filter, output channel, input channel, position.
_WEIGHTS: dict[str, list[list]] = {
    "baselineCNN": [[[[_LAYER_1]]], [[[_LAYER_2]]], [[[_LAYER_3]]]],
    "splitFilterCNN": [[[[_LAYER_1]], [[[-1.22, 0.45, 0.88]]]], [[[_LAYER_2]], [[[0.35, -0.73]]]], [[[_LAYER_3]]]],
    "multiChannelCNN": [
        [[[[-0.78, -0.12, 0.70]], [[-1.16, 0.47, 0.05]], [[-0.73, 1.96, -1.01]], [[-0.32, 0.21, 0.63]]]],
        [
            [
                [[0.00, 0.04], [0.68, 0.34], [0.54, -0.22], [-0.14, -0.33]],
                [[-0.14, 1.59], [1.48, -0.52], [-1.26, 0.30], [-0.40, -1.09]],
                [[-0.71, 0.44], [-0.02, -0.14], [0.37, -0.70], [-0.83, -0.38]],
                [[0.89, -0.48], [-0.27, -0.81], [1.76, -0.41], [0.15, 0.49]],
            ]
        ],
        [[[[-0.54, 0.16], [-0.74, -0.46], [0.08, 0.18], [-0.22, 0.81]]]],
    ],
}
TEACHERS = tuple(_WEIGHTS)


@torch.no_grad()
def teacher(name: str, activation: str, *, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A teacher of the L1 paper: fixed weights, the same for every activation, and no gradients.

    Args:
        name: one of ``TEACHERS``: baselineCNN, splitFilterCNN, multiChannelCNN.
        activation: ``"relu"``, ``"sigmoid"``, ``"tanh"`` or ``"gelu"``, after every layer, the last one too.
        dtype: of the weights.

    Shape:
        Input (N, 12), output (N, 1).

    Raises:
        ValueError: for an unknown name or activation.

    Source:
        Schulz and Poggio, L1-regularization: The path to sparsity, Tables 2 and 11 for the first two; the third from
        the paper's public code.

    Example:
        >>> from sparsenn.models.teachers import teacher
        >>> [round(w, 2) for w in teacher("baselineCNN", "tanh")[1].weight.flatten().tolist()]
        [2.59, -2.83, 0.87]
    """
    if name not in _WEIGHTS:
        raise ValueError(f"teacher: unknown name {name!r}; known are {', '.join(TEACHERS)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"teacher: unknown activation {activation!r}; known are {', '.join(ACTIVATIONS)}")
    net = build_student(name, activation, seed=0).to(dtype).requires_grad_(False)
    layers = [layer for layer in net if isinstance(layer, PatchConv1d)]
    for layer, values in zip(layers, _WEIGHTS[name], strict=True):
        layer.weight.copy_(torch.tensor(values, dtype=dtype))
    return net
