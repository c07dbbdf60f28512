"""Layers whose weights are products of factors, and the parametrization that makes any module such a layer."""

from sparsenn.nn.factorized import HadamardConv1d, HadamardConv2d, HadamardLinear
from sparsenn.nn.parametrizations import HadamardProduct

__all__ = ["HadamardConv1d", "HadamardConv2d", "HadamardLinear", "HadamardProduct"]
