"""Layers whose weights are products of factors or composed of a spectrum, the ways to them, and indexed layers."""

from sparsenn.nn.factorized import HadamardConv1d, HadamardConv2d, HadamardLinear
from sparsenn.nn.indexed import IndexedConv1d, IndexedConv2d, IndexedConv3d, IndexedLinear
from sparsenn.nn.parametrizations import GroupProduct, HadamardProduct
from sparsenn.nn.patch_conv import PatchConv1d
from sparsenn.nn.ridge import RidgeBlock, RidgeNet
from sparsenn.nn.spectral import SpectralConv1d, SpectralConv2d, SpectralGate, SpectralLinear

__all__ = [
    "GroupProduct",
    "HadamardConv1d",
    "HadamardConv2d",
    "HadamardLinear",
    "HadamardProduct",
    "IndexedConv1d",
    "IndexedConv2d",
    "IndexedConv3d",
    "IndexedLinear",
    "PatchConv1d",
    "RidgeBlock",
    "RidgeNet",
    "SpectralConv1d",
    "SpectralConv2d",
    "SpectralGate",
    "SpectralLinear",
]
