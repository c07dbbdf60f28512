"""Optimizers that make networks sparse while they train."""

from sparsenn.optim.factorized_sgd import FactorizedSGD
from sparsenn.optim.prox_sgd import ProxSGD

__all__ = ["FactorizedSGD", "ProxSGD"]
