"""What became of the weights: how many are zero, how balanced their factors are, how near they are to stationary."""

from sparsenn.metrics.factors import misalignment
from sparsenn.metrics.paths import path_magnitudes
from sparsenn.metrics.recovery import SupportRecovery, nonzero_counts, support_recovery, teacher_distance
from sparsenn.metrics.sparsity import LayerSparsity, SparsityReport, sparsity, sparsity_report
from sparsenn.metrics.spectrum import (
    NEGLIGIBLE,
    RidgeReport,
    effective_rank,
    product_singular_values,
    ridge_report,
    sorted_by_norm,
)
from sparsenn.metrics.stationarity import LayerResidual, StationarityReport, kkt_residual

__all__ = [
    "NEGLIGIBLE",
    "LayerResidual",
    "LayerSparsity",
    "RidgeReport",
    "SparsityReport",
    "StationarityReport",
    "SupportRecovery",
    "effective_rank",
    "kkt_residual",
    "misalignment",
    "nonzero_counts",
    "path_magnitudes",
    "product_singular_values",
    "ridge_report",
    "sorted_by_norm",
    "sparsity",
    "sparsity_report",
    "support_recovery",
    "teacher_distance",
]
