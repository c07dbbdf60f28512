"""A physically smaller model with the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsenn._numbers import whole
from sparsenn.nn.convert import collapse
from sparsenn.nn.indexed import IndexedLayer
from sparsenn.nn.selection import check_module
from sparsenn.prune.analysis import Analysis, trace_calls
from sparsenn.prune.rules import LAYERS, MODULES
from sparsenn.prune.units import map_nested

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_LAYERS: Any = tuple(LAYERS)


@torch.inference_mode(False)  # the copy is to be trained, and changes in place are noticed by the tensors' versions
@torch.no_grad()
def compact(model: ModuleT, example_input: Tensor | tuple[Any, ...], threshold: float = 0.0, round_to: int = 1) -> ModuleT:
    r"""A physically smaller copy of a model, without its dead units, that has the same outputs in eval mode.

    .. math:: W x + b \;=\; W_{\cdot L}\, x_L + \Big(b + \sum_{k \notin L} W_{\cdot k}\, c_k\Big)

    A unit is a neuron or a channel. It goes if it has one value c for all inputs and places (its weights are 0, or what they
    read are such units, or its batch normalization has γ = 0), or if nothing that reaches an output reads it. Whichever method
    killed it does not matter. Its constant, ρ(b) behind an activation, goes into the biases of the layers that read it. Where a
    convolution pads with zeros, the constant is none near the border; then all constants of that input become one channel. So
    nothing changes but the order of sums: about 1e-7 of the largest output in float32.

    The copy has the classes, the names and the training modes of the model; its layers have fewer units. Where a width must
    stay, since it is that of an input or an output, since the terms of a sum have lost different units, or since the code says
    so (``x.view(-1, 400)``), the layers beside it become indexed ones (:class:`sparsenn.nn.IndexedLinear`), which read and
    compute only what is alive; at inputs always, elsewhere where that saves a quarter of the width. A residual stream keeps the
    channels that are alive in any branch. A layer that is dead as a whole keeps one unit. Factors are multiplied out first.

    Linear layers, convolutions (with groups too: a group stays or goes as one), batch normalization, elementwise activations,
    pooling, flattening, sums, products, concatenation and dropout let units go. Other known operations, such as softmax, layer
    normalization, attention, recurrent and transposed layers, get all units of their inputs; so do layers that are called
    twice or share a parameter. PyTorch's transformers lose the neurons between the two linear layers of a block.

    Args:
        model: Any module that ``torch.fx`` can trace. It stays as it is.
        example_input: A tensor, or a tuple of the forward's arguments. One sample is enough: it gives the shapes, and the copy
            is tried on it.
        threshold: τ ≥ 0. Weights with \|w\| ≤ τ count as 0, as in :func:`sparsenn.collapse`, which is applied to the copy.
        round_to: Widths become multiples of this, with dead units that stay, for hardware that likes 8 or 16; never more than
            a layer had.

    Returns:
        The copy. :func:`compaction_report` compares the two. Make a new optimizer for it.

    Raises:
        ValueError: for a threshold or a ``round_to`` that is out of range; a model that cannot be traced, fails on the example,
            holds an operation that is unknown, or changes a tensor in place that is read again; a hook on a layer or on the
            model itself; a layer with a parametrization; batch normalization in training mode where a constant passes through
            it; a layer whose forward was replaced on the instance; a trace or a copy whose output on the example differs, which
            happens where the forward chooses by types or counters, or computes with widths, in a way that a trace does not
            show.

    Example:
        >>> import torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> _ = torch.nn.init.zeros_(net[0].weight[1])  # the second neuron is max(b, 0), whatever comes in
        >>> small = sparsenn.prune.compact(net.eval(), torch.randn(1, 4))
        >>> small[0], small[2]
        (Linear(in_features=4, out_features=2, bias=True), Linear(in_features=2, out_features=2, bias=True))
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(small(x), net(x), atol=1e-6)
        True
    """
    round_to = _checked_multiple(round_to)
    _check(model, threshold)
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    small = _copy(model, threshold)
    modes = {module: module.training for module in small.modules()}
    small.eval()
    holder = nn.Sequential(small) if _is_layer(small) else small  # so that a lone layer is a call like any other
    attributes, buffers = set(vars(holder)), [(buffer, buffer.clone()) for buffer in small.buffers()]
    analysis = Analysis(holder, trace_calls(holder, example), {module for module, training in modes.items() if training})
    traced = analysis.run(*_clones(example))
    before = small(*_clones(example))
    if not close(before, traced):
        raise ValueError(
            "compact: the calls that torch.fx traced give another output for example_input than the model; its forward does "
            "what a trace does not show, such as a change in place under another name, or a choice by a type or a counter"
        )
    analysis.trace.play_back()
    stay = analysis.trace.layout(round_to)
    for layer in analysis.trace.layers:
        layer.rewrite(stay, round_to)
    for name in set(vars(holder)) - attributes:  # tensors that the forward makes, which torch.fx keeps in the model
        delattr(holder, name)
    _compare(before, small, example)
    for buffer, value in buffers:  # a forward may count its calls
        buffer.copy_(value)
    for module, training in modes.items():
        module.training = training
    return small


def _checked_multiple(round_to: int) -> int:
    if (multiple := whole(round_to)) is None or multiple < 1:
        raise ValueError(f"compact: round_to is {round_to!r}; it takes an int >= 1")
    return multiple


def _check(model: nn.Module, threshold: float) -> None:
    check_module("compact", model)
    if not threshold >= 0:
        raise ValueError(f"compact: threshold is {threshold!r}; it takes a number >= 0")
    for name, tensor in _tensors(model):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"compact: {name!r} is not initialized yet; run one batch through the model first")
        if tensor.is_meta:
            raise ValueError(f"compact: {name!r} is on the meta device and has no values")
    for name, module in model.named_modules():
        # a trace contains the hooks of modules between these, but none of the model's own
        if (isinstance(module, _LAYERS) or module is model) and (module._forward_hooks or module._forward_pre_hooks):
            title = repr(name) if name else "the model"
            raise ValueError(
                f"compact: {title} ({type(module).__name__}) carries a forward hook, which may change what it computes; "
                "remove it first, a mask of torch.nn.utils.prune by its function remove"
            )


def _copy(model: ModuleT, threshold: float) -> ModuleT:
    """A copy with plain layers."""
    small = copy.deepcopy(model)
    if threshold > 0 or any(
        type(m).__module__.startswith("sparsenn.nn.") or parametrize.is_parametrized(m) for m in model.modules()
    ):
        collapse(small, threshold)
        for module in small.modules():
            if isinstance(module, IndexedLayer):
                module.become_plain()
    return small


def _is_layer(model: nn.Module) -> bool:
    return type(model) in MODULES


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _clones(example: tuple[Any, ...]) -> tuple[Any, ...]:
    return map_nested(example, lambda x: x.clone() if isinstance(x, Tensor) else x)


def _compare(before: Any, small: nn.Module, example: tuple[Any, ...]) -> None:
    """The last word: what the copy computes of the example."""
    cure = "the forward computes with widths in a way that a trace of its calls does not show"
    try:
        after = small(*_clones(example))
    except Exception as error:
        raise ValueError(f"compact: the smaller copy fails on example_input ({error}); {cure}") from error
    if not close(before, after):
        raise ValueError(f"compact: the smaller copy gives another output for example_input; {cure}")


def close(before: Any, after: Any) -> bool:
    """Whether two outputs, however nested, are the same function's to rounding: to √ε of the largest entry of each tensor."""
    old, new = _flat(before), _flat(after)
    return len(old) == len(new) and all(map(_close, old, new))


def _close(old: Tensor, new: Tensor) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    if not (old.is_floating_point() or old.is_complex()):
        return torch.equal(old, new)
    largest = float(old.abs().nan_to_num(0.0, 0.0, 0.0).max()) if old.numel() else 0.0
    return torch.allclose(new, old, rtol=0.0, atol=torch.finfo(old.dtype).eps ** 0.5 * largest, equal_nan=True)


def _flat(outputs: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def look(value: Any) -> Any:
        if isinstance(value, Tensor):
            found.append(value)
        return value

    map_nested(outputs, look)
    return found
