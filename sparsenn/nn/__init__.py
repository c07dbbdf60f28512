"""Layers whose weights are products of factors or composed of a spectrum, and the ways to them from plain layers."""

from sparsenn.nn.factorized import HadamardConv1d, HadamardConv2d, HadamardLinear
from sparsenn.nn.parametrizations import HadamardProduct
from sparsenn.nn.spectral import SpectralConv1d, SpectralConv2d, SpectralGate, SpectralLinear

__all__ = [
    "HadamardConv1d",
    "HadamardConv2d",
    "HadamardLinear",
    "HadamardProduct",
    "SpectralConv1d",
    "SpectralConv2d",
    "SpectralGate",
    "SpectralLinear",
]
