"""The optimizers against other people's solvers on linear and logistic regression: scikit-learn's and skglm's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from regression import DESIGNS, Problem, dense_solution, factorized, least_squares, logistic, skglm_fit, standardized
from torch import Tensor, nn

from sparsenn.optim import ProxSGD

linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
pytest.importorskip("skglm", reason="needs skglm")

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


def problem_of(design: str, share: float) -> tuple[np.ndarray, np.ndarray, Problem]:
    try:
        x, y = standardized(design)
    except FileNotFoundError:
        pytest.skip(f"SPARSENN_DATA holds no {design}")
    return x, y, least_squares(x, y, share)


def lasso(x: np.ndarray, y: np.ndarray, lam: float) -> np.ndarray:
    return linear_model.Lasso(lam, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(x, y).coef_


def sparse_logistic(x: np.ndarray, y: np.ndarray, lam: float) -> np.ndarray:
    """Scikit-learn weighs the loss instead, and since 1.8 names the penalty by its share of L1 alone."""
    named = linear_model.LogisticRegression().penalty == "l2"
    options = {"penalty": "l1"} if named else {"l1_ratio": 1.0}
    model = linear_model.LogisticRegression(
        C=1 / (len(y) * lam), fit_intercept=False, solver="saga", tol=1e-13, max_iter=10**6, random_state=0, **options
    )
    return model.fit(x, y).coef_[0]


def proximal(problem: Problem, options: dict) -> Callable[[nn.Parameter], ProxSGD]:
    return lambda p: ProxSGD([p], 1.0 / problem.curvature, lam=problem.lam, **options)


def agree(problem: Problem, ours: Tensor, theirs: np.ndarray) -> None:
    other = torch.from_numpy(np.asarray(theirs, dtype=np.float64))
    torch.testing.assert_close(problem.objective(ours), problem.objective(other), rtol=1e-9, atol=0)
    assert torch.equal(ours != 0, other != 0)
    assert 0 < (ours != 0).sum() < problem.size


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_lasso(design, share):
    x, y, problem = problem_of(design, share)
    sklearn = lasso(x, y, problem.lam)
    skglm = skglm_fit(x, y, "Quadratic", "L1", problem.lam)
    for options in MOMENTA.values():
        weight = solved(problem, proximal(problem, options), torch.zeros(problem.size, dtype=torch.float64))
        agree(problem, weight, sklearn)
        agree(problem, weight, skglm)


def test_the_lasso_on_both_backends(backend):
    x, y, problem = problem_of("diabetes", 0.1)
    expected = skglm_fit(x, y, "Quadratic", "L1", problem.lam)
    for options in MOMENTA.values():
        agree(problem, solved(problem, proximal(problem, options), torch.ones(problem.size, dtype=torch.float64)), expected)


@pytest.mark.parametrize("design", ["wide", "correlated", "diabetes"])
def test_sparse_logistic_regression(design):
    x, y = standardized(design)
    y = np.where(y > 0, 1.0, -1.0)
    problem = logistic(x, y, 0.2)
    sklearn = sparse_logistic(x, y, problem.lam)
    skglm = skglm_fit(x, y, "Logistic", "L1", problem.lam)
    for options in MOMENTA.values():
        weight = solved(problem, proximal(problem, options), torch.zeros(problem.size, dtype=torch.float64))
        agree(problem, weight, sklearn)
        agree(problem, weight, skglm)


def test_the_weighted_lasso():
    """One lam for each weight is the lasso on columns divided by it."""
    x, y, problem = problem_of("diabetes", 0.1)
    share = torch.linspace(0.2, 2.0, problem.size, dtype=torch.float64)
    scaled = lasso(x / share.numpy(), y, problem.lam)
    expected = torch.from_numpy(scaled) / share
    p = nn.Parameter(torch.zeros(problem.size, dtype=torch.float64))
    optimizer = ProxSGD([p], 1.0 / problem.curvature, lam=problem.lam * share, momentum=0.9)
    for _ in range(2000):
        p.grad = problem.gradient(p.detach())
        optimizer.step()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-11)
    assert torch.equal(p != 0, expected != 0)


# deep weight factorization: the lasso at depth 2, a non-convex penalty beyond


@pytest.mark.parametrize("start", [0.0, 0.1])
@pytest.mark.parametrize("design", ["wide", "correlated", "diabetes"])
def test_factors_at_depth_two_reach_the_lasso(design, start):
    x, y, problem = problem_of(design, 0.1)
    expected = lasso(x, y, problem.lam)
    starts = start * torch.randn(4, problem.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for weight in factorized(problem, 2, starts, 20_000):
        agree(problem, weight, expected)


@pytest.mark.parametrize(("depth", "penalty"), [(3, "L2_3"), (4, "L0_5")])
@pytest.mark.parametrize(("design", "share"), [("wide", 0.05), ("correlated", 0.1), ("diabetes", 0.05)])
def test_deeper_factors_reach_points_as_good_as_those_of_coordinate_descent(design, share, depth, penalty):
    """0 = g + lam q |w|^(q - 1) sign(w) on the support, q = 2 / depth; and the median objective of 20 seeds is no worse."""
    x, y, problem = problem_of(design, share)
    q = 2 / depth
    weights = factorized(problem, depth, dense_solution(x, y).expand(20, -1), 15_000)
    slope = problem.lam * q * weights.abs().pow(q - 1) * weights.sign()
    residual = torch.where(weights == 0, 0.0, problem.gradient(weights) + slope)
    assert residual.abs().max() <= 1e-6
    assert ((weights != 0).sum(1) > 0).all()
    theirs = problem.objective(torch.from_numpy(skglm_fit(x, y, "Quadratic", penalty, problem.lam)), q)
    assert problem.objective(weights, q).median() <= theirs * (1 + 1e-9)
