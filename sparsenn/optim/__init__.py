"""Optimizers that make networks sparse while they train, and who is penalised by how much."""

from sparsenn.optim.factorized_sgd import FactorizedSGD
from sparsenn.optim.groups import param_groups
from sparsenn.optim.prox_sgd import ProxSGD
from sparsenn.optim.proximal import Proximal

__all__ = ["FactorizedSGD", "ProxSGD", "Proximal", "param_groups"]
