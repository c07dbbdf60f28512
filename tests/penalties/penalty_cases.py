"""Every penalty, and for each a second way to compute it: scalar by scalar, in float64, as the papers write it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sparsenn import penalties as p


@dataclass(frozen=True)
class Case:
    make: Callable[[float], p.Penalty]
    formula: Callable[[float, float], float] | None = None  # of (lam, magnitude), for separable penalties
    convex: bool = True
    shape: tuple[int, ...] = (6, 4)
    members: Callable[[torch.Tensor], list[torch.Tensor]] | None = None  # the groups of a tensor, by indexing
    group: Callable[[list[float]], float] | None = None  # of a group's values, where it is not a norm


def scad(a: float) -> Callable[[float, float], float]:
    def formula(lam: float, m: float) -> float:
        if m <= lam:
            return lam * m
        if m <= a * lam:
            return (2 * a * lam * m - m * m - lam * lam) / (2 * (a - 1))
        return lam * lam * (a + 1) / 2

    return formula


def mcp(gamma: float) -> Callable[[float, float], float]:
    return lambda lam, m: lam * m - m * m / (2 * gamma) if m <= gamma * lam else gamma * lam * lam / 2


CASES = {
    "L1": Case(p.L1, lambda lam, m: lam * m),
    "ElasticNet": Case(lambda lam: p.ElasticNet(lam, 0.3), lambda lam, m: lam * (0.3 * m + 0.35 * m * m)),
    "Ridge": Case(lambda lam: p.ElasticNet(lam, 0.0), lambda lam, m: lam * m * m / 2),
    "L0_5": Case(p.L0_5, lambda lam, m: lam * math.sqrt(m), convex=False),
    "L2_3": Case(p.L2_3, lambda lam, m: lam * m ** (2 / 3), convex=False),
    "L0": Case(p.L0, lambda lam, m: lam * (m != 0), convex=False),
    "MCP": Case(p.MCP, mcp(3.0), convex=False),
    "MCP_sharp": Case(lambda lam: p.MCP(lam, 0.4), mcp(0.4), convex=False),
    "SCAD": Case(p.SCAD, scad(3.7), convex=False),
    "SCAD_sharp": Case(lambda lam: p.SCAD(lam, 1.2), scad(1.2), convex=False),
    "rows": Case(lambda lam: p.GroupL1(lam, "rows"), members=list),
    "rows_unweighted": Case(lambda lam: p.GroupL1(lam, "rows", weighted=False), members=list),
    "columns": Case(lambda lam: p.GroupL1(lam, "columns"), members=lambda w: [w[:, j] for j in range(w.shape[1])]),
    "filters": Case(lambda lam: p.GroupL1(lam, "filters"), shape=(4, 3, 2, 2), members=list),
    "channels": Case(
        lambda lam: p.GroupL1(lam, "channels"), shape=(4, 3, 2), members=lambda w: [w[:, j] for j in range(w.shape[1])]
    ),
    "heads_in": Case(
        lambda lam: p.GroupL1(lam, p.Heads(2, 3)),
        shape=(18, 4),
        members=lambda w: [torch.cat([w[6 * b + 3 * h : 6 * b + 3 * h + 3] for b in range(3)]) for h in range(2)],
    ),
    "heads_out": Case(
        lambda lam: p.GroupL1(lam, p.Heads(2, 3, of="columns")),
        shape=(4, 6),
        members=lambda w: [w[:, 3 * h : 3 * h + 3] for h in range(2)],
    ),
    "sparse_rows": Case(lambda lam: p.SparseGroupL1(lam, 0.4, "rows"), members=list),
    "sparse_is_l1": Case(lambda lam: p.SparseGroupL1(lam, 1.0, "rows"), members=list),
    "sparse_heads": Case(
        lambda lam: p.SparseGroupL1(lam, 0.1, p.Heads(2, 3, of="columns"), weighted=False),
        shape=(4, 6),
        members=lambda w: [w[:, 3 * h : 3 * h + 3] for h in range(2)],
    ),
    "squared_rows": Case(lambda lam: p.SquaredL1(lam, "rows"), members=list, group=lambda v: math.fsum(map(abs, v)) ** 2),
}
SEPARABLE = [name for name, case in CASES.items() if case.formula]
GROUPED = [name for name, case in CASES.items() if case.members]
QUADRATIC = ("ElasticNet", "Ridge", "squared_rows")  # they shrink large weights by a share
CONVEX = [name for name, case in CASES.items() if case.convex]


def reference_value(name: str, lam: float, w: torch.Tensor) -> float:
    """P(w) by its formula, in float64."""
    case = CASES[name]
    if case.formula:
        return math.fsum(case.formula(lam, abs(x)) for x in w.double().flatten().tolist())
    penalty = case.make(lam)
    tau = getattr(penalty, "l1_ratio", 0.0)
    total = 0.0
    for group in case.members(w.double()):
        values = group.flatten().tolist()
        if case.group:
            total += case.group(values)
            continue
        weight = math.sqrt(len(values)) if penalty.weighted else 1.0
        total += tau * math.fsum(map(abs, values)) + (1 - tau) * weight * float(np.linalg.norm(values))
    return lam * total


def weights(name: str, scale: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Weights of both signs, some of them 0, and a whole group of zeros."""
    generator = torch.Generator().manual_seed(seed)
    w = scale * torch.randn(CASES[name].shape, generator=generator, dtype=torch.float64)
    w[torch.rand(w.shape, generator=generator) < 0.2] = 0
    if CASES[name].members:
        CASES[name].members(w)[0].zero_()
    return w.to(dtype)
