"""Penalties that make zeros: their value, their proximal map and how far a point is from stationarity."""

from sparsenn.penalties.base import Penalty
from sparsenn.penalties.factors import factor_decay, factor_decay_min
from sparsenn.penalties.grouped import GroupL1, Heads, SparseGroupL1, SquaredL1
from sparsenn.penalties.nonconvex import L0, L0_5, L2_3, MCP, SCAD
from sparsenn.penalties.ridge import rbv2, rbv2_path, weight_decay
from sparsenn.penalties.separable import L1, ElasticNet
from sparsenn.penalties.spectrum import spectral

__all__ = [
    "L0",
    "L0_5",
    "L1",
    "L2_3",
    "MCP",
    "SCAD",
    "ElasticNet",
    "GroupL1",
    "Heads",
    "Penalty",
    "SparseGroupL1",
    "SquaredL1",
    "factor_decay",
    "factor_decay_min",
    "rbv2",
    "rbv2_path",
    "spectral",
    "weight_decay",
]
