"""How relevant a node is, and what becomes of the least relevant ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsenn._numbers import whole
from sparsenn.nn.parametrizations import HadamardProduct, factors_by_row
from sparsenn.nn.selection import check_module
from sparsenn.nn.spectral import SpectralLayer

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class NodePruning:
    """Which nodes were killed; made by :func:`nodes` and :func:`nodes_by_metric`.

    Attributes:
        killed: For each layer that was looked at, its name and the nodes that are dead now, in order.
        nodes: Number of nodes of these layers together.
        threshold: The largest relevance of a node that was killed; 0 where none was.
    """

    killed: dict[str, tuple[int, ...]]
    nodes: int
    threshold: float

    @property
    def fraction(self) -> float:
        """Killed nodes over all; 0 where there are none."""
        return sum(map(len, self.killed.values())) / self.nodes if self.nodes else 0.0


@torch.no_grad()
def node_relevance(layer: Any) -> Tensor:
    r"""How much each node of a layer, a neuron or a filter, can matter: the size of what it weighs its inputs with.

    .. math::
        \mathcal W_i = \Big(\sum_j w_{ij}^2\Big)^{1/2}, \qquad
        \mathcal L_i = |\lambda^{\mathrm{out}}_i| \Big(\sum_j \varphi_{ij}^2\Big)^{1/2}

    The first for plain and factorized layers, w their weight (for filters j runs over channels and kernel), the second for
    spectral ones. A spectral layer without eigenvalues of its outputs has the first, of the weight that it composes. The second
    supposes λ_in = 0, which is the default: where λ_in is trained too, a node of relevance 0 still has the weights λ_in φ. The
    paper's public code divides by the largest of all runs; here nothing is divided.

    Args:
        layer: A linear layer or a convolution, plain, factorized or spectral.

    Returns:
        A tensor of one number for each output unit, in the layer's dtype (float32 for half types).

    Raises:
        ValueError: for another kind of module.

    Source: Giambagli et al. 2023, "How a student becomes a teacher", Equations 9 and 10.

    Example:
        >>> import torch, sparsenn
        >>> layer = torch.nn.Linear(2, 3)
        >>> layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
        >>> sparsenn.prune.node_relevance(layer).tolist()
        [5.0, 0.0, 2.0]
    """
    if isinstance(layer, SpectralLayer) and layer.lambda_out is not None:
        return _norms(layer.phi) * layer.lambda_out.detach().abs()
    if not isinstance(layer, _PLAIN):
        kind = type(layer).__name__
        raise ValueError(f"node_relevance: layer is a {kind}; it takes linear layers and convolutions, plain or spectral")
    return _norms(layer.weight)


def nodes(
    model: nn.Module,
    *,
    threshold: float | None = None,
    fraction: float | None = None,
    layers: Sequence[str] | None = None,
    keep: int = 1,
) -> NodePruning:
    r"""Kill the least relevant nodes of a model, in place: their weights, their bias and their eigenvalue become 0.

    Node i of a layer goes if its :func:`node_relevance` is at most the threshold, or if it is among the least relevant share of
    all nodes of these layers together. Layers that share a tensor lose the nodes that all of them can do without, and a layer
    that shares one with a module that is not looked at, with the last layer or an embedding, loses none. :func:`compact` makes
    the model small afterwards. A batch normalization behind a dead node stays, and makes a constant of it; compaction takes
    that into account.

    Args:
        model: The model, changed in place.
        threshold: τ ≥ 0: nodes with a relevance ≤ τ go.
        fraction: Share in [0, 1] of all nodes that goes, rounded down; of equal ones the first. Either this or ``threshold``.
        layers: Names of the layers to look at. Default: all linear layers and convolutions but the last, in the order of the
            modules: the nodes of that one are outputs.
        keep: How many nodes each layer keeps at least, the most relevant ones.

    Returns:
        A :class:`NodePruning`.

    Raises:
        ValueError: unless exactly one of ``threshold`` and ``fraction`` is given, and in its range; for a ``keep`` that is no
            int ≥ 0; for a name that is no such layer, or a lone string; for a weight or bias with a parametrization that is no
            product of factors. Nothing is changed then.

    Source: the ranking is that of :func:`node_relevance`, percentiles over all layers as in the public code of Giambagli et al.
    2023.

    Example:
        >>> import torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> net[0].weight.data = torch.tensor([[3.0, 4.0], [0.1, 0.0], [0.0, -2.0]])
        >>> sparsenn.prune.nodes(net, threshold=0.5).killed
        {'0': (1,)}
        >>> sparsenn.prune.compact(net, torch.randn(1, 2))
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=1, bias=True)
        )
    """
    if (threshold is None) == (fraction is None):
        raise ValueError(f"nodes: threshold is {threshold!r} and fraction is {fraction!r}; it takes exactly one of them")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"nodes: threshold is {threshold!r}; it takes a number >= 0")
    if fraction is not None and not 0 <= fraction <= 1:
        raise ValueError(f"nodes: fraction is {fraction!r}; it takes a number from 0 to 1")
    if (spared := whole(keep)) is None or spared < 0:
        raise ValueError(f"nodes: keep is {keep!r}; it takes an int >= 0")
    chosen = _layers(model, layers)
    for name, layer in chosen.items():
        _check_parametrizations(name, layer)
    relevance = {name: node_relevance(layer).double().cpu() for name, layer in chosen.items()}
    everything = torch.cat([torch.zeros(0, dtype=torch.float64), *relevance.values()])
    if threshold is not None:
        goes = everything <= threshold
    elif fraction is not None:
        goes = torch.zeros(everything.shape, dtype=torch.bool)
        goes[everything.argsort(stable=True)[: int(fraction * everything.numel() + 1e-9)]] = True
    dead = dict(zip(chosen, goes.split([own.numel() for own in relevance.values()]), strict=True))
    for name, own in relevance.items():
        dead[name][own.argsort(descending=True, stable=True)[:spared]] = False
    for names in _tied(chosen):
        dead |= dict.fromkeys(names, torch.stack([dead[name] for name in names]).all(0))
    elsewhere = _held_elsewhere(model, chosen)
    for name, layer in chosen.items():
        if any(id(tensor) in elsewhere for tensor in _stored(layer)):
            dead[name][:] = False
    killed = {name: tuple(mask.nonzero().flatten().tolist()) for name, mask in dead.items()}
    for name, layer in chosen.items():
        _kill(layer, dead[name])
    largest = max((float(relevance[name][mask].max()) for name, mask in dead.items() if mask.any()), default=0.0)
    return NodePruning(killed, everything.numel(), largest)


def nodes_by_metric(
    model: nn.Module,
    metric: Callable[[nn.Module], float],
    *,
    tolerance: float,
    step: float = 0.05,
    layers: Sequence[str] | None = None,
    keep: int = 1,
) -> NodePruning:
    """Kill more and more of the least relevant nodes, in place, while a metric falls by no more than a tolerance.

    The share of killed nodes is ``step``, 2 ``step``, … up to 1; the last one with metric ≥ start − ``tolerance`` stays, where
    start is the metric of the model as it came.

    Args:
        model: The model, changed in place.
        metric: Takes the model, gives a number that is larger where the model is better, such as its accuracy.
        tolerance: By how much the metric may fall, ≥ 0.
        step: By how much the share of killed nodes grows from one trial to the next, in (0, 1].
        layers: As in :func:`nodes`.
        keep: As in :func:`nodes`.

    Returns:
        A :class:`NodePruning`, with no nodes killed if the first step is too much.

    Raises:
        ValueError: for a tolerance below 0 or a step out of its range, and as :func:`nodes`. If the metric raises, the model is
            as it came.

    Source: the metric-based pruning of the public code of Giambagli et al. 2023.

    Example:
        >>> import torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 4, bias=False), torch.nn.Linear(4, 1, bias=False))
        >>> net[0].weight.data = torch.tensor([[1.0], [2.0], [0.01], [0.02]])
        >>> _ = net[1].weight.data.fill_(1.0)
        >>> sparsenn.prune.nodes_by_metric(net, lambda net: -abs(3.03 - net(torch.ones(1)).item()), tolerance=0.1, step=0.25)
        NodePruning(killed={'0': (2, 3)}, nodes=4, threshold=0.01999...)
    """
    if not tolerance >= 0:
        raise ValueError(f"nodes_by_metric: tolerance is {tolerance!r}; it takes a number >= 0")
    if not 0 < step <= 1:
        raise ValueError(f"nodes_by_metric: step is {step!r}; it takes a number above 0, up to 1")
    names = list(_layers(model, layers))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    best = 0.0
    try:
        least = metric(model) - tolerance
        trial = step
        while trial < 1 + step / 2:
            nodes(model, fraction=min(trial, 1.0), layers=names, keep=keep)
            if not metric(model) >= least:
                break
            best, trial = min(trial, 1.0), trial + step
    finally:
        model.load_state_dict(before)
    return nodes(model, fraction=best, layers=names, keep=keep)


def _norms(weight: Tensor) -> Tensor:
    wide = weight.detach().flatten(1)
    return torch.linalg.vector_norm(wide if wide.dtype == torch.float64 else wide.float(), dim=1)


def _layers(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    check_module("nodes", model)
    found = {name: module for name, module in model.named_modules() if isinstance(module, _PLAIN)}
    if names is None:
        return dict(list(found.items())[:-1])
    if isinstance(names, str):
        raise ValueError(f"nodes: layers is {names!r}; it takes a sequence of names, such as {[names]}")
    for name in names:
        if name not in found:
            raise ValueError(
                f"nodes: layers holds {name!r}; it takes names of linear layers and convolutions: {', '.join(found)}"
            )
    return {name: found[name] for name in names}


def _tied(layers: dict[str, nn.Module]) -> list[list[str]]:
    """The names of these layers, those together that share a tensor, be it by way of others."""
    groups: list[tuple[set[int], list[str]]] = []
    for name, layer in layers.items():
        held, names = {id(tensor) for tensor in _stored(layer)}, [name]
        for group in [group for group in groups if group[0] & held]:
            groups.remove(group)
            held, names = held | group[0], group[1] + names
        groups.append((held, names))
    return [names for _, names in groups]


def _held_elsewhere(model: nn.Module, chosen: dict[str, nn.Module]) -> set[int]:
    """The ids of the parameters that a module beside these layers holds, perhaps as they do."""
    layers = {id(layer) for layer in chosen.values()}
    parts = {id(part) for layer in chosen.values() for part in layer.modules()}
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, _PLAIN):
            found |= {id(p) for p in module.parameters() if id(module) not in layers}
        elif id(module) not in parts:
            found |= {id(p) for p in module.parameters(recurse=False)}
    return found


def _check_parametrizations(name: str, layer: Any) -> None:
    for tensor in _names(layer):
        if parametrize.is_parametrized(layer, tensor):
            parametrization = layer.parametrizations[tensor]
            if len(parametrization) > 1 or not isinstance(parametrization[0], HadamardProduct):
                kind = type(parametrization[-1]).__name__
                raise ValueError(f"nodes: {name!r} computes its {tensor} by {kind}; remove that parametrization first")


@torch.no_grad()
def _kill(layer: Any, dead: Tensor) -> None:
    rows = dead.nonzero().flatten()
    for tensor in _stored(layer):
        tensor.index_fill_(0, rows.to(tensor.device), 0)


def _names(layer: Any) -> tuple[str, ...]:
    """The tensors that must be zero for a node to be: without λ_in the weights of a spectral one are λ_out φ."""
    if not isinstance(layer, SpectralLayer):
        return ("weight", "bias")
    return ("lambda_out", "bias") if layer.lambda_in is None else ("lambda_out", "phi", "bias")


def _stored(layer: Any) -> list[Tensor]:
    """The tensors that hold a row, or a number, for each node."""
    found: list[Tensor] = []
    for name in _names(layer):
        if parametrize.is_parametrized(layer, name):
            found += factors_by_row(layer.parametrizations[name])
        elif getattr(layer, name) is not None:
            found.append(getattr(layer, name))
    return found
