"""Layers whose weights are products of factors, the parametrization that makes any module such a layer, and indexed layers."""

from sparsenn.nn.factorized import HadamardConv1d, HadamardConv2d, HadamardLinear
from sparsenn.nn.indexed import IndexedConv1d, IndexedConv2d, IndexedConv3d, IndexedLinear
from sparsenn.nn.parametrizations import HadamardProduct

__all__ = [
    "HadamardConv1d",
    "HadamardConv2d",
    "HadamardLinear",
    "HadamardProduct",
    "IndexedConv1d",
    "IndexedConv2d",
    "IndexedConv3d",
    "IndexedLinear",
]
