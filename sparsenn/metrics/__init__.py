"""What became of the weights: how many are zero, and how balanced their factors are."""

from sparsenn.metrics.factors import misalignment
from sparsenn.metrics.sparsity import LayerSparsity, SparsityReport, sparsity, sparsity_report

__all__ = ["LayerSparsity", "SparsityReport", "misalignment", "sparsity", "sparsity_report"]
