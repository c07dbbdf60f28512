"""Whether a student found its teacher: distance of the weights, the connections that both have, how few are left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from sparsenn._extras import require_extra
from sparsenn.init import stream
from sparsenn.nn.patch_conv import PatchConv1d

_STARTS = 8
THRESHOLD = 1e-4  # below it the L1 paper takes a weight for zero
Layer = nn.Linear | PatchConv1d


def weighted_layers(net: nn.Module) -> list[Layer]:
    """The layers of a student or teacher that have weights, in the order of the modules."""
    return [module for module in net.modules() if isinstance(module, (nn.Linear, PatchConv1d))]


def nonzero_counts(net: nn.Module, threshold: float = THRESHOLD) -> tuple[int, ...]:
    """How many weights each ``nn.Linear`` and ``PatchConv1d`` of a network has with magnitude ``threshold`` or more.

    Args:
        net: the network.
        threshold: 0 counts what is not exactly 0.

    Example:
        >>> from sparsenn.metrics import nonzero_counts
        >>> from sparsenn.models import teacher
        >>> nonzero_counts(teacher("baselineCNN", "relu"))
        (3, 2, 2)
    """
    return tuple(int(_alive(layer.weight.detach(), threshold).sum()) for layer in weighted_layers(net))


def _alive(weight: Tensor, threshold: float) -> Tensor:
    return (weight.abs() >= threshold) & (weight != 0)


@torch.no_grad()
def teacher_distance(teacher: nn.Module, student: nn.Module, *, absolute: bool = False, threshold: float = THRESHOLD) -> float:
    r"""How far the student's weights are from the teacher's, layer by layer, whatever their order within a layer.

    .. math:: \sum_\ell \| t_\ell - s_{\ell, \pi_\ell} \|_2 + \| \text{unmatched weights of layer } \ell \|_2

    The weights of a layer are one list each; π matches the shorter list to different entries of the longer one with the least
    :math:`\sum_i |t_i - s_{\pi(i)}|`, and of several with the least of squares. Structure plays no part: a weight may be
    matched to any weight of its layer.

    Args:
        teacher: a network of L layers that are ``nn.Linear`` or ``PatchConv1d``.
        student: another one, with the same number of such layers.
        absolute: compare magnitudes, for odd activations, where signs of hidden units are free.
        threshold: the student's weights below it count as 0.

    Returns:
        The distance, 0 for the same weights.

    Raises:
        ValueError: if the numbers of layers differ.
        MissingExtraError: if scipy is not installed.

    Source:
        The measure of the public code of Schulz and Poggio, L1-regularization: The path to sparsity. There the two filters of a
        layer of splitFilterCNN are compared with the student's first two layers; here a layer is compared with a layer.
        Of the unmatched weights it counts the student's only; here the teacher's count too, where its layer has more.

    Example:
        >>> from sparsenn.metrics import teacher_distance
        >>> from sparsenn.models import teacher
        >>> one, two = teacher("baselineCNN", "relu"), teacher("baselineCNN", "tanh")
        >>> two[1].weight.neg_()[0, 0, 0, 0]
        tensor(-2.5900)
        >>> round(teacher_distance(one, two), 2), teacher_distance(one, two, absolute=True)
        (1.77, 0.0)
    """
    pairs = _layer_pairs("teacher_distance", teacher, student)
    match = require_extra("scipy.optimize", "the distance between teacher and student").linear_sum_assignment
    total = 0.0
    for taught, learnt in pairs:
        t, s = taught.weight.double().flatten(), learnt.weight.double().flatten()
        s = torch.where(_alive(s, threshold), s, 0.0)
        if absolute:
            t, s = t.abs(), s.abs()
        apart = (t[:, None] - s[None]).abs()
        cost = apart + 1e-9 * apart.square() / apart.max().clamp(min=1e-300)
        rows, columns = (torch.from_numpy(index) for index in match(cost.numpy()))
        matched = t[rows] - s[columns]
        rest = [t[_others(len(t), rows)], s[_others(len(s), columns)]]
        total += float(matched.norm() + torch.cat(rest).norm())
    return total


def _others(count: int, chosen: Tensor) -> Tensor:
    left = torch.ones(count, dtype=torch.bool)
    left[chosen] = False
    return left


def _layer_pairs(name: str, teacher: nn.Module, student: nn.Module) -> list[tuple[Layer, Layer]]:
    taught, learnt = weighted_layers(teacher), weighted_layers(student)
    if not taught or len(taught) != len(learnt):
        raise ValueError(f"{name}: the teacher has {len(taught)} layers, the student {len(learnt)}; both take the same number")
    return list(zip(taught, learnt, strict=True))


@torch.no_grad()
def unrolled(net: nn.Module, inputs: int = 12) -> list[Tensor]:
    """The weights of a network as one matrix a layer: what a fully connected network with the same function would have.

    Unit (o, p) of a convolution, its output channel o at position p, is row o · positions + p.

    Args:
        net: ``nn.Linear`` and ``PatchConv1d`` layers, each fed by the one before.
        inputs: how many numbers the first layer reads.

    Returns:
        Matrices of shape (outputs, inputs), float64.

    Raises:
        ValueError: if a layer does not fit what the one before it gives.

    Example:
        >>> from sparsenn.metrics.recovery import unrolled
        >>> from sparsenn.models import teacher
        >>> [tuple(m.shape) for m in unrolled(teacher("multiChannelCNN", "relu"))]
        [(16, 12), (8, 16), (1, 8)]
    """
    matrices = []
    for layer in weighted_layers(net):
        reads = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        if inputs % reads or (isinstance(layer, nn.Linear) and inputs != reads):
            raise ValueError(f"unrolled: {layer} is given {inputs} values; it takes {reads}")
        matrices.append(_matrix(layer, inputs))
        inputs = len(matrices[-1])
    return matrices


def _matrix(layer: Layer, inputs: int) -> Tensor:
    if isinstance(layer, nn.Linear):
        return layer.weight.detach().double()
    shape = (inputs, layer.in_channels, inputs // layer.in_channels)
    twin = PatchConv1d(layer.in_channels, layer.out_channels, layer.kernel_size, False, filters=layer.filters)
    twin = twin.double()
    twin.weight.copy_(layer.weight)
    return twin(torch.eye(inputs, dtype=torch.float64).view(shape)).flatten(1).t()


@dataclass(frozen=True)
class SupportRecovery:
    """Which of the teacher's connections a student has; made by :func:`support_recovery`.

    Attributes:
        hits: Connections that both have.
        found: Connections of the student.
        wanted: Connections of the teacher.
    """

    hits: int
    found: int
    wanted: int

    @property
    def precision(self) -> float:
        """Which part of the student's connections the teacher has too; 0 for a student without connections."""
        return self.hits / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Which part of the teacher's connections the student has too; 1 for a teacher without connections."""
        return self.hits / self.wanted if self.wanted else 1.0


def support_recovery(
    teacher: nn.Module, student: nn.Module, threshold: float = THRESHOLD, *, inputs: int = 12
) -> SupportRecovery:
    """Match the student's hidden units to the teacher's and count the connections that both have.

    Both networks are unrolled (:func:`unrolled`), so that convolutional and fully connected ones compare. A connection is a
    weight of magnitude ``threshold`` or more that lies on a path of such weights from an input to an output: what a shared
    filter computes where nobody reads it is not counted. Hidden units are matched one to one, layer by layer, by the number of
    connections in common with the layers around them (the Hungarian method, ties to units with fewer connections), again and
    again while the number of common connections grows, from eight starts that break further ties differently. The result is a
    lower bound of the best over all matchings, and the same on every call.

    Args:
        teacher: a network of ``nn.Linear`` and ``PatchConv1d`` layers.
        student: another one, with the same number of layers.
        threshold: 0 takes every weight that is not exactly 0.
        inputs: length of the input.

    Raises:
        ValueError: if the numbers of layers or of outputs differ.
        MissingExtraError: if scipy is not installed.

    Example:
        >>> from sparsenn.metrics import support_recovery
        >>> from sparsenn.models import fcn, teacher
        >>> found = support_recovery(teacher("baselineCNN", "relu"), fcn((8, 4)))
        >>> found.recall, found.found, found.wanted
        (1.0, 132, 18)
    """
    _layer_pairs("support_recovery", teacher, student)
    require_extra("scipy.optimize", "matching the units of teacher and student")
    wanted, found = ([m.double() for m in _on_paths(unrolled(net, inputs), threshold)] for net in (teacher, student))
    if len(wanted[-1]) != len(found[-1]):
        outputs = f"the teacher has {len(wanted[-1])} outputs, the student {len(found[-1])}"
        raise ValueError(f"support_recovery: {outputs}; both take the same number")
    hits = max(hits for start in range(_STARTS) for hits in _matchings(wanted, found, start))
    return SupportRecovery(hits, *(int(sum(m.sum() for m in layers)) for layers in (found, wanted)))


def _on_paths(matrices: list[Tensor], threshold: float) -> list[Tensor]:
    """Where the weights are that lie on a path from an input to an output."""
    masks = [_alive(m, threshold) for m in matrices]
    for first, second in pairwise(masks):
        second &= first.any(1)  # what no input reaches
    for first, second in reversed(list(pairwise(masks))):
        first &= second.any(0)[:, None]  # what reaches no output
    return masks


def _matchings(wanted: list[Tensor], found: list[Tensor], start: int) -> Iterator[int]:
    """The numbers of common connections of better and better matchings."""
    identity = torch.eye(wanted[0].shape[1], dtype=torch.float64)
    # match[l] is (teacher units) × (student units) of 0 and 1; inputs and outputs are matched to themselves.
    match: list[Tensor] = [identity, *[torch.zeros(len(w), len(f)).double() for w, f in zip(wanted, found, strict=True)]]
    match[-1] = torch.eye(len(wanted[-1]), dtype=torch.float64)
    best = -1
    while True:
        for hidden in range(1, len(wanted)):
            common = wanted[hidden - 1] @ match[hidden - 1] @ found[hidden - 1].t()
            common += wanted[hidden].t() @ match[hidden + 1] @ found[hidden]
            size = found[hidden - 1].sum(1) + found[hidden].sum(0)
            noise, _ = stream.uniform(torch.arange(common.numel()), start, hidden)
            match[hidden] = _assignment(
                common - size / (4 * size.sum() + 1) + noise.view_as(common) / (8 * size.sum() + 8) ** 2
            )
        hits = sum(float((w * (b @ f @ a.t())).sum()) for w, f, a, b in zip(wanted, found, match, match[1:], strict=False))
        if hits <= best:
            return
        best = round(hits)
        yield best


def _assignment(gain: Tensor) -> Tensor:
    rows, columns = require_extra("scipy.optimize", "matching units").linear_sum_assignment(gain.numpy(), maximize=True)
    match = torch.zeros_like(gain)
    match[torch.from_numpy(rows), torch.from_numpy(columns)] = 1.0
    return match
