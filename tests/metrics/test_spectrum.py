"""Rank and singular values of products that are never formed, living neurons, sorted maps."""

from __future__ import annotations

import pytest
import torch

from sparsenn.metrics import effective_rank, product_singular_values, ridge_report, sorted_by_norm
from sparsenn.nn import RidgeNet


@pytest.mark.parametrize(("m", "r", "n"), [(50, 4, 30), (3, 8, 40), (40, 8, 2), (1, 1, 1), (5, 0, 4)])
def test_singular_values_are_those_of_the_product(m, r, n):
    torch.manual_seed(0)
    left, right = torch.randn(m, r, dtype=torch.float64), torch.randn(r, n, dtype=torch.float64)
    got = product_singular_values(left, right)
    expected = torch.linalg.svdvals(left @ right)[: min(m, r, n)]
    assert got.shape == (min(m, r, n),)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_effective_rank_counts_relative_to_the_largest():
    assert effective_rank(torch.tensor([2.28, 1e-5])) == 1
    assert effective_rank(torch.tensor([7.26, 0.0024]), threshold=1e-4) == 2
    assert effective_rank(torch.zeros(4)) == 0
    assert effective_rank(torch.zeros(0)) == 0
    with pytest.raises(ValueError, match=r"threshold is 1; it takes a number in \[0, 1\)"):
        effective_rank(torch.ones(2), 1)


def test_a_report_counts_as_the_paper_does():
    torch.manual_seed(0)
    net = RidgeNet(4, 1, width=20, functional_width=3)
    with torch.no_grad():
        for p in net.parameters():
            p.uniform_(0.5, 1)
        net[0].outer.weight[:, 5:] = 0  # 15 neurons without a way out
        net[0].outer.weight[1] = net[0].outer.weight[0]
        net[0].outer.weight[2] = 2 * net[0].outer.weight[0]  # so all rows are one: rank 1
        net[1].inner.weight[7:] = 5e-4  # 13 neurons with negligible ways in
    report = ridge_report(net, samples=81)
    first, second = report.layers
    assert (first.neurons, first.alive, first.bound, first.rank) == (20, 5, 243, None)
    assert (second.neurons, second.alive, second.bound, second.rank) == (20, 7, 81, 1)
    product = net[1].inner.weight @ net[0].outer.weight
    torch.testing.assert_close(
        torch.tensor(second.singular_values), torch.linalg.svdvals(product)[:3], rtol=1e-5, atol=1e-5, check_dtype=False
    )
    # matrices: W1 (1), V1 (5 of 20 columns), C1 (1), W2 (7 of 20 rows), V2 (1), C2 (1)
    assert report.above == pytest.approx((4 + 5 / 20 + 7 / 20) / 6)
    numbers = [20 * 4, 3 * 20, 3 * 4, 20 * 3, 20, 3]
    assert report.exact_zeros == pytest.approx(45 / sum(numbers))
    assert "5 of 20 neurons alive, the theorem needs at most 243" in str(report)


def test_sorted_maps_have_falling_norms_and_the_same_entries():
    torch.manual_seed(0)
    matrix = torch.randn(6, 9)
    matrix[2] = 0
    result = sorted_by_norm(matrix)
    for dim in (0, 1):
        norms = result.norm(dim=dim)
        assert (norms[:-1] >= norms[1:] - 1e-6).all()
    assert torch.equal(result.flatten().sort().values, matrix.flatten().sort().values)


def test_errors():
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(2, 3\)"):
        product_singular_values(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        product_singular_values(torch.full((2, 2), torch.nan), torch.ones(2, 2))
    with pytest.raises(ValueError, match="it takes 2 dimensions"):
        sorted_by_norm(torch.ones(3))
    with pytest.raises(ValueError, match=r"Linear has no sparsenn.nn.RidgeBlock"):
        ridge_report(torch.nn.Linear(2, 2))
    for threshold in (-1, 1.5, float("nan")):
        for depth in (1, 2):
            with pytest.raises(ValueError, match=rf"ridge_report: threshold is {threshold}; it takes a number in \[0, 1\)"):
                ridge_report(RidgeNet(2, 1, depth=depth, width=3), threshold=threshold)
    for samples in (0, -3, 2.5):
        with pytest.raises(ValueError, match=f"ridge_report: samples is {samples}; it takes an integer >= 1"):
            ridge_report(RidgeNet(2, 1, width=3), samples=samples)
    for odd in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="effective_rank: singular_values hold a number that is not finite"):
            effective_rank(torch.tensor([1.0, odd]))
