"""Masks that hold: pruned weights are exactly 0 whatever an optimizer does to what is stored, and masks come off again."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsenn.nn.parametrizations import HadamardProduct, adapt_class, factors_of, own_class, parametrizations_of
from sparsenn.nn.selection import check_module, join, walk
from sparsenn.nn.spectral import SPECTRUM, SpectralLayer
from sparsenn.optim.groups import NamedParameter
from sparsenn.optim.shards import is_sharded

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_ORDER = "_sparsenn_order_before_masks"
_STORED = re.compile(r"(?:(?P<path>.*)\.)?parametrizations\.(?P<name>[^.]+)\.0\.mask")


class Mask(nn.Module):
    r"""The parametrization of a weight by itself where a mask is true, and by 0 elsewhere.

    .. math:: w_i = \begin{cases} \theta_i & \text{mask}_i \\ 0 & \text{otherwise} \end{cases}

    Zeros are exact whatever θ holds there, NaN included, and their gradients are exactly 0: momentum, weight decay and the
    averages of Adam can move the hidden numbers, never the weight. :func:`apply_masks` and the pruning functions register it.

    Args:
        mask: A bool tensor of the weight's shape, kept as the buffer ``mask``.

    Raises:
        ValueError: if ``mask`` is not bool.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.prune.Mask(torch.tensor([True, False]))(torch.tensor([3.0, float("nan")]))
        tensor([3., 0.])
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise ValueError(f"Mask: mask is {mask.dtype}; it takes bool, true where a weight stays")
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, with +0 where the mask is false."""
        return torch.where(self.mask, weight, 0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is stored when a tensor is assigned to the weight: the tensor, with zeros where the mask is false."""
        return torch.where(self.mask, weight, 0)


@dataclass
class Entry:
    """A parameter of a model as it computes: stored plainly, under a mask, or made by another parametrization.

    Attributes:
        named: what is stored, with every name under which the model has it and the modules that own it.
        places: every module that has it, with its name there.
        shape: of the tensor that the model computes with; None where it is not initialized yet.
        mask: its mask, if it has one.
        obstacle: why it can't be pruned, as the end of a sentence that begins with its name; empty where it can.
        sharded: whether ranks share it out.
    """

    named: NamedParameter
    places: list[tuple[nn.Module, str]]
    shape: torch.Size | None
    mask: Mask | None
    obstacle: str
    sharded: bool

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.named.name

    @property
    def numel(self) -> int:
        """Entries of the tensor that the model computes with."""
        return self.shape.numel() if self.shape is not None else 0

    @property
    def stored(self) -> Tensor:
        """The parameter that an optimizer sees."""
        return self.named.tensor

    @property
    def weight(self) -> Tensor:
        """The detached tensor that the model computes with, for one that is plain or masked."""
        stored = self.stored.detach()
        return stored if self.mask is None else self.mask(stored)

    @property
    def kept(self) -> Tensor:
        """Where it may be other than 0: a bool tensor, all true without a mask."""
        return torch.ones_like(self.stored, dtype=torch.bool) if self.mask is None else self.mask.mask


def entries(model: nn.Module) -> list[Entry]:
    """Every parameter of a model once, in the model's order, which is the same with masks and without."""
    found: dict[tuple[int, ...], Entry] = {}
    for path, module, inside in walk(model):
        own: dict[str, parametrize.ParametrizationList | None] = dict.fromkeys(_own(module))
        own.update(parametrizations_of(module))
        order = module.__dict__.get(_ORDER, ())
        for name in sorted(own, key=lambda name: order.index(name) if name in order else len(order)):
            tensors = _tensors(module, name, own[name])
            if tensors:
                key = tuple(map(id, tensors))
                entry = found.get(key) or found.setdefault(key, _entry(inside, name, tensors, own[name]))
                if (module, name) not in entry.places:
                    entry.places.append((module, name))
                names, owners = (*entry.named.names, join(path, name)), (*entry.named.owners, module)
                entry.named = NamedParameter(entry.named.tensor, names, owners)
    return list(found.values())


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _tensors(module: nn.Module, name: str, parametrization: parametrize.ParametrizationList | None) -> tuple[Tensor, ...]:
    """The stored parameters behind a tensor of a module; none behind a parametrized buffer."""
    if parametrization is None:
        return (_own(module)[name],)
    return tuple(tensor for tensor in factors_of(parametrization) if isinstance(tensor, nn.Parameter))


def _entry(
    inside: tuple[nn.Module, ...],
    name: str,
    tensors: tuple[Tensor, ...],
    parametrization: parametrize.ParametrizationList | None,
) -> Entry:
    module = inside[-1]
    mask = parametrization[0] if parametrization is not None and len(parametrization) == 1 else None
    mask = mask if isinstance(mask, Mask) else None
    sharded = is_sharded(tensors[0]) or any(map(_is_fsdp, inside))
    if sharded:
        obstacle = "is sharded; prune the whole model, then shard it"
    else:
        obstacle = "" if mask is not None else _obstacle(module, name, tensors[0], parametrization)
    if parametrization is not None and mask is None:
        shape: torch.Size | None = getattr(module, name).shape
    else:
        shape = None if nn.parameter.is_lazy(tensors[0]) else tensors[0].shape
    return Entry(NamedParameter(tensors[0], (), ()), [], shape, mask, obstacle, sharded)


def _is_fsdp(module: nn.Module) -> bool:
    """Whether FSDP2 shards this module, at times into parameters that look whole."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def _obstacle(module: nn.Module, name: str, stored: Tensor, other: parametrize.ParametrizationList | None) -> str:
    """Why a whole parameter without a mask can't have one, and the cure; empty where it can."""
    if other is not None:
        if isinstance(other[0], HadamardProduct):
            return "is a product of factors; collapse the model first"
        return f"carries the parametrization {type(other[0]).__name__}; remove it first"
    for hook in module._forward_pre_hooks.values():  # weight_norm and spectral_norm, and masks of torch.nn.utils.prune
        whole = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if isinstance(whole, str) and name in {f"{whole}_{part}" for part in ("g", "v", "orig")}:
            return f"is what the hook {type(hook).__name__} makes {whole!r} of; remove that hook first"
    if isinstance(module, SpectralLayer) and name in SPECTRUM:
        return "is a part of a spectrum and no weight; collapse the model first"
    if nn.parameter.is_lazy(stored):
        return "is not initialized yet; run one batch through the model first"
    if stored.is_meta:
        return "is on the meta device and has no values"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (module.sparse or module.max_norm is not None):
        return "belongs to an embedding with sparse or max_norm, which needs the stored weight itself; turn these off"
    if isinstance(module, torch.jit.ScriptModule):
        return "belongs to a scripted module; use the module that was scripted"
    if hasattr(type(module), name) or hasattr(nn.ModuleDict(), name):
        return "has the name of an attribute of its module or of nn.ModuleDict, which holds parametrizations; rename it"
    return ""


def apply_masks(model: ModuleT, masks: Mapping[str, Tensor]) -> ModuleT:
    """Put masks on parameters of a model, in place: those entries are exactly 0 from here on, and have no gradient.

    A masked parameter is computed by a :class:`Mask` at each use, from what an optimizer sees: the same ``Parameter`` object as
    before, with zeros under the mask, now called ``parametrizations.<name>.original``, so that an optimizer of torch made
    earlier goes on (one of factors asks for its ``resync``). Whatever becomes of what is stored under the mask, the model reads
    0; penalties and counters of an optimizer see it, so make a new optimizer where an old one's momentum would move it. Masks
    are buffers: they are in the ``state_dict``, move with the model, and DDP sends them to all ranks. Apply masks before
    ``torch.compile``, DDP and sharding. A parameter that has a mask already gets the new one in the same buffer; what the old
    mask hid, and the new one shows, is whatever is stored.

    Where ``torch.distributed`` is initialized this is a collective: every rank gets the masks of rank 0.

    Args:
        model: The model, changed in place. Left untouched when an error is raised.
        masks: For names of parameters a bool tensor of their shape, true where a weight stays. Of a tied parameter any of its
            names will do.

    Returns:
        The same model.

    Raises:
        ValueError: for a name that the model doesn't have, a tensor of another shape or dtype than the mask must have, and for
            a parameter that can't be masked: the message says why.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.prune.apply_masks(torch.nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> float(layer.weight[0, 1]), [name for name, _ in layer.named_parameters()]
        (0.0, ['bias', 'parametrizations.weight.original'])
    """
    check_module("apply_masks", model)
    found = entries(model)
    by_name = {name: entry for entry in found for name in entry.named.names}
    chosen: list[tuple[Entry, Tensor]] = []
    for name, mask in masks.items():
        if name not in by_name:
            raise ValueError(
                f"apply_masks: masks has {name!r}; the model has {', '.join(e.name for e in found) or 'no parameters'}"
            )
        entry = by_name[name]
        if entry.obstacle:
            raise ValueError(f"apply_masks: {name!r} {entry.obstacle}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != entry.stored.shape:
            given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            raise ValueError(
                f"apply_masks: the mask of {name!r} is {given}; it takes a tensor of torch.bool {tuple(entry.stored.shape)}"
            )
        chosen.append((entry, mask))
    set_masks(chosen)
    return model


@torch.no_grad()
def set_masks(chosen: list[tuple[Entry, Tensor]]) -> None:
    """Put a mask on each entry, and zeros under it: group penalties and counters of optimizers read what is stored."""
    for entry, kept in chosen:
        kept = _of_rank_0(kept.to(entry.stored.device))
        if entry.mask is None:
            entry.mask = Mask(torch.empty_like(entry.stored, dtype=torch.bool))
            for module, name in entry.places:
                _register(module, name, entry.mask)
        entry.mask.mask.copy_(kept)
        entry.stored.masked_fill_(~kept, 0)


def _of_rank_0(mask: Tensor) -> Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return mask
    numbers = mask.to(torch.uint8, memory_format=torch.contiguous_format, copy=True)
    torch.distributed.broadcast(numbers, src=0)
    return numbers.bool()


def _register(module: nn.Module, name: str, mask: Mask) -> None:
    order = tuple(module._parameters)
    own_class(module)
    # Through nn.Identity the stored tensor stays as it is: torch would put the right_inverse's own memory in its place.
    parametrize.register_parametrization(module, name, nn.Identity())
    module.parametrizations[name][0] = mask  # type: ignore[index, assignment]
    module.__dict__.setdefault(_ORDER, order)
    adapt_class(module)


def remove(model: ModuleT) -> ModuleT:
    """Take all masks off a model, in place: plain parameters again, with exact zeros where the masks were false.

    Names, order and ``Parameter`` objects are those from before the masks; tied parameters stay tied. A momentum that an
    optimizer has gathered for hidden numbers would move the zeros from here on: make a new optimizer to train further.

    Args:
        model: The model, changed in place; without masks it stays as it is.

    Returns:
        The same model.

    Raises:
        ValueError: for a masked parameter that is sharded. A whole model of the same masks can load its full ``state_dict``.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.prune.apply_masks(torch.nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> [name for name, _ in sparsenn.prune.remove(layer).named_parameters()], float(layer.weight[0, 1])
        (['weight', 'bias'], 0.0)
    """
    masked = [entry for entry in entries(model) if entry.mask is not None]
    for entry in masked:
        if entry.sharded:
            raise ValueError(
                f"remove: {entry.name!r} is sharded; load the full state_dict into a whole model of the same masks"
            )
    with torch.no_grad():
        for entry in masked:
            if entry.mask is not None:
                entry.stored.masked_fill_(~entry.mask.mask, 0)
                for module, name in entry.places:
                    own_class(module)
                    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
                    _restore_order(module)
    return model


def _restore_order(module: nn.Module) -> None:
    """Sort the parameters as they were before the masks: optimizers count on their order."""
    for name in module.__dict__.get(_ORDER, ()):
        if name in module._parameters:
            module._parameters[name] = module._parameters.pop(name)
    if not any(isinstance(parametrization[0], Mask) for _, parametrization in parametrizations_of(module)):
        module.__dict__.pop(_ORDER, None)


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model by the first names of their parameters: bool tensors, true where a weight stays.

    The tensors are the model's own buffers, not copies; :func:`apply_masks` puts them on another model of the same kind.

    Args:
        model: Any module.

    Returns:
        A dictionary, empty for a model without masks.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.prune.apply_masks(torch.nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> sparsenn.prune.masks(layer)
        {'weight': tensor([[ True, False]])}
    """
    return {entry.name: entry.mask.mask for entry in entries(model) if entry.mask is not None}


def stored_masks(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The masks in the ``state_dict`` of a masked model, for :func:`apply_masks` on a fresh one that is to load it.

    Args:
        state_dict: What ``state_dict()`` of a model returned.

    Returns:
        Masks by the names of their parameters; empty where there are none.

    Example:
        >>> import torch, sparsenn
        >>> state = sparsenn.prune.apply_masks(torch.nn.Linear(2, 1), {"bias": torch.tensor([False])}).state_dict()
        >>> fresh = sparsenn.prune.apply_masks(torch.nn.Linear(2, 1), sparsenn.prune.stored_masks(state))
        >>> fresh.load_state_dict(state)
        <All keys matched successfully>
    """
    found = ((_STORED.fullmatch(key), value) for key, value in state_dict.items())
    return {join(match["path"] or "", match["name"]): value for match, value in found if match}
