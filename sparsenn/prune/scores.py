"""The pruning baselines: magnitude, SNIP, SynFlow and random."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sparsenn._numbers import plain, whole
from sparsenn.nn.selection import Selectors, check_module, selected
from sparsenn.optim.groups import NamedParameter
from sparsenn.prune.budgets import BUDGETS, allocate, erdos_renyi_kernel, largest, uniform
from sparsenn.prune.masks import Entry, entries, remove, set_masks

SCOPES = {"global": "global", "layerwise": "uniform", "erk": "erk"}
ON_COLLAPSE = ("warn", "raise", "ignore")
_NOT_PRUNED = ("bias", "norm")


class LayerCollapseWarning(UserWarning):
    """Pruning left a layer without any weight: the network's output no longer depends on its input through that layer."""


class LayerCollapseError(ValueError):
    """As :class:`LayerCollapseWarning`, where ``on_collapse="raise"`` asked for an error; the model is as it was."""


@dataclass(frozen=True)
class PrunedTensor:
    """One parameter of a pruned model.

    Attributes:
        name: Its name in the model, such as ``"fc1.weight"``.
        shape: Its shape.
        numel: Number of entries.
        kept: Number of entries that no mask covers.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    kept: int


@dataclass(frozen=True)
class Pruning:
    """What stayed; made by the pruning functions. ``str`` gives a table.

    Attributes:
        tensors: One row for each parameter of the model, pruned or not, tied ones once.
        collapsed: Names of the pruned tensors that have entries and keep none, biases left out: nothing passes there.
    """

    tensors: tuple[PrunedTensor, ...]
    collapsed: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(row.numel for row in self.tensors)

    @property
    def kept(self) -> int:
        """Number of parameters that no mask covers."""
        return sum(row.kept for row in self.tensors)

    @property
    def compression_ratio(self) -> float:
        """All parameters over those that are kept; inf where none is, 1 for a model without parameters."""
        if self.kept:
            return self.parameters / self.kept
        return math.inf if self.parameters else 1.0

    def __str__(self) -> str:
        head = ("parameter", "shape", "entries", "kept", "density")
        rows = [head, *(_cells(row) for row in (*self.tensors, PrunedTensor("total", (), self.parameters, self.kept)))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(w) if i > 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def magnitude(
    model: nn.Module,
    *,
    compression: float,
    scope: str = "global",
    exclude: Selectors = _NOT_PRUNED,
    on_collapse: str = "warn",
) -> Pruning:
    r"""Put masks on all weights but the largest.

    .. math:: \mathrm{score}(w) = |w|

    Of N parameters of the model exactly ⌊N / compression⌋ stay; those that are never pruned (``exclude``, frozen ones) are
    among them, and so is a parameter that happens to be 0 without a mask. Of equal scores the first in the order of the model
    stays. Masks hold until :func:`remove`, see :func:`apply_masks`. On a model with masks the count includes them, and only
    more is pruned: a masked weight does not come back.

    Args:
        model: The model, changed in place.
        compression: All parameters over those that stay, ≥ 1.
        scope: ``"global"``: the largest of all layers together; ``"layerwise"``: the largest of each tensor, every tensor with
            the same density; ``"erk"``: the same with the densities of an Erdős–Rényi-Kernel network.
        exclude: Who is never pruned, as :func:`sparsenn.optim.param_groups` has it: kinds (``"bias"``, ``"norm"``,
            ``"embedding"``), name patterns and module types. ``()`` prunes biases and normalization layers too. Frozen
            parameters and those that hold no floating-point numbers are never pruned.
        on_collapse: What happens where a layer keeps no weight: ``"warn"`` (:class:`LayerCollapseWarning`, with its name),
            ``"raise"`` (:class:`LayerCollapseError`, before anything is changed) or ``"ignore"``.

    Returns:
        A :class:`Pruning`.

    Raises:
        ValueError: for a compression below 1 or out of reach, that is, below what the masks of the model give already or above
            what is possible without pruning what ``exclude`` protects; an unknown ``scope`` or ``on_collapse``; a pattern that
            means nothing; a parameter to prune that can't have a mask (a product of factors, a spectrum, a sharded one) or that
            holds NaN. Nothing is changed then.

    Source: Han et al. 2015; global and layer-wise as in Kolb et al. 2025, Appendix G.1.

    Example:
        >>> import torch, sparsenn
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, -4.0, 0.1, 2.0]])
        >>> sparsenn.prune.magnitude(layer, compression=2).kept, layer.weight.tolist()
        (2, [[3.0, -4.0, 0.0, 0.0]])
    """
    plan = _plan("magnitude", model, compression, exclude, on_collapse)
    _check_choice("magnitude", "scope", scope, tuple(SCOPES))
    return _prune(plan, [entry.weight.abs() for entry in plan.candidates], SCOPES[scope])


def random(
    model: nn.Module,
    *,
    compression: float,
    budget: str = "uniform",
    exclude: Selectors = _NOT_PRUNED,
    generator: torch.Generator | None = None,
    on_collapse: str = "warn",
) -> Pruning:
    r"""Put masks on weights that are drawn uniformly at random.

    Args:
        model: The model, changed in place.
        compression: All parameters over those that stay, ≥ 1, counted as in :func:`magnitude`.
        budget: ``"uniform"``: every tensor has the same density; ``"erk"``: densities of an Erdős–Rényi-Kernel network, in
            which small layers keep more; ``"global"``: every set of weights of the right size is equally likely.
        exclude: As in :func:`magnitude`.
        generator: A generator on the CPU, the same draws for every device; torch's default one where it is None.
        on_collapse: As in :func:`magnitude`.

    Returns:
        A :class:`Pruning`.

    Raises:
        ValueError: as :func:`magnitude`.

    Source: Kolb et al. 2025, Appendix G.1; the ERK budget is from Evci et al. 2020.

    Example:
        >>> import torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(90, 10, bias=False), torch.nn.Linear(10, 10, bias=False))
        >>> [row.kept for row in sparsenn.prune.random(net, compression=10, budget="erk").tensors]
        [83, 17]
    """
    plan = _plan("random", model, compression, exclude, on_collapse)
    _check_choice("random", "budget", budget, BUDGETS)
    scores = [torch.rand(entry.stored.shape, dtype=torch.float64, generator=generator) for entry in plan.candidates]
    return _prune(plan, [score.to(e.stored.device) for score, e in zip(scores, plan.candidates, strict=True)], budget)


def snip(
    model: nn.Module,
    *,
    compression: float,
    batch: tuple[Any, Any],
    loss_fn: Callable[[Any, Any], Tensor],
    exclude: Selectors = _NOT_PRUNED,
    on_collapse: str = "warn",
) -> Pruning:
    r"""Put masks on the weights to which the loss of a batch is least sensitive, before training.

    .. math:: \mathrm{score}(w) = \Big| w \, \frac{\partial \ell}{\partial w} \Big|

    Its normalization by the sum over the network, which the paper has, ranks the same. The weights of all layers are ranked
    together. The batch is run once, in the mode that the model is in; gradients, batch statistics and the model's other state
    stay what they were. Where ``torch.distributed`` is initialized, the gradients of all ranks are added up, so that each may
    bring its own part of the batch.

    Args:
        model: The model, changed in place.
        compression: All parameters over those that stay, ≥ 1, counted as in :func:`magnitude`.
        batch: ``(inputs, targets)``.
        loss_fn: ``loss_fn(model(inputs), targets)`` gives the loss, one number.
        exclude: As in :func:`magnitude`. A bias that starts at 0 has the score 0.
        on_collapse: As in :func:`magnitude`.

    Returns:
        A :class:`Pruning`.

    Raises:
        ValueError: for a loss that isn't one finite number, or whose gradient isn't finite, and as :func:`magnitude`.

    Source: Lee et al. 2019, "SNIP: single-shot network pruning based on connection sensitivity", Equations 4 to 6.

    Example:
        >>> import torch, sparsenn
        >>> layer = torch.nn.Linear(3, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[1.0, 5.0, 2.0]])
        >>> x, y = torch.tensor([[1.0, 0.1, 1.0]]), torch.tensor([[0.0]])
        >>> sparsenn.prune.snip(layer, compression=1.5, batch=(x, y), loss_fn=torch.nn.functional.mse_loss).kept
        2
        >>> layer.weight.tolist()
        [[1.0, 0.0, 2.0]]
    """
    plan = _plan("snip", model, compression, exclude, on_collapse)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise ValueError(f"snip: batch is a {type(batch).__name__}{size}; it takes a pair (inputs, targets)")
    inputs, targets = batch
    leaves = {name: p.detach().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    by_id = {id(p): leaves[name] for name, p in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    wanted = [by_id[id(entry.stored)] for entry in plan.candidates]
    with torch.enable_grad():
        outputs = torch.func.functional_call(model, {**leaves, **buffers}, (inputs,))
        try:
            loss = loss_fn(outputs, targets)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(f"snip: loss_fn fails on the model's outputs and the batch's targets: {error}") from error
    if not isinstance(loss, Tensor):
        raise ValueError(f"snip: loss_fn gives a {type(loss).__name__}; it takes one that gives a tensor")
    if loss.numel() != 1 or not bool(torch.isfinite(loss.detach()).all()):
        shown = f"the tensor {tuple(loss.shape)}" if loss.numel() != 1 else f"{loss.item()}"
        raise ValueError(f"snip: the loss of the batch is {shown}; it takes a loss_fn that gives one finite number")
    grads = _gradients(loss.reshape(()), wanted)
    return _prune(plan, [(entry.weight.double() * g.double()).abs() for entry, g in zip(plan.candidates, grads, strict=True)])


def _gradients(loss: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted and loss.requires_grad else [None] * len(wanted)
    grads = [torch.zeros_like(w) if g is None else g.detach().contiguous() for w, g in zip(wanted, found, strict=True)]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for grad in grads:
            torch.distributed.all_reduce(grad)
    return grads


def synflow(
    model: nn.Module,
    *,
    compression: float,
    input_shape: Sequence[int],
    iterations: int = 100,
    exclude: Selectors = _NOT_PRUNED,
    on_collapse: str = "warn",
) -> Pruning:
    r"""Put masks on the weights through which the least synaptic flow passes, step by step, before training and without data.

    .. math::
        R = \mathbf 1^\top f_{|\theta|}(\mathbf 1), \qquad
        \mathrm{score}(w) = |w| \, \frac{\partial R}{\partial |w|}

    where f with the magnitudes of all its parameters meets an input of ones. In a network of linear maps and ReLUs a weight's
    score is the sum, over all paths from input to output through it, of the products of the magnitudes on the path. Scores are
    computed ``iterations`` times; of the n weights to prune from, after time k the :math:`n\,(m/n)^{k/\text{iterations}}` with
    the largest scores are left, so m in the end. Where biases are 0 the scores into a unit sum to those out of it, so that in
    steps that are small enough no layer is emptied while another has weights to spare. Other biases, which PyTorch's layers
    start with, add a flow of their own that needs no layer before them: early layers may then be emptied.

    All is done on a copy in float64: the flow through a deep network exceeds float32 (ResNet-34 with a Kaiming start, for one).
    Batch normalization takes part with mean 0 and variance 1, whatever it has seen; dropout is off. Activations act as they
    are: ReLU, which passes all of the flow, is what the score is made for.

    Args:
        model: The model, changed in place.
        compression: All parameters over those that stay, ≥ 1, counted as in :func:`magnitude`.
        input_shape: Shape of one input without the batch's axis, such as ``(3, 32, 32)``.
        iterations: How many times the scores are computed, an int ≥ 1.
        exclude: As in :func:`magnitude`. A bias that starts at 0 has the score 0.
        on_collapse: As in :func:`magnitude`.

    Returns:
        A :class:`Pruning`.

    Raises:
        ValueError: for fewer than one iteration; for a model that can't take such an input; where the flow exceeds float64 too,
            or no weight has any, as behind a softmax or a layer normalization; and as :func:`magnitude`.

    Source: Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving synaptic flow", Algorithm 1.

    Example:
        >>> import torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1, bias=False))
        >>> net[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
        >>> net[2].weight.data = torch.tensor([[5.0, 1.0]])
        >>> sparsenn.prune.synflow(net, compression=3, input_shape=(2,)).kept  # the path of -2 and 5, the strongest
        2
        >>> net[0].weight.tolist(), net[2].weight.tolist()
        ([[0.0, -2.0], [0.0, 0.0]], [[5.0, 0.0]])
    """
    plan = _plan("synflow", model, compression, exclude, on_collapse)
    rounds = whole(iterations)
    if rounds is None or rounds < 1:
        raise ValueError(f"synflow: iterations is {iterations!r}; it takes an int >= 1")
    if not isinstance(input_shape, Sequence) or any((size := whole(n)) is None or size < 0 for n in input_shape):
        raise ValueError(f"synflow: input_shape is {input_shape!r}; it takes the sizes of one input, such as (3, 32, 32)")
    network = _magnitudes_of(model)
    twins = {entry.name: entry.stored for entry in entries(network)}
    weights = [twins[entry.name].requires_grad_() for entry in plan.candidates]
    masks = [entry.kept for entry in plan.candidates]
    device = weights[0].device if weights else torch.device("cpu")
    ones = torch.ones(1, *input_shape, dtype=torch.float64, device=device)
    count = sum(int(mask.sum()) for mask in masks)
    for k in range(1, rounds + 1):
        left = round(count * (plan.keep / count) ** (k / rounds)) if count else 0
        flow = _flow(network, ones, weights, masks)
        if k == 1 and weights and not any(bool((score > 0).any()) for score in flow):  # later it is the masks that stop it
            raise ValueError(
                "synflow: no flow passes through any weight (does the model end in a softmax, or normalize each input?); give "
                "it the part before, or prune by snip or magnitude"
            )
        masks = largest(flow, left)
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.masked_fill_(~mask, 0)
    return _prune(plan, [mask.double() for mask in masks])


@torch.no_grad()
def _magnitudes_of(model: nn.Module) -> nn.Module:
    """A plain copy in float64 and eval mode: magnitudes of all parameters, batch normalization as before any data."""
    network = remove(copy.deepcopy(model)).double().eval()
    for module in network.modules():
        if isinstance(module, _NormBase):
            module.reset_running_stats()
    for p in network.parameters():
        p.abs_().requires_grad_(False)
    return network


def _flow(network: nn.Module, ones: Tensor, weights: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    """The synaptic flow through every weight, and -1 where a mask has taken it."""
    try:
        with torch.enable_grad():
            flow = network(ones).sum()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"synflow: the model can't take ones of shape {tuple(ones.shape)} in float64 ({error}); input_shape is one input's "
            "without the batch's axis, and models that read indices are pruned by snip or magnitude"
        ) from error
    grads = torch.autograd.grad(flow, weights, allow_unused=True) if weights and flow.requires_grad else [None] * len(weights)
    scores = [torch.zeros_like(w) if g is None else (w * g).detach().abs() for w, g in zip(weights, grads, strict=True)]
    if not all(bool(torch.isfinite(score).all()) for score in scores):
        raise ValueError("synflow: the flow through the model is not finite in float64; prune by snip or magnitude")
    return [score.masked_fill(~mask, -1) for score, mask in zip(scores, masks, strict=True)]


def compression_limit(model: nn.Module, *, exclude: Selectors = _NOT_PRUNED) -> float:
    """The largest compression that the pruning functions can reach on a model: all parameters over those never pruned.

    Args:
        model: Any module.
        exclude: As in :func:`magnitude`.

    Returns:
        A float ≥ 1; inf where every parameter may be pruned.

    Raises:
        ValueError: for a pattern that means nothing.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.prune.compression_limit(torch.nn.Linear(9, 1))
        10.0
    """
    found = entries(model)
    free = _numel(found) - _numel(_candidates("compression_limit", found, exclude))
    return _numel(found) / free if free else math.inf


def _candidates(caller: str, found: list[Entry], exclude: Selectors) -> list[Entry]:
    protected = selected([entry.named for entry in found], exclude, f"{caller}: exclude")
    trained = [entry for i, entry in enumerate(found) if i not in protected and entry.stored.requires_grad]
    return [entry for entry in trained if entry.stored.is_floating_point()]


def _numel(found: list[Entry]) -> int:
    return sum(entry.numel for entry in found)


@dataclass
class _Plan:
    """What a pruning function is to do: checked, with nothing changed yet.

    `keep` says how many of the candidates' entries stay.
    """

    caller: str
    entries: list[Entry]
    candidates: list[Entry]
    keep: int
    on_collapse: str


def _plan(caller: str, model: nn.Module, compression: float, exclude: Selectors, on_collapse: str) -> _Plan:
    ratio = plain(compression)
    if ratio is None or not 1 <= ratio < math.inf:
        raise ValueError(f"{caller}: compression is {compression!r}; it takes a number >= 1")
    _check_choice(caller, "on_collapse", on_collapse, ON_COLLAPSE)
    check_module(caller, model)
    found = entries(model)
    candidates = _candidates(caller, found, exclude)
    for entry in candidates:
        if entry.obstacle:
            raise ValueError(f"{caller}: {entry.name!r} {entry.obstacle}, or leave it out with exclude")
        if bool(entry.weight.isnan().any()):
            raise ValueError(f"{caller}: {entry.name!r} holds NaN; it takes weights that can be compared")
    total = _numel(found)
    free = total - _numel(candidates)
    keep = math.floor(total / ratio) - free
    if keep < 0:
        raise ValueError(
            f"{caller}: compression is {ratio}; {free:,} of {total:,} parameters are never pruned (exclude={exclude!r} "
            f"and frozen ones), so it takes at most {total / free:.6g}; exclude=() prunes biases and normalization too"
        )
    now = sum(int(entry.kept.sum()) for entry in candidates)
    if keep > now:
        raise ValueError(
            f"{caller}: compression is {ratio}, but the masks of the model give {total / (now + free):.6g} already; it "
            f"takes more than that, or remove the masks first"
        )
    return _Plan(caller, found, candidates, keep, on_collapse)


def _check_choice(caller: str, name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{caller}: {name} is {value!r}; it takes one of {', '.join(map(repr, known))}")


def _prune(plan: _Plan, scores: list[Tensor], budget: str = "global") -> Pruning:
    """Keep the weights with the largest scores, in all tensors together or by a budget for each."""
    for entry, score in zip(plan.candidates, scores, strict=True):
        if not bool(torch.isfinite(score).all()):
            raise ValueError(f"{plan.caller}: a score of {entry.name!r} is not finite; the weights or gradients overflow")
    scores = [score.masked_fill(~entry.kept, -1) for entry, score in zip(plan.candidates, scores, strict=True)]
    if budget == "global":
        return _apply(plan, largest(scores, plan.keep))
    shapes = [tuple(score.shape) for score in scores]
    shares = uniform(shapes) if budget == "uniform" else erdos_renyi_kernel(shapes)
    counts = allocate(shares, [int(entry.kept.sum()) for entry in plan.candidates], plan.keep)
    return _apply(plan, [largest([score], count)[0] for score, count in zip(scores, counts, strict=True)])


def _apply(plan: _Plan, masks: list[Tensor]) -> Pruning:
    collapsed = tuple(e.name for e, mask in zip(plan.candidates, masks, strict=True) if _carries(e.named) and not mask.any())
    collapsed = tuple(name for name in collapsed if next(e for e in plan.candidates if e.name == name).numel)
    if collapsed and plan.on_collapse != "ignore":
        sentence = f"{plan.caller}: no weight is left in {', '.join(collapsed)}; a smaller compression leaves some"
        if plan.on_collapse == "raise":
            raise LayerCollapseError(sentence)
        warnings.warn(sentence, LayerCollapseWarning, stacklevel=4)
    set_masks(list(zip(plan.candidates, masks, strict=True)))
    return Pruning(tuple(_row(entry) for entry in plan.entries), collapsed)


def _carries(named: NamedParameter) -> bool:
    """Whether a signal passes through this parameter: a bias is only added to it."""
    return not named.matches("bias")


def _row(entry: Entry) -> PrunedTensor:
    hidden = int((~entry.mask.mask).sum()) if entry.mask is not None else 0
    return PrunedTensor(entry.name, tuple(entry.shape or ()), entry.numel, entry.numel - hidden)


def _cells(row: PrunedTensor) -> tuple[str, ...]:
    density = f"{row.kept / row.numel:.4f}" if row.numel else ""
    return row.name, "x".join(map(str, row.shape)), f"{row.numel:,}", f"{row.kept:,}", density
