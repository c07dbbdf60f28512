"""Operators: a schema, a reference in plain PyTorch, and fused kernels over it."""

from sparsenn.ops.hadamard import hadamard_product
from sparsenn.ops.library import backend
from sparsenn.ops.permutation import permutation
from sparsenn.ops.ridge_norm import ridge_norm
from sparsenn.ops.soft_threshold import soft_threshold
from sparsenn.ops.spectral_linear import spectral_linear
from sparsenn.ops.spectral_weight import spectral_weight
from sparsenn.ops.stacked_steps import PatchLayer, RunSettings, stacked_steps_, stacked_tables

__all__ = [
    "PatchLayer",
    "RunSettings",
    "backend",
    "hadamard_product",
    "permutation",
    "ridge_norm",
    "soft_threshold",
    "spectral_linear",
    "spectral_weight",
    "stacked_steps_",
    "stacked_tables",
]
