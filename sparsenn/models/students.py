"""The students and teachers of the L1 paper: networks of twelve inputs and one output, without biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from sparsenn.nn.patch_conv import PatchConv1d

INPUTS = 12
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}
_GAINS = {"sigmoid": 1.0, "tanh": 5 / 3}  # of Xavier's start; the others take Kaiming's
_Layers = Sequence[PatchConv1d | nn.Linear]


def baseline_cnn(activation: str = "relu", *, output_activation: bool = True) -> nn.Sequential:
    """The baseline: one channel, patches of 3, of 2 and of 2, seven weights.

    Args:
        activation: ``"relu"``, ``"sigmoid"``, ``"tanh"`` or ``"gelu"``, after every layer.
        output_activation: whether the last layer has it too, as in the paper.

    Shape:
        Input (N, 12), output (N, 1).

    Raises:
        ValueError: for an unknown activation.

    Source:
        Schulz and Poggio, L1-regularization: The path to sparsity, Section 3.2 and Figure 1.

    Example:
        >>> from sparsenn.models.students import baseline_cnn
        >>> [tuple(p.shape) for p in baseline_cnn("tanh").parameters()]
        [(1, 1, 1, 3), (1, 1, 1, 2), (1, 1, 1, 2)]
    """
    return _cnn("baseline_cnn", activation, output_activation, channels=1)


def split_filter_cnn(activation: str = "relu", *, output_activation: bool = True) -> nn.Sequential:
    """As :func:`baseline_cnn`, with two filters that alternate over the patches of the first two layers: twelve weights.

    Args:
        activation: ``"relu"``, ``"sigmoid"``, ``"tanh"`` or ``"gelu"``, after every layer.
        output_activation: whether the last layer has it too, as in the paper.

    Shape:
        Input (N, 12), output (N, 1).

    Raises:
        ValueError: for an unknown activation.

    Source:
        Schulz and Poggio, L1-regularization: The path to sparsity, Section 3.2 and Figure 1.

    Example:
        >>> from sparsenn.models.students import split_filter_cnn
        >>> [tuple(p.shape) for p in split_filter_cnn().parameters()]
        [(2, 1, 1, 3), (2, 1, 1, 2), (1, 1, 1, 2)]
    """
    return _cnn("split_filter_cnn", activation, output_activation, channels=1, filters=2)


def multi_channel_cnn(activation: str = "relu", *, output_activation: bool = True) -> nn.Sequential:
    """As :func:`baseline_cnn` with four channels after the first and the second layer: 52 weights.

    Args:
        activation: ``"relu"``, ``"sigmoid"``, ``"tanh"`` or ``"gelu"``, after every layer.
        output_activation: whether the last layer has it too, as in the paper.

    Shape:
        Input (N, 12), output (N, 1).

    Raises:
        ValueError: for an unknown activation.

    Source:
        Schulz and Poggio, L1-regularization: The path to sparsity, Section 3.2 and Figure 1.

    Example:
        >>> from sparsenn.models.students import multi_channel_cnn
        >>> [tuple(p.shape) for p in multi_channel_cnn().parameters()]
        [(1, 4, 1, 3), (1, 4, 4, 2), (1, 1, 4, 2)]
    """
    return _cnn("multi_channel_cnn", activation, output_activation, channels=4)


def fcn(widths: Sequence[int], activation: str = "relu", *, output_activation: bool = True) -> nn.Sequential:
    """A fully connected network from twelve inputs through hidden layers of ``widths`` to one output.

    Args:
        widths: the neurons of each hidden layer, each 1 or more; empty for a single layer.
        activation: ``"relu"``, ``"sigmoid"``, ``"tanh"`` or ``"gelu"``, after every layer.
        output_activation: whether the last layer has it too, as in the paper.

    Shape:
        Input (N, 12), output (N, 1).

    Raises:
        ValueError: for an unknown activation or a width below 1.

    Source:
        Schulz and Poggio, L1-regularization: The path to sparsity, Section 3.2 and Figure 2 (widths 256, 32 and 128, 128).

    Example:
        >>> from sparsenn.models.students import fcn
        >>> [tuple(p.shape) for p in fcn((256, 32), "sigmoid").parameters()]
        [(256, 12), (32, 256), (1, 32)]
    """
    for width in widths:
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ValueError(f"fcn: widths is {list(widths)!r}; it takes ints, each 1 or more")
    sizes = [INPUTS, *widths, 1]
    layers = [nn.Linear(fan_in, fan_out, bias=False) for fan_in, fan_out in pairwise(sizes)]
    return nn.Sequential(*_activated("fcn", layers, activation, output_activation))


def _cnn(name: str, activation: str, output_activation: bool, *, channels: int, filters: int = 1) -> nn.Sequential:
    layers = (
        PatchConv1d(1, channels, 3, bias=False, filters=filters),
        PatchConv1d(channels, channels, 2, bias=False, filters=filters),
        PatchConv1d(channels, 1, 2, bias=False),
    )
    body = _activated(name, layers, activation, output_activation)
    return nn.Sequential(nn.Unflatten(1, (1, INPUTS)), *body, nn.Flatten(1))


def _activated(name: str, layers: _Layers, activation: str, output_activation: bool) -> list[nn.Module]:
    if activation not in ACTIVATIONS:
        raise ValueError(f"{name}: unknown activation {activation!r}; known are {', '.join(ACTIVATIONS)}")
    modules = [module for layer in layers for module in (layer, ACTIVATIONS[activation]())]
    return modules if output_activation else modules[:-1]


_STUDENTS: dict[str, Callable[..., nn.Sequential]] = {
    "baselineCNN": baseline_cnn,
    "splitFilterCNN": split_filter_cnn,
    "multiChannelCNN": multi_channel_cnn,
    "fcn_256_32": lambda *args, **options: fcn((256, 32), *args, **options),
    "fcn_128_128": lambda *args, **options: fcn((128, 128), *args, **options),
    "fcn_1024_128": lambda *args, **options: fcn((1024, 128), *args, **options),
}
STUDENTS = tuple(_STUDENTS)


def build_student(
    name: str, activation: str, *, scale: float = 1.0, seed: int | None = None, output_activation: bool = True
) -> nn.Sequential:
    """A network by the name that the paper's code gives it, with its start drawn by :func:`start_`.

    Args:
        name: one of ``STUDENTS``: baselineCNN, splitFilterCNN, multiChannelCNN, fcn_256_32, fcn_128_128, fcn_1024_128.
        activation: ``"relu"``, ``"sigmoid"``, ``"tanh"`` or ``"gelu"``, after every layer.
        scale: multiplies the start, but for GELU's; 0 leaves PyTorch's own (see :func:`start_`).
        seed: of the start; None for PyTorch's global generator.
        output_activation: whether the last layer has the activation too, as in the paper.

    Raises:
        ValueError: for an unknown name or activation, or a scale that is negative or not finite.

    Example:
        >>> import torch
        >>> from sparsenn.models.students import build_student
        >>> first, second = (build_student("fcn_256_32", "relu", scale=0.2, seed=5) for _ in range(2))
        >>> torch.equal(first[0].weight, second[0].weight)
        True
    """
    if name not in _STUDENTS:
        raise ValueError(f"student: unknown name {name!r}; known are {', '.join(STUDENTS)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: unknown name {activation!r}; known are {', '.join(ACTIVATIONS)}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return start_(_STUDENTS[name](activation, output_activation=output_activation), activation, scale)


@torch.no_grad()
def start_(net: nn.Sequential, activation: str, scale: float = 1.0) -> nn.Sequential:
    r"""Draw every weight anew, in place, from PyTorch's global generator, as the paper does.

    .. math::
        \text{ReLU:} \quad w \sim s \cdot N(0, 2 / \mathrm{fan\_out}), \qquad
        \text{GELU:} \quad w \sim N(0, 2 / \mathrm{fan\_in}), \qquad
        \text{sigmoid, tanh:} \quad w \sim s \cdot U\bigl[\pm g \sqrt{6 / (\mathrm{fan\_in} + \mathrm{fan\_out})}\bigr]

    with g = 1 for the sigmoid and 5/3 for tanh. Of a convolution fan_in is C·k and fan_out O·k, whatever its number of filters.
    The scale has no part in GELU's start, as in the public code.

    Args:
        net: layers of ``nn.Linear`` and ``PatchConv1d``; other modules and biases are left alone.
        activation: which of the three, by name.
        scale: s, finite and not negative; at 0 nothing is drawn and the weights stay as they are.

    Returns:
        ``net``.

    Raises:
        ValueError: for an unknown activation, or a scale that is negative or not finite.

    Source:
        Schulz and Poggio, L1-regularization: The path to sparsity, Section 3.1; fan_out, the gains, GELU's start and the
        meaning of 0 from its public code.

    Example:
        >>> import torch
        >>> from sparsenn.models.students import fcn, start_
        >>> net = start_(fcn((20_000,)), "relu", scale=0.2)
        >>> round(float(net[0].weight.var()) * 20_000 / 0.04, 1)
        2.0
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"start_: unknown activation {activation!r}; known are {', '.join(ACTIVATIONS)}")
    if not 0 <= scale < float("inf"):
        raise ValueError(f"start_: scale is {scale}; it takes a finite number, 0 or more")
    if scale == 0:
        return net
    for layer in net:
        if not isinstance(layer, (PatchConv1d, nn.Linear)):
            continue
        for weight in layer.weight if isinstance(layer, PatchConv1d) else (layer.weight,):  # one filter at a time
            if activation == "gelu":
                nn.init.kaiming_normal_(weight)
                continue
            if activation in _GAINS:
                nn.init.xavier_uniform_(weight, gain=_GAINS[activation])
            else:
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
            weight.mul_(scale)
    return net
