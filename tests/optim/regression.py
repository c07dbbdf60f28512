"""Linear and logistic regression as problems of a smooth loss and a penalty, and skglm's solution of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsenn.optim import FactorizedSGD


@dataclass(frozen=True)
class Problem:
    """A smooth loss of the weight, its gradient, a bound on its curvature, and the penalty."""

    loss: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    curvature: float
    lam: float
    size: int

    def objective(self, weight: Tensor, power: float = 1.0) -> Tensor:
        """Loss + lam sum |w|^power, of each row."""
        return self.loss(weight) + self.lam * weight.abs().pow(power).sum(-1)


def wide() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 100))
    return x, x[:, :5] @ rng.standard_normal(5) + 0.1 * rng.standard_normal(40)


def correlated() -> tuple[np.ndarray, np.ndarray]:
    """Columns that correlate by 0.9 with each other."""
    rng = np.random.default_rng(0)
    x = 0.95 * rng.standard_normal((100, 1)) + (1 - 0.95**2) ** 0.5 * rng.standard_normal((100, 30))
    return x, x[:, ::6] @ rng.standard_normal(5) + 0.1 * rng.standard_normal(100)


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_diabetes

    return load_diabetes(return_X_y=True)


def california() -> tuple[np.ndarray, np.ndarray]:
    file = Path(os.environ.get("SPARSENN_DATA", ""), "california-housing", "housing.csv.gz")
    table = np.genfromtxt(file, delimiter=",", skip_header=1, usecols=range(9))
    table = table[np.isfinite(table).all(1)]  # 207 rows lack a number
    return table[:, :8], table[:, 8]


DESIGNS = {"wide": wide, "correlated": correlated, "diabetes": diabetes, "california": california}


def standardized(design: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = DESIGNS[design]()
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def least_squares(x: np.ndarray, y: np.ndarray, share: float) -> Problem:
    """|y - X w|^2 / (2 n), as scikit-learn has it; lam is a share of the one from which on the solution is 0."""
    gram, moment, power = (torch.from_numpy(np.asarray(a / len(y))) for a in (x.T @ x, x.T @ y, y @ y))
    return Problem(
        lambda w: ((w @ gram) * w).sum(-1) / 2 - w @ moment + power / 2,
        lambda w: w @ gram - moment,
        float(torch.linalg.eigvalsh(gram)[-1]),
        share * float(moment.abs().max()),
        x.shape[1],
    )


def logistic(x: np.ndarray, y: np.ndarray, share: float) -> Problem:
    """mean log(1 + exp(-y X w)) for y of 1 and -1."""
    signed = torch.from_numpy(x * y[:, None])
    n = len(y)
    return Problem(
        lambda w: nn.functional.softplus(-(signed @ w)).mean(),
        lambda w: -signed.T @ torch.sigmoid(-(signed @ w)) / n,
        float(torch.linalg.eigvalsh(signed.T @ signed / n)[-1]) / 4,
        share * float((signed.T @ torch.full((n,), 0.5, dtype=torch.float64) / n).abs().max()),
        x.shape[1],
    )


def skglm_fit(x: np.ndarray, y: np.ndarray, datafit: str, penalty: str, lam: float) -> np.ndarray:
    import skglm

    solver = skglm.solvers.AndersonCD(ws_strategy="fixpoint", fit_intercept=False, tol=1e-12, max_iter=500)
    model = skglm.GeneralizedLinearEstimator(getattr(skglm.datafits, datafit)(), getattr(skglm.penalties, penalty)(lam), solver)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 1e-12 may be below the rounding of a large problem
        return model.fit(x, y).coef_.ravel()


def dense_solution(x: np.ndarray, y: np.ndarray) -> Tensor:
    """Ridge regression with |w|^2 / 200: what a dense training ends in."""
    gram = x.T @ x / len(y) + 0.01 * np.eye(x.shape[1])
    return torch.from_numpy(np.linalg.solve(gram, x.T @ y / len(y)))


def factorized(problem: Problem, depth: int, starts: Tensor, steps: int) -> Tensor:
    """Each row is a start of its own, as are its factors; the weights that are left, with what is below 1e-7 set to 0."""
    p = nn.Parameter(starts.clone())
    generator = torch.Generator().manual_seed(0)
    lr = 0.15 / problem.curvature
    optimizer = FactorizedSGD([p], lr, depth=depth, lam=problem.lam, momentum=0.9, generator=generator)
    for _ in range(steps):
        p.grad = problem.gradient(p.detach())
        optimizer.step()
    return torch.where(p.detach().abs() <= 1e-7, 0.0, p.detach())
