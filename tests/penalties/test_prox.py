"""The laws of a proximal map, over all penalties."""

from __future__ import annotations

import math

import pytest
import torch
from cases import DTYPES, LAYOUTS, SHAPES, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from penalty_cases import CASES, CONVEX, GROUPED, QUADRATIC, SEPARABLE, reference_value, weights

import sparsenn.penalties as p

STEPS = (0.05, 0.7, 3.0, 40.0)
numbers = st.floats(-1e3, 1e3).map(lambda x: x if abs(x) > 1e-6 else 0.0)
strengths = st.floats(0, 100).map(lambda x: x if x > 1e-6 else 0.0)


def objective(name: str, lam: float, x: torch.Tensor, w: torch.Tensor, step) -> float:
    return float(((x - w).square() / (2 * step)).sum()) + reference_value(name, lam, x)


def steps_for(w: torch.Tensor, seed: int = 5, decades: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 10 ** (decades * (torch.rand(w.shape, generator=generator, dtype=torch.float64) - 0.5))


@pytest.mark.parametrize("name", SEPARABLE)
@given(st.lists(numbers, max_size=6), strengths, st.floats(1e-3, 50))
@settings(max_examples=40, deadline=None)
def test_no_point_of_a_grid_is_better(name, values, lam, step):
    w = torch.tensor(values, dtype=torch.float64)
    got = CASES[name].make(lam).prox(w, step)
    for x, at in zip(got.tolist(), values, strict=True):

        def cost(y, at=at):
            return (y - at) ** 2 / (2 * step) + CASES[name].formula(lam, abs(y))

        grid = [at * k / 400 for k in range(-4, 404)]
        best = min(map(cost, grid))
        # the terms of the difference are rounded relative to the largest of them
        assert cost(x) <= best + 1e-12 * (at * at / step + CASES[name].formula(lam, abs(at)))


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("diagonal", [False, True])
def test_no_neighbour_is_better(name, diagonal):
    w = weights(name, scale=3.0)
    step = steps_for(w) if diagonal else 0.7
    for lam in (0.01, 0.5, 1.5):
        x = CASES[name].make(lam).prox(w, step)
        best = objective(name, lam, x, w, step)
        generator = torch.Generator().manual_seed(1)
        for radius in (1e-4, 1e-2, 1.0):
            for _ in range(50):
                other = x + radius * torch.randn(w.shape, generator=generator, dtype=torch.float64)
                assert objective(name, lam, other, w, step) >= best - 1e-12 * (1 + best)
        for factor in (0.0, 0.999, 1.001):
            assert objective(name, lam, factor * x, w, step) >= best - 1e-12 * (1 + best)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step", [*STEPS, "diagonal"])
def test_the_prox_point_is_stationary(name, step):
    for seed, lam in enumerate((0.02, 0.3, 2.0)):
        w = weights(name, scale=2.0, seed=seed)
        s = steps_for(w, decades=6.0) if step == "diagonal" else step
        penalty = CASES[name].make(lam)
        x = penalty.prox(w, s)
        distance = penalty.subdiff_distance(x, (x - w) / s)
        reach = float((w.abs() / s).max())
        assert distance.max() <= 1e-13 * (1 + reach) * w.numel()


@pytest.mark.parametrize("name", GROUPED)
@given(st.integers(0, 10_000), st.floats(-6, 3), st.floats(0, 12))
@settings(max_examples=30, deadline=None)
def test_the_diagonal_metric_is_solved_to_rounding(name, seed, log_lam, decades):
    generator = torch.Generator().manual_seed(seed)
    shape = CASES[name].shape
    w = torch.randn(shape, generator=generator, dtype=torch.float64) * 10 ** (
        decades * (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5)
    )
    s, penalty = steps_for(w, seed, decades), CASES[name].make(10**log_lam)
    x = penalty.prox(w, s)
    distance = penalty.subdiff_distance(x, (x - w) / s)
    # (x - w) / s is rounded relative to w / s, and x / |x| relative to 1
    assert distance.max() <= 1e-13 * (float((w / s).abs().max()) + w.numel() * 10**log_lam)


@pytest.mark.parametrize("name", SEPARABLE)
@pytest.mark.parametrize("step", STEPS)
def test_jumps_are_where_two_minima_tie(name, step):
    """Along a ray of weights, against every share of the weight in steps of half a percent."""
    lam, w = 0.7, torch.linspace(0, 12, 1201, dtype=torch.float64)
    x = CASES[name].make(lam).prox(w, step)
    shares = torch.linspace(0, 1, 201, dtype=torch.float64)
    table = {}

    def cost(y: float, at: float) -> float:
        if y not in table:
            table[y] = CASES[name].formula(lam, y)
        return (y - at) ** 2 / (2 * step) + table[y]

    for at, mine in zip(w.tolist()[::7], x.tolist()[::7], strict=True):
        assert cost(mine, at) <= min(cost(at * share, at) for share in shares.tolist()) + 1e-12 * (1 + at * at / step)


@pytest.mark.parametrize("decades", [1.0, 6.0, 12.0, 20.0])
def test_many_groups_halfway_to_zero_in_a_wide_metric(decades):
    generator = torch.Generator().manual_seed(8)
    w = torch.randn(2000, 40, generator=generator, dtype=torch.float64)
    w, s = w * steps_for(w, 1, decades), steps_for(w, 2, decades)
    w = w / (w / s).norm(dim=1, keepdim=True)  # a group is zero where |w / s| <= lam: each at lam = 1
    for lam in (1 - 1e-9, 0.5, 1e-3):
        x = p.GroupL1(lam, "rows", weighted=False).prox(w, s)
        norm = x.norm(dim=1, keepdim=True)
        assert (norm > 0).all()
        # x_i (1 + s_i lam / |x|) = w_i, element by element: small ones are not hidden behind large ones
        torch.testing.assert_close(x * (1 + s * lam / norm), w, rtol=1e-6 if lam > 0.9 else 1e-12, atol=0)


@pytest.mark.parametrize("name", GROUPED)
def test_a_constant_tensor_of_steps_is_the_number(name):
    w = weights(name, scale=2.0)
    penalty = CASES[name].make(0.4)
    torch.testing.assert_close(penalty.prox(w, torch.full_like(w, 0.7)), penalty.prox(w, 0.7), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", CONVEX)
@pytest.mark.parametrize("diagonal", [False, True])
def test_three_points(name, diagonal):
    """P(x) + |x - w|^2 / 2s + |x - u|^2 / 2s <= P(u) + |u - w|^2 / 2s for all u, where x = prox(w)."""
    for seed in range(20):
        w, u = weights(name, 2.0, seed), weights(name, 2.0, seed + 100)
        lam = 0.05 * (seed + 1)
        s = steps_for(w, seed) if diagonal else 0.3 * (seed + 1)
        x = CASES[name].make(lam).prox(w, s)
        gap = float(((x - u).square() / (2 * s)).sum())
        left = objective(name, lam, x, w, s) + gap
        assert left <= objective(name, lam, u, w, s) * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("name", SEPARABLE)
@given(numbers, numbers, strengths, st.floats(0, 50))
@settings(max_examples=40, deadline=None)
def test_monotone_odd_and_never_beyond_the_weight(name, a, b, lam, step):
    low, high = sorted((a, b))
    penalty = CASES[name].make(lam)
    x = penalty.prox(torch.tensor([low, high, -low, -high], dtype=torch.float64), step)
    assert x[0] <= x[1] + 1e-13 * abs(high)
    assert torch.equal(x[2:], -x[:2])
    assert x[0].abs() <= abs(low)
    assert x[0] * low >= 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_dtype_is_float64_rounded(name, dtype):
    w = weights(name, dtype=dtype)
    penalty = CASES[name].make(0.25)
    for step in (0.5, steps_for(w).float() if dtype != torch.float64 else steps_for(w)):
        got = penalty.prox(w, step)
        exact = penalty.prox(w.double(), step.double() if isinstance(step, torch.Tensor) else step)
        assert got.dtype == dtype
        assert got.shape == w.shape
        torch.testing.assert_close(
            got.double(), exact, rtol=4 * tolerance(dtype)["rtol"], atol=4e-7 if dtype != torch.float64 else 0
        )


@pytest.mark.parametrize("name", CASES)
def test_no_step_or_no_strength_changes_nothing(name):
    w = weights(name, 3.0)
    for lam, step in ((0.7, 0.0), (0.0, 0.7), (0.0, 0.0), (0.7, torch.zeros_like(w)), (0.0, torch.ones_like(w))):
        assert torch.equal(CASES[name].make(lam).prox(w, step), w)
    frozen = torch.ones_like(w)
    frozen[..., 0] = 0
    kept = CASES[name].make(0.1).prox(w, frozen)
    assert torch.equal(kept[..., 0], w[..., 0])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("diagonal", [False, True])
def test_total_at_zero_nan_and_infinity_and_no_negative_zero(name, diagonal):
    shape = CASES[name].shape
    for lam in (0.0, 0.5):
        penalty = CASES[name].make(lam)
        step = torch.ones(shape) if diagonal else 1.0
        for zero in (torch.zeros(shape), -torch.zeros(shape)):
            x = penalty.prox(zero, step)
            assert torch.equal(x, torch.zeros(shape))
            assert not x.signbit().any()
        small = penalty.prox(torch.full(shape, -1e-30), step)
        assert not small.signbit()[small == 0].any()
        odd = torch.ones(shape)
        odd.view(-1)[0] = math.nan
        x = penalty.prox(odd, step)
        assert x.view(-1)[0].isnan()
        if name in SEPARABLE:
            assert x.isnan().sum() == 1
        else:  # the norm of a group with a NaN is one: the group is lost, the others are not
            lost = [bool(group.isnan().all()) for group in CASES[name].members(x)]
            assert lost == [True] + [False] * (len(lost) - 1) or name == "sparse_is_l1"
        infinite = torch.ones(shape)
        infinite.view(-1)[-1] = -math.inf
        x = penalty.prox(infinite, step).view(-1)
        assert x[-1] == -math.inf
        assert x[:-1].isfinite().all()


def test_the_squared_l1_norm_of_what_float32_cannot_hold():
    x = torch.tensor([[3e38, 3e38], [1.0, 2.0], [0.0, 0.0]])
    for lam, step in ((1e-3, 1.0), (1.0, 1.0), (1e38, 1e3), (1e30, 1e20), (1e-40, 1e-30)):
        penalty = p.SquaredL1(lam)
        expected = penalty.prox(x.double(), step)
        assert torch.allclose(penalty.prox(x, step).double(), expected, rtol=1e-6, atol=1e-30), (lam, step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("diagonal", [False, True])
def test_huge_and_tiny_weights(name, dtype, diagonal):
    top = torch.finfo(dtype).max
    tiny = torch.finfo(dtype).tiny
    for scale in (top / 64, top**0.5, 1.0, tiny**0.5, 64 * tiny):
        w = torch.full(CASES[name].shape, scale, dtype=dtype)
        for lam in (1e-30, 1.0, 1e30):
            x = CASES[name].make(lam).prox(w, torch.ones_like(w) if diagonal else 1.0)
            assert x.isfinite().all()
            assert ((x >= 0) & (x <= w)).all()
            if scale > 1e12 and lam <= 1 and name not in QUADRATIC:
                torch.testing.assert_close(x, w, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SEPARABLE)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape(name, shape):
    w = torch.linspace(-2, 2, math.prod(shape), dtype=torch.float64).view(shape)
    penalty = CASES[name].make(0.3)
    x = penalty.prox(w, 0.5)
    assert x.shape == shape
    for mine, value in zip(x.flatten().tolist()[:50], w.flatten().tolist(), strict=False):
        assert mine == pytest.approx(float(penalty.prox(torch.tensor(value, dtype=torch.float64), 0.5)), rel=1e-14)
    assert penalty.subdiff_distance(w, w).shape == shape
    assert float(penalty.value(w)) == pytest.approx(reference_value(name, 0.3, w), rel=1e-12)
    if not math.prod(shape):
        assert penalty.lambda_max(w) == 0


@pytest.mark.parametrize("name", GROUPED)
def test_empty_groups_and_no_groups(name):
    full = CASES[name].shape
    penalty = CASES[name].make(0.3)
    for shape in ((0, *full[1:]), (*full[:-1], 0)):
        w = torch.zeros(shape)
        try:
            penalty.check_fits(w)
        except ValueError:
            continue  # heads have a width
        for step in (1.0, torch.ones(shape)):
            assert penalty.prox(w, step).shape == shape
        assert penalty.value(w) == 0
        assert penalty.lambda_max(w) == 0
        assert (penalty.subdiff_distance(w, w) == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_any_strides(name, layout):
    w = weights(name)
    for step in (0.7, steps_for(w)):
        expected = CASES[name].make(0.2).prox(w, step)
        arranged = LAYOUTS[layout](step) if isinstance(step, torch.Tensor) else step
        torch.testing.assert_close(CASES[name].make(0.2).prox(LAYOUTS[layout](w), arranged), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", SEPARABLE)
def test_strength_and_step_by_element(name):
    w = weights(name, 3.0)
    lam = torch.linspace(0, 2, 4, dtype=torch.float64)
    step = torch.linspace(0, 3, 6, dtype=torch.float64)[:, None]
    penalty = CASES[name].make(lam)
    x, distance = penalty.prox(w, step), penalty.subdiff_distance(w, w.sin())
    total = 0.0
    for i in range(6):
        for j in range(4):
            one = CASES[name].make(float(lam[j]))
            assert float(x[i, j]) == pytest.approx(float(one.prox(w[i, j], float(step[i]))), rel=1e-14)
            assert float(distance[i, j]) == pytest.approx(float(one.subdiff_distance(w[i, j], w[i, j].sin())), rel=1e-13)
            total += float(one.value(w[i, j]))
    assert float(penalty.value(w)) == pytest.approx(total, rel=1e-12)


def test_groups_vanish_whole():
    w = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    got = p.GroupL1(1.0, "rows", weighted=False).prox(w, 1.0)
    torch.testing.assert_close(got, torch.tensor([[2.4, 3.2], [0, 0]], dtype=torch.float64))
    got = p.GroupL1(1.0, "rows").prox(w, 1.0)  # sqrt(2) of 5
    torch.testing.assert_close(got[0], w[0] * (1 - math.sqrt(2) / 5))


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_step_is_one_sentence(name):
    w = weights(name)
    penalty = CASES[name].make(0.1)
    for step in (-1.0, math.nan, math.inf, "1"):
        with pytest.raises(ValueError, match=r"prox: step is .* finite number >= 0"):
            penalty.prox(w, step)
    with pytest.raises(ValueError, match=r"step has shape \(7,\), which does not broadcast to w of shape"):
        penalty.prox(w, torch.ones(7))
