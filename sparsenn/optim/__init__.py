"""Optimizers that make networks sparse while they train."""

from sparsenn.optim.factorized_sgd import FactorizedSGD

__all__ = ["FactorizedSGD"]
