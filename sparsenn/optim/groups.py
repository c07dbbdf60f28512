"""Who is penalised, and by what: parameter groups chosen by kind, name or module type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sparsenn.penalties import Penalty

Selector = str | type[nn.Module]
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first: batch and instance normalization
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_KINDS = ("bias", "norm", "embedding")


@dataclass(frozen=True, slots=True)
class NamedParameter:
    """A parameter with every name under which a model has it, and the modules that own it."""

    tensor: Tensor
    names: tuple[str, ...]
    owners: tuple[nn.Module, ...]

    @property
    def name(self) -> str:
        """The first of its names, as ``model.named_parameters()`` gives it."""
        return self.names[0]

    def matches(self, selector: Selector) -> bool:
        """Whether a kind, a name pattern or a module type means this parameter, under any of its names."""
        if isinstance(selector, type):
            return any(isinstance(owner, selector) for owner in self.owners)
        if selector == "bias":
            return any(_is_bias(name) for name in self.names)
        if selector == "norm":
            return any(isinstance(owner, _NORMS) for owner in self.owners)
        if selector == "embedding":
            return any(isinstance(owner, _EMBEDDINGS) for owner in self.owners)
        return any(fnmatchcase(name, selector) for name in self.names)


def param_groups(
    model: nn.Module,
    *,
    lam: float | Tensor | None = None,
    penalties: Penalty | Mapping[Selector, Penalty] | None = None,
    exclude: Iterable[Selector] = ("bias", "norm"),
) -> list[dict[str, Any]]:
    """Parameter groups that say who is penalised: biases and normalization layers are not, unless asked for.

    With ``lam``, two groups: the penalised parameters with that ``"lam"``, and the others with ``"lam": 0.0``, for
    `FactorizedSGD`, `FactorizedAdam`, `ProxSGD` and `Proximal`. With ``penalties``, one group for each penalty, with
    ``"penalty"`` and its ``"lam"``, and one for the others, for `Proximal`.

    A selector is

    - a kind: ``"bias"`` (named bias, bias_*, or *_bias), ``"norm"`` (all parameters of batch, instance, layer, group and RMS
      normalization), ``"embedding"`` (of ``nn.Embedding`` and ``nn.EmbeddingBag``);
    - a pattern for the whole name with the wildcards of the shell, such as ``"fc1.weight"`` or ``"layers.*"``;
    - a module type, such as ``nn.Conv2d``: the parameters that modules of this type own themselves.

    A parameter that several modules share comes once, and a selector means it if it means any of its names. Frozen parameters
    are listed as ``model.parameters()`` lists them. Empty groups are left out.

    Args:
        model: Any module.
        lam: λ of the penalised parameters. Give this or ``penalties``.
        penalties: One penalty for all, or one for each selector, of which the first that means a parameter counts; parameters
            that none means are not penalised.
        exclude: Selectors of parameters that are not penalised, whatever ``penalties`` says.

    Returns:
        Groups for an optimizer, in the order of ``penalties``, the unpenalised last.

    Raises:
        ValueError: for a name that means no parameter (all names are listed), for a penalty that none is left for, if nothing
            is left to penalise, for a penalty that doesn't fit its parameter, and unless one of ``lam`` and ``penalties`` is
            given.

    Example:
        >>> import sparsenn
        >>> from sparsenn.penalties import L1, GroupL1
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
        >>> [(len(g["params"]), g["lam"]) for g in sparsenn.optim.param_groups(net, lam=1e-3)]
        [(2, 0.001), (4, 0.0)]
        >>> groups = sparsenn.optim.param_groups(net, penalties={nn.Conv2d: GroupL1(1e-2, "filters"), "*": L1(1e-4)})
        >>> [(len(g["params"]), g["penalty"]) for g in groups]
        [(1, GroupL1(lam=0.01, groups='filters', weighted=True)), (1, L1(lam=0.0001)), (4, None)]
    """
    if (lam is None) == (penalties is None):
        raise ValueError("param_groups: give either lam or penalties")
    parameters = named_parameters(model)
    excluded = selected(parameters, exclude, "exclude")
    free = [p.tensor for i, p in enumerate(parameters) if i in excluded]
    left = [p for i, p in enumerate(parameters) if i not in excluded]
    if not left:
        raise ValueError(f"param_groups: exclude leaves nothing to penalise of {_listed(parameters)}")
    if penalties is None:
        groups: list[dict[str, Any]] = [{"params": [p.tensor for p in left], "lam": lam}, {"params": free, "lam": 0.0}]
    else:
        chosen, rest = assign(left, penalties)
        groups = [{"params": [p.tensor for p in own], "penalty": penalty, "lam": penalty.lam} for penalty, own in chosen]
        groups.append({"params": [*free, *(p.tensor for p in rest)], "penalty": None, "lam": 0.0})
    return [group for group in groups if group["params"]]


def assign(
    parameters: list[NamedParameter], penalties: Penalty | Mapping[Selector, Penalty]
) -> tuple[list[tuple[Penalty, list[NamedParameter]]], list[NamedParameter]]:
    """Each penalty with the parameters that it is for, and the parameters that none is for."""
    table = {"*": penalties} if isinstance(penalties, Penalty) else dict(penalties)
    chosen: list[tuple[Penalty, list[NamedParameter]]] = []
    rest = parameters
    for selector, penalty in table.items():
        if not isinstance(penalty, Penalty):
            raise ValueError(f"penalties: the one for {_shown(selector)} is {penalty!r}; it takes a sparsenn.penalties.Penalty")
        _check_selector(selector, "penalties")
        own = [p for p in rest if p.matches(selector)]
        if not own:
            raise ValueError(f"penalties: {_shown(selector)} means no parameter that is left of {_listed(parameters)}")
        for p in own:
            penalty.check_fits(p.tensor, p.name)
        rest = [p for p in rest if not p.matches(selector)]
        chosen.append((penalty, own))
    return chosen, rest


def named_parameters(model: nn.Module) -> list[NamedParameter]:
    """Every parameter of a model once, in the model's order."""
    found: dict[int, tuple[Tensor, list[str], list[nn.Module]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, p in module._parameters.items():
            if p is not None:
                _, names, owners = found.setdefault(id(p), (p, [], []))
                names.append(f"{prefix}.{name}" if prefix else name)
                owners.append(_owner(model, prefix, module))
    return [NamedParameter(p, tuple(names), tuple(owners)) for p, names, owners in found.values()]


def _owner(model: nn.Module, prefix: str, module: nn.Module) -> nn.Module:
    """The module itself; of a parametrized tensor's originals the module that has the tensor."""
    outside, inside, _ = f".{prefix}.".partition(".parametrizations.")
    return model.get_submodule(outside.strip(".")) if inside else module


def _is_bias(name: str) -> bool:
    *path, last = name.split(".")
    if len(path) > 1 and path[-2] == "parametrizations":  # of which the originals are called original, original0, …
        last = path[-1]
    return last == "bias" or last.startswith("bias_") or last.endswith("_bias")


def selected(
    parameters: list[NamedParameter], selectors: Iterable[Selector], argument: str, caller: str = "param_groups"
) -> set[int]:
    """Positions of the parameters that any of the selectors means; a name that means none is an error."""
    if isinstance(selectors, str):
        raise ValueError(f"{caller}: {argument} is the string {selectors!r}; it takes a tuple of selectors")
    found: set[int] = set()
    for selector in selectors:
        _check_selector(selector, argument, caller)
        own = {i for i, p in enumerate(parameters) if p.matches(selector)}
        if not own and isinstance(selector, str) and selector not in _KINDS:
            raise ValueError(
                f"{caller}: {argument} has {selector!r}, which is no kind ({', '.join(_KINDS)}) and the name of no"
                f" parameter; there are {_listed(parameters)}"
            )
        found |= own
    return found


def _check_selector(selector: Any, argument: str, caller: str = "param_groups") -> None:
    if not isinstance(selector, str) and not (isinstance(selector, type) and issubclass(selector, nn.Module)):
        raise ValueError(
            f"{caller}: {argument} has {selector!r}; it takes kinds ({', '.join(_KINDS)}), name patterns and module types"
        )


def _shown(selector: Selector) -> str:
    return repr(selector) if isinstance(selector, str) else selector.__name__


def _listed(parameters: list[NamedParameter]) -> str:
    return ", ".join(p.name for p in parameters) or "no parameters"
