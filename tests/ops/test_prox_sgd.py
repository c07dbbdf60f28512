"""The proximal SGD step: against torch.optim.SGD, a formula in float64, and the minimizer that it must stop at."""

from __future__ import annotations

import copy
import itertools
import re

import pytest
import torch
from cases import DTYPES, FUSED, LAYOUTS, tolerance, values
from torch import Tensor, nn

from sparsenn.ops import backend as use_backend

_ops = torch.ops.sparsenn

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

RULES = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight_decay": {"momentum": 0.8, "weight_decay": 0.05},
    "maximize": {"momentum": 0.5, "maximize": True},
    "undamped": {"dampening": 0.3},  # without momentum there is nothing to dampen
}
DEFAULTS = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False}
SHAPES = [(3, 5), (2500,), (), (0, 4), (2, 3, 4, 5), (17, 300)]


def scalar(x: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(x, dtype=dtype)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def step(weights, momenta, grads, lams, zeros=None, lr=0.1, **options) -> Tensor:
    zeros = torch.empty(0, dtype=torch.int64, device=weights[0].device) if zeros is None else zeros
    rule = {**DEFAULTS, **options}
    _ops.prox_sgd_(weights, momenta if rule["momentum"] else [], grads, lams, zeros, scalar(lr), *rule.values())
    return zeros


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality that tells -0.0 from 0.0."""
    return torch.equal(a.view(BITS[a.element_size()]), b.view(BITS[b.element_size()]))


def lams_of(kind: str, shapes, dtype: torch.dtype, device="cpu") -> list[Tensor]:
    if kind == "zero":
        return [scalar(0.0)]
    if kind == "number":
        return [scalar(0.3)]
    if kind == "numbers":
        return [scalar(0.1 * n, torch.float32) for n in range(len(shapes))]
    if kind == "rows":
        return [torch.rand(s[:1] + (1,) * (len(s) - 1), device=device).to(dtype if s else torch.float32) for s in shapes]
    if kind == "elements":
        return [torch.rand(s, device=device).to(state_dtype(dtype)) for s in shapes]
    return [torch.rand(s[-1:], device=device).to(dtype if s else torch.float32) for s in shapes]


LAMS = ("zero", "number", "numbers", "rows", "elements", "columns")


@pytest.mark.parametrize("rule", [name for name in RULES if name != "undamped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_penalty_it_is_torch_sgd_to_the_bit(kernels, fused_torch, dtype, rule):
    weights = [values(s, dtype) for s in SHAPES]
    params = [nn.Parameter(w.clone()) for w in weights]
    theirs = torch.optim.SGD(params, 0.05, foreach=False, fused=False, **RULES[rule])
    momenta = [torch.zeros_like(w) for w in weights]
    for i in range(20):
        grads = [values(s, dtype) for s in SHAPES]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        theirs.step()
        options = {**RULES[rule], **({"dampening": 0.0} if i == 0 else {})}  # torch's first momentum is the gradient
        zeros = step(weights, momenta, grads, [scalar(0.0)], torch.empty(len(SHAPES), dtype=torch.int64), 0.05, **options)
        for p, w, count in zip(params, weights, zeros, strict=True):
            assert same_bits(p.detach(), w)
            assert count == (p == 0).sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", LAMS)
def test_kernel_equals_reference(kernels, device, dtype, rule, kind):
    weights = [values(s, dtype, device) for s in SHAPES]
    layouts = list(LAYOUTS.values())
    grads = [layouts[i % 2 if len(s) > 1 else 0](values(s, dtype, device)) for i, s in enumerate(SHAPES)]
    momenta = [values(s, state_dtype(dtype), device) for s in SHAPES]
    lams = lams_of(kind, SHAPES, dtype, device)
    results = []
    for mode in ("reference", "compiled"):
        w, m = copy.deepcopy((weights, momenta))
        with use_backend(mode):
            zeros = step(w, m, grads, lams, torch.full((len(w),), -1, device=device), **RULES[rule])
        results.append((w, m, zeros))
    (w_defined, m_defined, zeros_defined), (w, m, zeros) = results
    for ours, definition in zip([*w, *m], [*w_defined, *m_defined], strict=True):
        if FUSED and device.type == "cpu":
            assert same_bits(ours, definition)
        else:
            torch.testing.assert_close(ours, definition, **tolerance(ours.dtype))
    assert zeros.tolist() == [int((x == 0).sum()) for x in w]
    if FUSED and device.type == "cpu":
        assert torch.equal(zeros, zeros_defined)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_the_step_equals_its_formula_in_float64(backend, dtype, rule):
    options = {**DEFAULTS, **RULES[rule]}
    mu, damped = options["momentum"], 1 - options["dampening"] if options["momentum"] else 1.0
    w, g = values((400,), dtype, zeros=False), values((400,), dtype, zeros=False)
    v, lam = values((400,), state_dtype(dtype)), torch.rand(400).to(dtype)
    wide = w.double()
    update = (-1 if options["maximize"] else 1) * g.double() + options["weight_decay"] * wide
    if mu:
        buffer = mu * v.double() + damped * update
        update = update + mu * buffer if options["nesterov"] else buffer
    z, t = wide - 0.1 * update, lam.double() * 0.1 * damped / (1 - mu)
    expected = torch.where(z > t, z - t, torch.where(z < -t, z + t, 0))
    step([w], [v], [g], [lam], **options)
    torch.testing.assert_close(w.double(), expected, rtol=tolerance(dtype)["rtol"], atol=8 * torch.finfo(v.dtype).eps)
    if mu:
        torch.testing.assert_close(v.double(), buffer, rtol=tolerance(v.dtype)["rtol"], atol=8 * torch.finfo(v.dtype).eps)


@pytest.mark.parametrize("rule", ["plain", "momentum", "dampening", "nesterov", "weight_decay", "undamped"])
def test_it_stops_at_the_minimizer_of_loss_plus_penalty(backend, rule):
    """A strongly convex quadratic, so that the optimality conditions have one solution; lam differs from weight to weight."""
    options = {**DEFAULTS, **RULES[rule]}
    root = torch.randn(30, 12, dtype=torch.float64)
    hessian, linear = root.T @ root / 30 + 0.1 * torch.eye(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    lam = torch.linspace(0.05, 0.6, 12, dtype=torch.float64)
    w, v, zeros = torch.randn(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    for _ in range(3000):
        step([w], [v], [hessian @ w - linear], [lam], zeros, lr=0.05, **options)
    gradient = hessian @ w - linear + options["weight_decay"] * w
    zero = w == 0
    assert 0 < zero.sum() < 12
    assert zeros.item() == zero.sum()
    torch.testing.assert_close(gradient[~zero], -(lam * w.sign())[~zero], rtol=1e-9, atol=1e-9)
    assert (gradient[zero].abs() < lam[zero]).all()


def test_zeros_are_positive_and_nan_is_neither_made_nor_lost(backend, device):
    for dtype in DTYPES:
        least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # a tenth of it rounds to zero
        w = torch.tensor([0.0, -0.0, -1.0, 1.0, 0.0, torch.nan, 1.0, -5.0], dtype=dtype, device=device)
        g = torch.tensor([0.0, 0.0, 0.0, 0.0, least, 0.0, torch.nan, torch.inf], dtype=dtype, device=device)
        for lam in (scalar(1e-45, torch.float32), scalar(20.0), torch.zeros(8, dtype=dtype, device=device)):
            got, zeros = w.clone(), torch.zeros(1, dtype=torch.int64, device=device)
            step([got], [], [g], [lam], zeros)
            assert got.isnan().tolist() == [False] * 5 + [True, True, False]
            assert got[7] == -torch.inf
            assert not torch.signbit(got[got == 0]).any()
            assert zeros.item() == (got == 0).sum()
            if lam.dim() == 0 and lam > 1:
                assert zeros.item() == 5


def test_without_penalty_negative_zeros_stay(backend):
    w = torch.tensor([-0.0, 0.0])
    step([w], [], [torch.zeros(2)], [scalar(0.0)], lr=0.0)
    assert torch.signbit(w).tolist() == [True, False]


def test_a_half_weight_is_rounded_once(backend):
    """One part in 2^12 is lost in float16 and kept in the float32 momentum: four such steps move the weight by one unit."""
    w, v = torch.ones(1, dtype=torch.float16), torch.zeros(1)
    g = torch.full((1,), -(2.0**-12), dtype=torch.float16)
    moved = []
    for _ in range(4):
        _ops.prox_sgd_(
            [w], [v], [g], [scalar(0.0)], torch.empty(0, dtype=torch.int64), scalar(1.0), 0.999, 0.0, 0.0, False, False
        )
        moved.append(w.item())
    assert moved[0] == 1.0  # a tie, to even
    assert moved[-1] > 1.0
    torch.testing.assert_close(v.item(), -(2.0**-12) * sum(0.999**k for k in range(4)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(kernels, layout):
    shape, arrange = (4, 3, 5, 60), LAYOUTS[layout]
    plain = [values(shape, torch.float32) for _ in range(4)]
    plain[3] = plain[3].abs()

    def run(w, v, g, lam):
        zeros = step([w], [v], [g], [lam], torch.zeros(1, dtype=torch.int64), momentum=0.9)
        return w, v, zeros

    expected = run(*(x.clone() for x in plain))
    for strided in range(4):
        mixed = [arrange(x.clone()) if i == strided else x.clone() for i, x in enumerate(plain)]
        assert all(torch.equal(a, b) for a, b in zip(run(*mixed), expected, strict=True))


def test_what_is_only_read_may_be_expanded(backend):
    w, row, columns = values((6, 50), torch.float32), values((1, 50), torch.float32), torch.rand(6, 1)
    expected = w.clone()
    step([expected], [], [row.expand(6, 50).contiguous()], [columns.expand(6, 50).contiguous()])
    step([w], [], [row.expand(6, 50)], [columns])
    assert torch.equal(w, expected)


def test_counts_go_to_any_one_dimensional_tensor(backend):
    weights = [torch.tensor([0.5, 2.0, 0.1]), torch.tensor([]), torch.tensor([3.0])]
    memory = torch.full((6,), -1)
    step(weights, [], [torch.zeros_like(w) for w in weights], [scalar(10.0)], memory[::2])
    assert memory.tolist() == [2, -1, 0, -1, 0, -1]


def test_many_tensors_in_one_call(kernels, device):
    sizes = [n % 37 * (200 if n % 100 == 1 else 1) for n in range(1000)]
    weights, grads = ([values((n,), torch.float32, device) for n in sizes] for _ in range(2))
    whole, upstream = torch.cat(weights), torch.cat(grads)
    lams = [scalar(1.0)]
    zeros = step(weights, [], grads, lams, torch.zeros(1000, dtype=torch.int64, device=device))
    total = step([whole], [], [upstream], lams, torch.zeros(1, dtype=torch.int64, device=device))
    assert torch.equal(torch.cat(weights), whole)
    assert zeros.tolist() == [int((w == 0).sum()) for w in weights]
    assert zeros.sum() == total


def test_same_bits_for_any_number_of_threads_and_every_run(kernels):
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        w = torch.linspace(-1, 1, 200_000)
        v, zeros = torch.zeros_like(w), torch.zeros(2, dtype=torch.int64)
        for _ in range(3):
            step([w, w[:0]], [v, v[:0]], [w.sin(), w[:0]], [scalar(0.1)], zeros, momentum=0.9)
        results.append((w, v, zeros))
    torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert results[0][2].tolist() == [int((results[0][0] == 0).sum()), 0]


def test_the_step_allocates_nothing(kernels):
    w, g = torch.randn(100_000), torch.randn(100_000)
    arguments = ([w], [torch.zeros_like(w)], [g], [torch.rand(100_000)], torch.zeros(1, dtype=torch.int64), scalar(0.1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        _ops.prox_sgd_(*arguments, 0.9, 0.0, 0.0, False, False)
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profile.events()) == 0


def test_what_does_not_fit_is_refused_before_anything_is_written(kernels):
    def refused(match, index=None, value=None, **options):
        w, v, g = [torch.ones(2, 3), torch.ones(4)], [torch.ones(2, 3), torch.ones(4)], [torch.ones(2, 3), torch.ones(4)]
        zeros = torch.full((2,), -1)
        arguments = [w, v, g, [scalar(0.1)], zeros, scalar(0.1), *{**DEFAULTS, "momentum": 0.9, **options}.values()]
        if index is not None:
            arguments[index] = value(arguments[index]) if callable(value) else value
        with pytest.raises(RuntimeError, match=match):
            _ops.prox_sgd_(*arguments)
        assert all((x == 1).all() for x in (*w, *v))
        assert (zeros == -1).all()

    refused("one gradient for each", 2, lambda g: g[:1])
    refused("one momentum for each", 1, [])
    refused("one momentum for each", momentum=0.0)
    refused("momentum is 1", momentum=1.0)
    refused("lams takes", 3, lambda lams: lams * 3)
    refused("lams takes", 3, [torch.ones(4)])
    refused(r"lams\[1\] has shape \(5,\), which does not broadcast to the shape \(4,\)", 3, [scalar(0.1), torch.ones(5)])
    refused(r"lams\[1\] has shape \(1, 4\)", 3, [scalar(0.1), torch.ones(1, 4)])
    refused(r"lams\[1\] is float64; it acts on float32", 3, [scalar(0.1), torch.ones(4, dtype=torch.float64)])
    refused(r"lams\[0\] is bfloat16 \(\); it takes one float32 or float64 number", 3, [scalar(1.0, torch.bfloat16)])
    refused("zeros takes", 4, torch.zeros(3, dtype=torch.int64))
    refused("zeros takes", 4, torch.zeros(2))
    refused("zeros is expanded", 4, torch.full((1,), -1).expand(2))
    refused(
        r"prox_sgd_: grads\[1\] is float32 \(3,\); its weight is float32 \(4,\), and they must agree",
        2,
        lambda g: [g[0], torch.ones(3)],
    )
    refused(r"grads\[1\] is float64 \(4,\); its weight is float32", 2, lambda g: [g[0], g[1].double()])
    refused(r"momenta\[1\] is float16 \(4,\); its weight is float32", 1, lambda v: [v[0], v[1].half()])
    refused(r"weights\[1\] is float64, weights\[0\] float32; they must agree", 0, lambda w: [w[0], w[1].double()])
    refused(r"weights\[1\] is written but", 0, lambda w: [w[0], torch.ones(1).expand(4)])
    refused(r"momenta\[1\] is written but", 1, lambda v: [v[0], torch.ones(1).expand(4)])


def test_a_half_weight_says_which_state_it_takes(kernels):
    w = torch.ones(3, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"momenta\[0\] is bfloat16 \(3,\); its weight is .*, beside which it takes float32"):
        step([w], [w.clone()], [w.clone()], [scalar(0.1)], momentum=0.9)


def test_tensors_that_are_written_share_no_element(kernels):
    """Dense ones are refused exactly where they do; one with gaps only where it does, since another may lie in its gaps."""
    base = torch.arange(24.0)
    table = base.view(4, 6)
    dense = [base[:6], base[6:12], base[5:7], base[23:], base[3:3], table.t(), table[1:3]]
    gaps = [table[:, :3], table[:, 3:], table[:, 2:4], base[::2], base[1::2], base[8:12:2]]
    places = torch.arange(24)

    def elements(x):
        return set(places.as_strided(x.shape, x.stride(), x.storage_offset()).flatten().tolist())

    def taken(a, b):
        grads = [torch.zeros_like(a), torch.zeros_like(b)]
        try:
            step([a, b], [], grads, [scalar(0.0)])
        except RuntimeError as error:
            return re.search(r"prox_sgd_: weights\[[01]\] and weights\[[01]\] share memory", str(error)) is None
        return True

    for _ in range(2):  # what was found once is remembered
        for (i, a), (k, b) in itertools.product(enumerate(dense + gaps), repeat=2):
            found, common = taken(a, b), bool(elements(a) & elements(b))
            assert found or common
            assert not (found and common) or max(i, k) >= len(dense)
    weight, state = base[:4], base[2:6]
    with pytest.raises(RuntimeError, match=r"momenta\[0\] and weights\[0\] share memory"):
        step([weight], [state], [torch.ones(4)], [scalar(0.1)], momentum=0.9)
    with pytest.raises(RuntimeError, match=r"factorized_sgd_: factors\[0\] and weights\[0\] share memory"):
        _ops.factorized_sgd_(
            [weight], [state, torch.ones(4)], [], [torch.ones(4)], scalar(0.1), scalar(0.0), 0.0, 0.0, 0.0, False, False
        )
    assert torch.equal(base, torch.arange(24.0))


def test_the_definition_takes_no_momentum_of_one():
    with use_backend("reference"), pytest.raises(ValueError, match="momentum is 1"):
        step([torch.ones(2)], [torch.ones(2)], [torch.ones(2)], [scalar(0.1)], momentum=1.0)
