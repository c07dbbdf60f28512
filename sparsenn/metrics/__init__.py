"""What became of the weights: how many are zero, how balanced their factors are, how near they are to stationary."""

from sparsenn.metrics.factors import misalignment
from sparsenn.metrics.paths import path_magnitudes
from sparsenn.metrics.sparsity import LayerSparsity, SparsityReport, sparsity, sparsity_report
from sparsenn.metrics.stationarity import LayerResidual, StationarityReport, kkt_residual

__all__ = [
    "LayerResidual",
    "LayerSparsity",
    "SparsityReport",
    "StationarityReport",
    "kkt_residual",
    "misalignment",
    "path_magnitudes",
    "sparsity",
    "sparsity_report",
]
