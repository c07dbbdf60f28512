"""The table of docs/nonconvex_solutions.md: FactorizedSGD beside skglm's coordinate descent on the penalties of depth 3 and 4.

python tools/nonconvex_report.py > docs/nonconvex_solutions.md
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.linear_model import Lasso

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "optim"))
from regression import dense_solution, factorized, least_squares, skglm_fit, standardized

SEEDS = 20
HEAD = """# Non-convex penalties: beside coordinate descent

On linear regression `FactorizedSGD` at depth 3 and 4 minimises ‖y − Xw‖² / 2n + λ‖w‖_q^q with q = 2/3 and q = 1/2. skglm
minimises the same objectives (`L2_3`, `L0_5`) by coordinate descent from w = 0. Both end in stationary points, and which one
depends on the start: no method is sure to find the best.

Each row has 20 seeds of the factors' draw ("preserve"), from a weight of zeros (which is lifted to ±1e-4), from the lasso's
solution at the same λ, or from a dense one, that of ridge regression with ‖w‖² / 200; momentum 0.9, lr 0.15 / L for the
largest eigenvalue L of XᵀX / n, 20,000 steps. λ is a share of the largest |Xᵀy| / n. *Relative* is our objective over skglm's,
less 1: negative is better; differences below 1e-9 count as equal. *Residual* is the largest |gradient + λ q |w|^(q−1) sign w|
on the support, over all seeds; above 1e-6 a run has not come to rest. Written by `tools/nonconvex_report.py`; the designs are
those of `tests/optim/regression.py`.

No start is the best everywhere. From the dense one the median is no worse than skglm in 15 of the 18 problems, from the best of
the three in 16; behind it stay wide at 0.02, depth 4 (by 1.4 %) and diabetes at 0.1, depth 3 (by 0.24 %).

| design | share | depth | start | skglm's objective | relative: best | median | worst | residual | seeds that are worse |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Print the page."""
    torch.set_num_threads(1)
    print(HEAD)
    for design in ("wide", "correlated", "diabetes"):
        x, y = standardized(design)
        for share in (0.02, 0.05, 0.1):
            problem = least_squares(x, y, share)
            convex = torch.from_numpy(Lasso(problem.lam, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(x, y).coef_)
            for depth, penalty in ((3, "L2_3"), (4, "L0_5")):
                q = 2 / depth
                theirs = float(problem.objective(torch.from_numpy(skglm_fit(x, y, "Quadratic", penalty, problem.lam)), q))
                for name, start in (("zeros", torch.zeros_like(convex)), ("lasso", convex), ("ridge", dense_solution(x, y))):
                    weights = factorized(problem, depth, start.expand(SEEDS, -1), 20_000)
                    slope = problem.lam * q * weights.abs().pow(q - 1) * weights.sign()
                    residual = torch.where(weights == 0, 0.0, problem.gradient(weights) + slope).abs().max()
                    relative = problem.objective(weights, q) / theirs - 1
                    worse = [seed for seed, value in enumerate(relative.tolist()) if value > 1e-9]
                    listed = "all" if len(worse) == SEEDS else ", ".join(map(str, worse)) or "none"
                    figures = " | ".join(
                        f"{value:.1e}" for value in (relative.min(), relative.median(), relative.max(), residual)
                    )
                    print(f"| {design} | {share} | {depth} | {name} | {theirs:.6f} | {figures} | {listed} |", flush=True)


if __name__ == "__main__":
    main()
