"""Value, distance to the subdifferential and the strength from which on all is zero, over all penalties."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from cases import DTYPES, tolerance
from penalty_cases import CASES, GROUPED, SEPARABLE, reference_value, weights

import sparsenn.penalties as p


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_value_is_the_formula(name, dtype):
    for lam in (0.0, 0.1, 1.7):
        w = weights(name, 2.0, dtype=dtype)
        value = CASES[name].make(lam).value(w)
        assert value.shape == ()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        inner = torch.float64 if dtype == torch.float64 else torch.float32
        assert float(value) == pytest.approx(reference_value(name, lam, w), rel=20 * tolerance(inner)["rtol"])


@pytest.mark.parametrize("name", CASES)
def test_gradient_of_the_value_is_its_slope_and_zero_at_zero(name):
    w = weights(name, 2.0).requires_grad_()
    penalty = CASES[name].make(0.6)
    value = penalty.value(w)
    (grad,) = torch.autograd.grad(value, w)
    assert (grad[w == 0] == 0).all()
    with torch.no_grad():
        for index in (w != 0).nonzero()[:8].tolist():
            up, down = w.detach().clone(), w.detach().clone()
            up[tuple(index)] += 1e-6
            down[tuple(index)] -= 1e-6
            slope = (reference_value(name, 0.6, up) - reference_value(name, 0.6, down)) / 2e-6
            assert float(grad[tuple(index)]) == pytest.approx(slope, rel=1e-5, abs=1e-7)
    # the negative of the gradient of the value is a subgradient of the other side: nothing is left
    alive = (w != 0).detach() if name in SEPARABLE else penalty.norms(w) > 0
    assert (penalty.subdiff_distance(w, -grad.detach())[alive] <= 1e-13).all()


@pytest.mark.parametrize("name", SEPARABLE)
def test_distance_is_that_to_the_set_of_subgradients(name):
    """At 0 the subgradients are an interval: the slopes of all lines that stay below the penalty near 0."""
    lam, grid = 0.7, torch.linspace(-3, 3, 61, dtype=torch.float64)
    penalty = CASES[name].make(lam)
    at_zero = penalty.subdiff_distance(torch.zeros_like(grid), grid)
    assert (at_zero >= 0).all()
    below = [all(CASES[name].formula(lam, h) >= abs(float(g)) * h - 1e-9 * h for h in (1e-12, 1e-10)) for g in grid]
    for g, distance, inside in zip(grid.tolist(), at_zero.tolist(), below, strict=True):
        nearest = min((abs(g - float(other)) for other, ok in zip(grid, below, strict=True) if ok), default=None)
        assert (distance <= 1e-9) == inside
        if not inside:
            assert distance == pytest.approx(nearest, abs=0.1 + 1e-9)  # the spacing of the grid
    free = CASES[name].make(0.0)
    assert torch.equal(free.subdiff_distance(torch.zeros_like(grid), grid), grid.abs())
    assert torch.equal(free.subdiff_distance(torch.ones_like(grid), grid), grid.abs())


@pytest.mark.parametrize("name", GROUPED)
def test_distance_of_a_group_is_the_distance_to_a_convex_set(name):
    """dist(-g, dP(0)) by projected gradient descent onto the set, for P the support function of it."""
    lam, case = 0.3, CASES[name]
    penalty = case.make(lam)
    g = weights(name, 1.0, seed=3)
    tau = getattr(penalty, "l1_ratio", 0.0)
    got = penalty.subdiff_distance(torch.zeros_like(g), g)
    for group, distance in zip(case.members(g), got.tolist(), strict=True):
        flat = group.flatten()
        weight = math.sqrt(flat.numel()) if penalty.weighted else 1.0
        ball = 0.0 if case.group else lam * (1 - tau) * weight  # a square has one subgradient at 0, which is 0
        # nearest point of {box of lam tau} + {ball}: alternate between the two summands
        box, round_ = torch.zeros_like(flat), torch.zeros_like(flat)
        for _ in range(2000):
            box = (-flat - round_).clamp(-lam * tau, lam * tau)
            rest = -flat - box
            round_ = rest * min(1.0, ball / float(rest.norm())) if float(rest.norm()) else rest
        assert distance == pytest.approx(float((-flat - box - round_).norm()), abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_lambda_max_is_where_zero_begins_to_stay(name):
    grad = weights(name, 2.0, seed=9)
    zero = torch.zeros_like(grad)
    for step in (0.1, 0.39):
        top = CASES[name].make(1.0).lambda_max(grad, step)
        assert top.shape == ()
        if name in ("Ridge", "squared_rows"):
            assert top == math.inf
            assert CASES[name].make(1.0).lambda_max(zero) == 0
            continue
        above, below = (CASES[name].make(float(top) * factor) for factor in (1 + 1e-9, 1 - 1e-6))
        assert (above.prox(zero - step * grad, step) == 0).all()
        assert (below.prox(zero - step * grad, step) != 0).any()
        assert (above.subdiff_distance(zero, grad) == 0).all()
        if name not in ("L0", "L0_5", "L2_3"):
            assert (below.subdiff_distance(zero, grad) > 0).any()


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_one_sentence(name):
    penalty = CASES[name].make(0.1)
    with pytest.raises(ValueError, match=r"w has dtype torch\.int64; it takes float64, float32, bfloat16 or float16"):
        penalty.prox(torch.ones(CASES[name].shape, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match=r"layout torch\.sparse_coo; it takes dense tensors"):
        penalty.check_fits(torch.ones(CASES[name].shape).to_sparse())
    with pytest.raises(ValueError, match=r"grad has shape \(3,\), w "):
        penalty.subdiff_distance(weights(name), torch.ones(3))
    for lam in (-1.0, math.nan, math.inf, "0.1", True, torch.tensor([-1.0]), torch.tensor(math.nan), torch.tensor(1)):
        with pytest.raises(ValueError, match="lam "):
            CASES[name].make(lam)
        with pytest.raises(ValueError, match="lam "):
            penalty.with_lam(lam)


@pytest.mark.parametrize("name", SEPARABLE)
def test_a_strength_of_another_shape_is_one_sentence(name):
    with pytest.raises(ValueError, match=r"lam has shape \(5,\), which does not broadcast to layer.weight of shape \(6, 4\)"):
        CASES[name].make(torch.ones(5)).check_fits(torch.ones(6, 4), "layer.weight")
    with pytest.raises(ValueError, match=r"lam has shape \(6, 4\), which does not broadcast to w of shape \(4,\)"):
        CASES[name].make(torch.ones(6, 4)).check_fits(torch.ones(4))


def test_groups_that_a_tensor_has_not():
    with pytest.raises(ValueError, match=r"w has shape \(3,\); groups='rows' takes 2 dimensions"):
        p.GroupL1(0.1, "rows").prox(torch.ones(3), 1.0)
    with pytest.raises(ValueError, match=r"w has shape \(3, 3\); groups='filters' takes 3 or 4 or 5 dimensions"):
        p.GroupL1(0.1, "filters").value(torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"bias has shape \(24,\); Heads\(.*\) takes \(B \* 8, C\)"):
        p.GroupL1(0.1, p.Heads(2, 4)).check_fits(torch.ones(24), "bias")
    with pytest.raises(ValueError, match=r"w has shape \(8, 9\); Heads\(.*\) takes \(C, 8\)"):
        p.SparseGroupL1(0.1, groups=p.Heads(2, 4, of="columns")).check_fits(torch.ones(8, 9))
    with pytest.raises(ValueError, match="groups is 'lines'; it takes one of rows, columns, filters, channels, or Heads"):
        p.GroupL1(0.1, "lines")
    with pytest.raises(ValueError, match=r"lam has shape \(3,\); it takes a number or a tensor with one element"):
        p.GroupL1(torch.ones(3))
    with pytest.raises(ValueError, match=r"lam has shape \(3, 1\); it takes a number or a tensor with one element"):
        p.GroupL1(0.1).with_lam(torch.ones(3, 1))
    with pytest.raises(ValueError, match="num_heads is 0; it takes an integer >= 1"):
        p.Heads(0, 4)
    with pytest.raises(ValueError, match="of is 'both'; it takes 'rows' or 'columns'"):
        p.Heads(1, 4, of="both")


def test_options_out_of_range():
    for make, name in ((p.MCP, "gamma"), (p.SCAD, "a"), (p.ElasticNet, "l1_ratio"), (p.SparseGroupL1, "l1_ratio")):
        for value in (-0.5, math.nan, "x"):
            with pytest.raises(ValueError, match=f"{name} is .*; it takes a"):
                make(0.1, value)


@pytest.mark.parametrize("make", [p.SCAD, p.MCP])
def test_the_gradient_at_a_knee_is_the_slope_beside_it(make):
    penalty = make(0.5)
    knee = 3.7 if make is p.SCAD else 3.0
    for at in (0.5, 0.5 * knee):
        w = torch.tensor([at, at * (1 - 1e-9), -at], dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(penalty.value(w), w)
        torch.testing.assert_close(grad[0], grad[1], rtol=1e-6, atol=1e-8)
        assert grad[2] == -grad[0]


@pytest.mark.parametrize("name", CASES)
def test_with_lam_copies_and_repr_tells(name):
    penalty = CASES[name].make(0.25)
    other = penalty.with_lam(0.5)
    w = weights(name)
    assert penalty.lam == 0.25
    assert torch.equal(other.prox(w, 1.0), CASES[name].make(0.5).prox(w, 1.0))
    assert repr(penalty).startswith(f"{type(penalty).__name__}(lam=0.25")
    for twin in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert repr(twin) == repr(penalty)
        assert torch.equal(twin.prox(w, 0.3), penalty.prox(w, 0.3))
    tensor = CASES[name].make(torch.tensor(0.25, dtype=torch.float64))
    assert torch.equal(tensor.prox(w, 0.3), penalty.prox(w, 0.3))


def test_repr():
    assert repr(p.L1(torch.ones(3, 1))) == "L1(lam=tensor of shape (3, 1))"
    assert repr(p.MCP(0.1, 2.5)) == "MCP(lam=0.1, gamma=2.5)"
    assert repr(p.SparseGroupL1(1, 0.2, "columns", weighted=False)) == (
        "SparseGroupL1(lam=1.0, l1_ratio=0.2, groups='columns', weighted=False)"
    )


def test_the_literature_s_thresholds():
    """1.5 a^(2/3) and 2 (2a/3)^(3/4), with a jump from 0 to a third and to a quarter less than there."""
    for a in (1e-6, 0.3, 1.0, 50.0):
        for penalty, threshold in ((p.L0_5(a), 1.5 * a ** (2 / 3)), (p.L2_3(a), 2 * (2 * a / 3) ** 0.75)):
            w = torch.tensor([threshold * (1 - 1e-12), threshold * (1 + 1e-12)], dtype=torch.float64)
            x = penalty.prox(w, 1.0)
            assert x[0] == 0
            kept = 2 / 3 if isinstance(penalty, p.L0_5) else 1 / 2
            assert float(x[1]) == pytest.approx(kept * threshold, rel=1e-9)


def test_skglm_agrees():
    """An independent implementation of the values and the maps, at steps for which its own formulas hold."""
    sk = pytest.importorskip("skglm.penalties", reason="needs skglm")
    import numpy as np

    lam = 0.4
    pairs = [
        (p.L1(lam), sk.L1(lam)),
        (p.ElasticNet(lam, 0.3), sk.L1_plus_L2(lam, 0.3)),
        (p.L0_5(lam), sk.L0_5(lam)),
        (p.L2_3(lam), sk.L2_3(lam)),
        (p.MCP(lam, 3.0), sk.MCPenalty(lam, 3.0)),
        (p.SCAD(lam, 3.7), sk.SCAD(lam, 3.7)),
    ]
    w = np.linspace(-4, 4, 401)
    for ours, theirs in pairs:
        assert float(ours.value(torch.from_numpy(w))) == pytest.approx(theirs.value(w), rel=1e-12)
        for step in (0.1, 1.0, 2.0):
            expected = np.array([theirs.prox_1d(x, step, 0) for x in w])
            np.testing.assert_allclose(ours.prox(torch.from_numpy(w), step).numpy(), expected, rtol=1e-9, atol=1e-12)
    rows = np.random.default_rng(0).normal(size=(12, 5))
    block = sk.L2_1(lam)
    ours = p.GroupL1(lam, "rows", weighted=False)
    assert float(ours.value(torch.from_numpy(rows))) == pytest.approx(block.value(rows), rel=1e-12)
    expected = np.array([block.prox_1feat(row, 1.3, 0) for row in rows])
    np.testing.assert_allclose(ours.prox(torch.from_numpy(rows), 1.3).numpy(), expected, rtol=1e-12, atol=1e-14)
