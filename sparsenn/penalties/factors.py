"""The L2 penalty on factors, and the penalty on the weight that it is at its minimum."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsenn.nn.parametrizations import GroupProduct, HadamardProduct, factors_of, hadamard_parametrizations_of
from sparsenn.nn.selection import check_module
from sparsenn.ops.reference import accumulator


def factor_decay(module: nn.Module) -> Tensor:
    r"""The mean of the factors' squared norms, summed over all factorized tensors, to be multiplied by λ.

    .. math:: \sum_w \frac1D \sum_{d=1}^D \|\omega_d\|_2^2

    An optimizer's weight decay of 2λ/D on the factors has the same gradient; as a term of the loss it also takes models whose
    tensors have different depths. Factors that groups share (:class:`sparsenn.nn.GroupProduct`) count like the others.

    Args:
        module: a module with factorized parameters; tied ones count once, others not at all.

    Returns:
        A 0-d tensor; float32 for half types.

    Raises:
        ValueError: for a module without a factorized parameter.

    Source: Kolb et al. 2025, Equation 4.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.HadamardLinear(2, 1, bias=False, depth=2, factor_init="root")
        >>> layer.weight = torch.tensor([[4.0, -9.0]])
        >>> sparsenn.penalties.factor_decay(layer).item()  # (4 + 9 + 4 + 9) / 2
        13.0
    """
    terms = [
        torch.stack([accumulator(factor).square().sum() for factor in factors_of(each)]).mean()
        for each in _factorized("factor_decay", module)
    ]
    return torch.stack(terms).sum()


def factor_decay_min(module: nn.Module) -> Tensor:
    r"""The least value of `factor_decay` over all factors with the same products: what a balanced net has.

    .. math:: \sum_w \sum_i |w_i|^{2/D} \qquad\text{or}\qquad \sum_w \sum_G \|w_G\|_2^{2/D}

    the second where the groups G of a weight share factors. By the means' inequality no other factors have less; the excess of
    `factor_decay` is the misalignment, of factors of one shape :func:`sparsenn.metrics.misalignment`.

    Args:
        module: as for `factor_decay`.

    Returns:
        A 0-d tensor; float32 for half types. Its gradient at a zero weight or group is 0.

    Raises:
        ValueError: for a module without a factorized parameter.

    Source: Kolb et al. 2025, Theorem 1; for groups ours, see docs/math/deep_weight_factorization.md.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.factorize(torch.nn.Linear(2, 2, bias=False), depth=2, groups="rows")
        >>> layer.weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> round(sparsenn.penalties.factor_decay_min(layer).item(), 5)
        5.0
    """
    return torch.stack([_least(each) for each in _factorized("factor_decay_min", module)]).sum()


def _factorized(name: str, module: nn.Module) -> list[parametrize.ParametrizationList]:
    check_module(name, module)
    found = {id(each): each for each in _lists(module)}
    if not found:
        raise ValueError(f"{name}: {type(module).__name__} has no factorized parameter; sparsenn.factorize makes some")
    return list(found.values())


def _lists(module: nn.Module) -> Iterator[parametrize.ParametrizationList]:
    for own in module.modules():
        for _, each in hadamard_parametrizations_of(own):
            yield each


def _least(each: parametrize.ParametrizationList) -> Tensor:
    product = each[0]
    assert isinstance(product, HadamardProduct)
    w = accumulator(product(*factors_of(each)))
    if isinstance(product, GroupProduct):
        sizes = _safe_power(w.movedim(product.dim, 0).flatten(1).square().sum(1), 1 / product.depth)
    else:
        sizes = _safe_power(w.square(), 1 / product.depth)
    return sizes.sum()


def _safe_power(squares: Tensor, power: float) -> Tensor:
    """A power of squares, whose gradient at 0 is 0."""
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares) ** power)
