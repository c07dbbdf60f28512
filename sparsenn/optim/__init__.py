"""Optimizers that make networks sparse while they train, and who is penalised by how much."""

from sparsenn.optim.balance import BalanceSwitch
from sparsenn.optim.factorized_adam import FactorizedAdam
from sparsenn.optim.factorized_sgd import FactorizedSGD
from sparsenn.optim.groups import param_groups
from sparsenn.optim.measures import FactorMeasures
from sparsenn.optim.path import PathPoint, lambda_max, lambda_path, regularization_path
from sparsenn.optim.prox_sgd import ProxSGD
from sparsenn.optim.proximal import Proximal
from sparsenn.optim.ridge import ridge_proximal
from sparsenn.optim.target_sparsity import TargetSparsity

__all__ = [
    "BalanceSwitch",
    "FactorMeasures",
    "FactorizedAdam",
    "FactorizedSGD",
    "PathPoint",
    "ProxSGD",
    "Proximal",
    "TargetSparsity",
    "lambda_max",
    "lambda_path",
    "param_groups",
    "regularization_path",
    "ridge_proximal",
]
