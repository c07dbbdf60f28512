"""Who is penalised, and by what: parameter groups chosen by kind, name or module type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparsenn.nn.selection import Selector, Selectors, check_selector, join, names_parameter, selected
from sparsenn.penalties import Penalty


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
        return names_parameter(selector, self.names, self.owners)


def param_groups(
    model: nn.Module,
    *,
    lam: float | Tensor | None = None,
    penalties: Penalty | Mapping[Selector, Penalty] | None = None,
    exclude: Selectors = ("bias", "norm"),
) -> list[dict[str, Any]]:
    """Parameter groups that say who is penalised: biases and normalization layers are not, unless asked for.

    With ``lam``, two groups: the penalised parameters with that ``"lam"``, and the others with ``"lam": 0.0``, for
    `FactorizedSGD`, `FactorizedAdam`, `ProxSGD` and `Proximal`. With ``penalties``, one group for each penalty, with
    ``"penalty"`` and its ``"lam"``, and one for the others, for `Proximal`.

    A selector is

    - a kind: ``"bias"`` (named bias, bias_*, or *_bias), ``"norm"`` (all parameters of batch, instance, layer, group and RMS
      normalization), ``"embedding"`` (of ``nn.Embedding`` and ``nn.EmbeddingBag``);
    - a pattern for the whole name with the wildcards of the shell, such as ``"fc1.weight"`` or ``"layers.*"``; ``"*.bias"``
      means a bias of the model itself too;
    - a module type, such as ``nn.Conv2d``: the parameters that modules of this type own themselves (`sparsenn.factorize` takes
      all that lies inside).

    A parameter that several modules share comes once, and a selector means it if it means any of its names. Frozen parameters
    are listed as ``model.parameters()`` lists them. Empty groups are left out.

    Args:
        model: Any module.
        lam: λ of the penalised parameters. Give this or ``penalties``.
        penalties: One penalty for all, or one for each selector, of which the first that means a parameter counts; parameters
            that none means are not penalised.
        exclude: The selector or selectors of parameters that are not penalised, whatever ``penalties`` says.

    Returns:
        Groups for an optimizer, in the order of ``penalties``, the unpenalised last.

    Raises:
        ValueError: for a pattern that means no parameter (all names are listed), for a penalty that none is left for, if
            nothing is left to penalise, for a penalty that doesn't fit its parameter, and unless one of ``lam`` and
            ``penalties`` is given.

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
    excluded = selected(parameters, exclude, "param_groups: exclude")
    free = [p.tensor for i, p in enumerate(parameters) if i in excluded]
    left = [p for i, p in enumerate(parameters) if i not in excluded]
    if not left:
        raise ValueError(f"param_groups: exclude leaves nothing to penalise of {_listed(parameters)}")
    if penalties is None:
        groups: list[dict[str, Any]] = [{"params": [p.tensor for p in left], "lam": lam}, {"params": free, "lam": 0.0}]
    else:
        chosen, rest = assign(left, penalties, "param_groups: penalties")
        groups = [{"params": [p.tensor for p in own], "penalty": penalty, "lam": penalty.lam} for penalty, own in chosen]
        groups.append({"params": [*free, *(p.tensor for p in rest)], "penalty": None, "lam": 0.0})
    return [group for group in groups if group["params"]]


def assign(
    parameters: list[NamedParameter], penalties: Penalty | Mapping[Selector, Penalty], where: str
) -> tuple[list[tuple[Penalty, list[NamedParameter]]], list[NamedParameter]]:
    """Each penalty with the parameters that it is for, and the parameters that none is for; ``where`` is for errors."""
    table = {"*": penalties} if isinstance(penalties, Penalty) else dict(penalties)
    chosen: list[tuple[Penalty, list[NamedParameter]]] = []
    rest = parameters
    for selector, penalty in table.items():
        if not isinstance(penalty, Penalty):
            raise ValueError(f"{where} has {penalty!r} for {_shown(selector)}; it takes a sparsenn.penalties.Penalty")
        check_selector(selector, where)
        own = [p for p in rest if p.matches(selector)]
        if not own:
            raise ValueError(f"{where} has {_shown(selector)}, which means no parameter that is left of {_listed(parameters)}")
        for p in own:
            penalty.check_fits(p.tensor, p.name)
        rest = [p for p in rest if not p.matches(selector)]
        chosen.append((penalty, own))
    return chosen, rest


def named_parameters(model: nn.Module) -> list[NamedParameter]:
    """Every parameter of a model once, in the model's order."""
    found: dict[int, tuple[Tensor, list[str], list[nn.Module]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            _, names, owners = found.setdefault(id(p), (p, [], []))
            names.append(join(prefix, name))
            owners.append(_owner(model, prefix, module))
    return [NamedParameter(p, tuple(names), tuple(owners)) for p, names, owners in found.values()]


def _owner(model: nn.Module, prefix: str, module: nn.Module) -> nn.Module:
    """The module itself; of a parametrized tensor's originals the module that has the tensor."""
    outside, inside, _ = f".{prefix}.".partition(".parametrizations.")
    return model.get_submodule(outside.strip(".")) if inside else module


def _shown(selector: Selector) -> str:
    return selector.__name__ if isinstance(selector, type) else repr(selector)


def _listed(parameters: list[NamedParameter]) -> str:
    return ", ".join(p.name for p in parameters) or "no parameters"
