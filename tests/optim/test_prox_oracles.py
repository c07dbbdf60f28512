"""The optimizers against other people's solvers on linear and logistic regression: scikit-learn's and skglm's."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsenn.optim import FactorizedSGD, ProxSGD

linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")

MOMENTA = {
    "plain": {},
    "half": {"momentum": 0.5},
    "half dampened": {"momentum": 0.5, "dampening": 0.3},
    "heavy": {"momentum": 0.9},
    "heavy dampened": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}


def kkt_residual(weight: Tensor, grad: Tensor, lam: float) -> float:
    """The largest distance of 0 to grad + lam d|w|: |g + lam sign(w)| where w is not 0, |g| less lam where it is."""
    at_zero = (grad.abs() - lam).clamp(min=0.0)
    return float(torch.where(weight == 0, at_zero, (grad + lam * weight.sign()).abs()).max())


@dataclass(frozen=True)
class Problem:
    """A smooth loss of the weight, its gradient, a bound on its curvature, and the penalty."""

    loss: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    curvature: float
    lam: float
    size: int

    def objective(self, weight: Tensor) -> float:
        return float(self.loss(weight) + self.lam * weight.abs().sum())


def solved(
    problem: Problem, make: Callable[[nn.Parameter], torch.optim.Optimizer], start: Tensor, steps: int = 40_000
) -> Tensor:
    """The weight when the KKT residual is at most 1e-10."""
    p = nn.Parameter(start.clone())
    optimizer = make(p)
    for step in range(steps):
        p.grad = problem.gradient(p.detach())
        if step % 50 == 0 and kkt_residual(p.detach(), p.grad, problem.lam) <= 1e-10:
            return p.detach()
        optimizer.step()
    pytest.fail(f"the KKT residual is {kkt_residual(p.detach(), p.grad, problem.lam):.1e} after {steps} steps")


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
    root = os.environ.get("SPARSENN_DATA")
    files = sorted(Path(root).rglob("cal_housing.data")) if root else []
    if not files:
        pytest.skip("SPARSENN_DATA holds no California Housing")
    table = np.loadtxt(files[0], delimiter=",")
    return table[:, :8], table[:, 8]


DESIGNS = {"wide": wide, "correlated": correlated, "diabetes": diabetes, "california": california}


def standardized(design: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = DESIGNS[design]()
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def least_squares(x: np.ndarray, y: np.ndarray, share: float) -> Problem:
    """|y - X w|^2 / (2 n), as scikit-learn has it; lam is a share of the one from which on the solution is 0."""
    gram, moment, power = (torch.from_numpy(np.asarray(a / len(y))) for a in (x.T @ x, x.T @ y, y @ y))
    return Problem(
        lambda w: 0.5 * (w @ gram @ w + power) - moment @ w,
        lambda w: gram @ w - moment,
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


def proximal(problem: Problem, options: dict) -> Callable[[nn.Parameter], ProxSGD]:
    return lambda p: ProxSGD([p], 1.0 / problem.curvature, lam=problem.lam, **options)


def agree(problem: Problem, ours: Tensor, theirs: np.ndarray) -> None:
    other = torch.from_numpy(np.asarray(theirs, dtype=np.float64))
    assert problem.objective(ours) == pytest.approx(problem.objective(other), rel=1e-9)
    assert torch.equal(ours != 0, other != 0)
    assert 0 < (ours != 0).sum() < problem.size


def skglm_fit(x: np.ndarray, y: np.ndarray, datafit, lam: float) -> np.ndarray:
    skglm = pytest.importorskip("skglm", reason="needs skglm")
    solver = skglm.solvers.AndersonCD(ws_strategy="fixpoint", fit_intercept=False, tol=1e-12, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where 1e-12 can't be told from 0
        return skglm.GeneralizedLinearEstimator(datafit, skglm.penalties.L1(lam), solver).fit(x, y).coef_.ravel()


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_lasso(backend, design, share):
    datafits = pytest.importorskip("skglm.datafits", reason="needs skglm")
    x, y = standardized(design)
    problem = least_squares(x, y, share)
    sklearn = linear_model.Lasso(problem.lam, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(x, y).coef_
    skglm = skglm_fit(x, y, datafits.Quadratic(), problem.lam)
    for options in MOMENTA.values():
        weight = solved(problem, proximal(problem, options), torch.zeros(problem.size, dtype=torch.float64))
        agree(problem, weight, sklearn)
        agree(problem, weight, skglm)
