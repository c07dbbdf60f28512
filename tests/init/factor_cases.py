"""Factors to fill, written once for the tests of both files."""

from __future__ import annotations

import math

import torch
from scipy import stats

from sparsenn import init

N = 200_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def empty(depth: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.full(shape, math.nan, dtype=dtype) for _ in range(depth)]


def product(factors: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([factor.detach().double() for factor in factors]).prod(0)


def filled(weight: torch.Tensor, method: str, depth: int, *, dtype: torch.dtype | None = None, **kwargs) -> list[torch.Tensor]:
    factors = [torch.full_like(weight, math.nan, dtype=dtype) for _ in range(depth)]
    init.fill_(factors, weight, method, **kwargs)
    return factors


def p_value(sample: torch.Tensor, cdf) -> float:
    return stats.kstest(sample.double().flatten().numpy(), cdf).pvalue
