r"""Balanced factors as one signed root a weight, with one momentum: how they lie in a parameter's state, and the way there.

Factors of one magnitude whose momenta are equal up to the factors' signs, :math:`\omega_d = \sigma_d m` and
:math:`v_d = \sigma_d u`, stay so in every step (Kolb et al. 2025, Lemma 4). With :math:`s = \prod_d \sigma_d` the weight is
:math:`s\, m^D`, and the root r = s m with the momentum s u says all of it: :math:`w = r |r|^{D-1}`. Where m crosses 0, an odd
power changes its sign with it. At even D the weight keeps the sign s, and the root goes on as the same factors and momenta, all
negated, would: reflected at 0.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from sparsenn import init
from sparsenn._numbers import plain
from sparsenn.init import stream
from sparsenn.ops import hadamard_product
from sparsenn.optim import common, shards
from sparsenn.optim.memory import staggered_zeros

EVERY = 100  # steps between two looks at the balance, which takes about as long as a step of training
_ROOT, _MOMENTUM, _DEPTH = "root", "root_momentum", "root_depth"
_PIECE = 1 << 17


@dataclass(frozen=True)
class BalanceSwitch:
    """What it meant for a parameter that its balanced factors became one root; made by `FactorizedSGD.balance`.

    Attributes:
        parameter: Its number in the optimizer, over all groups.
        shape: Its shape.
        factors: How far its factors were from balance, relative to their norm, see `FactorizedSGD.balance`.
        momenta: The same of their momenta; 0 where there are none.
        jump: The largest change of a weight.
        relative_jump: The norm of the change of all its weights over their norm; 0 where they all are 0.
    """

    parameter: int
    shape: tuple[int, ...]
    factors: float
    momenta: float
    jump: float
    relative_jump: float


_FIGURES = ("factors", "momenta", "jump", "relative_jump")


def is_balanced(state: dict[str, Any]) -> bool:
    """Whether a parameter's state holds a root instead of factors."""
    return _ROOT in state


def moved(state: dict[str, Any]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """The root in a state and its momentum, where there is one, as `Factorized` takes factors and moments."""
    return [state[_ROOT]], {"momentum": [state[_MOMENTUM]]} if _MOMENTUM in state else {}


def depth_of(state: dict[str, Any]) -> int:
    """How many factors the root in a state stands for."""
    depth: int = state[_DEPTH]
    return depth


def is_tensor_of(name: str) -> bool:
    """Whether a state's entry of this name is a root's, of the parameter's shape."""
    return name in (_ROOT, _MOMENTUM)


def fresh_state(p: Tensor, depth: int) -> dict[str, Any]:
    """A state with a root that is 0."""
    return {_ROOT: staggered_zeros(p, common.state_dtype(p), 0), _DEPTH: depth}


def add_momentum(p: Tensor, state: dict[str, Any]) -> None:
    """Give a root a momentum that is 0."""
    state[_MOMENTUM] = staggered_zeros(p, common.state_dtype(p), 1)


def factors_of(root: Tensor, depth: int) -> list[Tensor]:
    """The factors that a root stands for: itself, then its magnitude."""
    return [root, *[root.abs()] * (depth - 1)] if depth > 1 else [root]


def product(own: Sequence[Tensor], depth: int) -> Tensor:
    """The weight of ``depth`` factors, or of a root."""
    return hadamard_product(own if len(own) == depth else factors_of(own[0], depth))


def fill_root_(root: Tensor, weight: Tensor, depth: int) -> None:
    """Set a root to that of a weight."""
    init.root_([root, *[torch.empty_like(root)] * (depth - 1)], weight)


def imbalances(factors: Sequence[Tensor], momenta: Sequence[Tensor]) -> Tensor:
    """How far factors and momenta are from balanced ones, relative to their norms: a float64 tensor of two numbers."""
    magnitudes = _spread([factor.abs() for factor in factors])
    if not momenta:
        return torch.stack([magnitudes, torch.zeros_like(magnitudes)])
    return torch.stack([magnitudes, _spread([_signed(v, f) for v, f in zip(momenta, factors, strict=True)])])


def _signed(x: Tensor, by: Tensor) -> Tensor:
    return torch.where(by.signbit(), -x, x)


def _mean(values: Sequence[Tensor]) -> Tensor:
    """The mean of tensors; of equal ones it is they, to the bit."""
    first, *others = values
    return first + functools.reduce(torch.add, [x - first for x in others]) / len(values) if others else first


def _spread(values: Sequence[Tensor]) -> Tensor:
    """The distance of tensors from their mean, relative to their norm."""
    mean = _mean(values)
    distance, norm = _norm([x - mean for x in values]), _norm(values)
    return distance / torch.where(norm == 0, 1.0, norm)


def _norm(values: Sequence[Tensor]) -> Tensor:
    return vector_norm(torch.stack([vector_norm(x, dtype=torch.float64) for x in values]))


@torch.no_grad()
def switch(
    p: Tensor,
    state: dict[str, Any],
    factors: Sequence[Tensor],
    momenta: Sequence[Tensor],
    imbalance: Sequence[float],
) -> None:
    """Put a root in the place of a state's factors, which keeps the weight to rounding, and one momentum in that of theirs.

    The memory of both is freed. The state keeps what that did to the weight, for `report`.
    """
    depth = len(factors)
    fresh = fresh_state(p, depth)
    for piece in stream.pieces(p.shape, _PIECE):
        own = [factor[piece].double() for factor in factors]  # a product of small float32 factors may not exist in float32
        fill_root_(fresh[_ROOT][piece], functools.reduce(torch.mul, own), depth)
    if momenta:
        add_momentum(p, fresh)
        fresh["momentum_started"] = state["momentum_started"]
        mean = _mean([_signed(v, f) for v, f in zip(momenta, factors, strict=True)])
        fresh[_MOMENTUM].copy_(_signed(mean, fresh[_ROOT]))
    before = p.detach().clone()
    p.copy_(product([fresh[_ROOT]], depth))
    change, norm = (p.detach().double() - before.double()), float(vector_norm(before, dtype=torch.float64))
    jump = float(change.abs().amax()) if change.numel() else 0.0
    figures = (*imbalance, jump, float(vector_norm(change)) / norm if norm else 0.0)
    fresh.update({f"switch_{name}": value for name, value in zip(_FIGURES, figures, strict=True)})
    state.clear()
    state.update(fresh)


@torch.no_grad()
def switch_back(state: dict[str, Any]) -> None:
    """Put the factors that a root stands for in its place, and the momenta that are theirs."""
    root, depth = state.pop(_ROOT), state.pop(_DEPTH)
    factors = [factor.clone() for factor in factors_of(root, depth)]
    state.update({f"factor_{d}": factor for d, factor in enumerate(factors)})
    if _MOMENTUM in state:
        # s u for a root s m; the factors are s m and |m|, and each wants its own sign times u
        magnitude = _signed(state.pop(_MOMENTUM), root)
        state.update({f"momentum_{d}": _signed(magnitude, factor).clone() for d, factor in enumerate(factors)})
    for name in _FIGURES:
        state.pop(f"switch_{name}", None)


def report(number: int, p: Tensor, state: dict[str, Any]) -> list[BalanceSwitch]:
    """What a state says of its switch; nothing where there was none."""
    if f"switch_{_FIGURES[0]}" not in state:
        return []
    return [BalanceSwitch(number, tuple(p.shape), *(float(state[f"switch_{name}"]) for name in _FIGURES))]


def check_state(owner: str, depth: int, entries: dict[str, Any]) -> None:
    """Whether a saved state is one of a root that stands for ``depth`` factors, and of nothing else."""
    if entries.get(_DEPTH) != depth or "factor_0" in entries:
        raise ValueError(
            f"{owner}.load_state_dict: depth {depth} needs a root of that depth; the state has one of {entries.get(_DEPTH)}"
        )


def check_whole(what: str, p: Tensor) -> None:
    """Refuse a parameter whose shards would have to agree on their balance."""
    if shards.is_sharded(p):
        raise ValueError(
            f"{what} is sharded; balance is looked for in whole parameters; take balanced=True with factor_init='root', or"
            " False"
        )


def check_options(owner: str, group: dict[str, Any]) -> None:
    """The options of a group that say when factors become roots."""
    chosen = group["balanced"]
    if not (isinstance(chosen, bool) or chosen == "auto"):
        raise ValueError(f"{owner}: balanced is {chosen!r}; it takes False, True or 'auto'")
    if chosen is True and group["factor_init"] != "root":
        raise ValueError(
            f"{owner}: balanced=True with factor_init {group['factor_init']!r}, whose factors are not balanced; it takes"
            " factor_init='root', or balanced='auto' to wait until they are"
        )
    check_tolerances(owner, [group["balance_tolerance"]])
    group["balance_tolerance"] = plain(group["balance_tolerance"])


def check_tolerances(owner: str, tolerances: Iterable[Any]) -> None:
    """Refuse what no imbalance can be compared with."""
    for tolerance in tolerances:
        number = plain(tolerance)
        if number is None or not number >= 0:  # nor NaN
            raise ValueError(f"{owner}: balance_tolerance is {tolerance!r}; it takes a number >= 0")
