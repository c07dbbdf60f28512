"""FactorizedAdam against torch.optim.Adam and AdamW on explicit factors, and its mathematics."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from cases import DTYPES, FUSED, LAYOUTS, tolerance, values
from regression import least_squares, standardized
from small_training import ADAM_RULES, batch, net
from torch import nn

from sparsenn.ops import backend as use_backend
from sparsenn.optim import FactorizedAdam

_ops = torch.ops.sparsenn


def peer(params, lr, pull, *, decoupled=False, fused=False, **options) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return kind(params, lr, weight_decay=pull, foreach=False, fused=fused, **options)


CASES = [
    (1, "plain"),
    (2, "plain"),
    (2, "decoupled"),
    (3, "amsgrad"),
    (3, "weight_decay"),
    (4, "maximize"),
    (5, "short memory"),
]


@pytest.mark.parametrize(("depth", "rule"), [*CASES, (9, "weight_decay")])
def test_equals_adam_on_explicit_factors(backend, depth, rule):
    options = dict(ADAM_RULES[rule])
    lam, decay, lr = 0.02, options.get("weight_decay", 0.0), 0.02
    sign = -1 if options.get("maximize") else 1
    dense, factorized = net(), net()
    ours = FactorizedAdam(dense.parameters(), lr, depth=depth, lam=lam, **options)

    # the same factors as parameters: w = prod_d w_d, and the plain L2 on w written into the loss
    options.pop("weight_decay", None)
    names = [name for name, _ in factorized.named_parameters()]
    factors = {name: [nn.Parameter(f.clone()) for f in ours.factors(p)] for name, p in dense.named_parameters()}
    theirs = peer(itertools.chain(*factors.values()), lr, 2 * lam / depth, **options)
    for step in range(200):
        x, y = batch(step)
        ours.zero_grad()
        (sign * (dense(x) - y).square().mean()).backward()
        ours.step()
        theirs.zero_grad()
        weights = {name: torch.stack(tuple(factors[name])).prod(0) for name in names}
        loss = (torch.func.functional_call(factorized, weights, (x,)) - y).square().mean()
        (sign * loss + sign * 0.5 * decay * sum(w.square().sum() for w in weights.values())).backward()
        theirs.step()
    for name, p in dense.named_parameters():
        torch.testing.assert_close(p, torch.stack(tuple(factors[name])).prod(0), rtol=1e-10, atol=1e-11)
        for mine, reference in zip(ours.factors(p), factors[name], strict=True):
            torch.testing.assert_close(mine, reference.detach(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("rule", ADAM_RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_depth_one_is_torch_adam(backend, fused_torch, dtype, rule):
    """To the bit that of ``fused=True`` on whole vectors, which rounds its root to nearest; the loop's may be next to that."""
    decay = ADAM_RULES[rule].get("weight_decay", 0.0)
    for lam in (0.0,) if decay else (0.0, 0.01):  # at depth 1 lam is a weight decay of twice its size, of either kind
        for fused in (False, True) if backend == "compiled" else (False,):
            options = {name: value for name, value in ADAM_RULES[rule].items() if name != "weight_decay"}
            ours_p, torch_p = (nn.Parameter(torch.linspace(-1, 1, 6 * 64, dtype=dtype).view(6, 64)) for _ in range(2))
            ours = FactorizedAdam([ours_p], 0.05, depth=1, lam=lam, weight_decay=decay, **options)
            if decay:  # on the weight it is a part of the gradient, whatever lam is
                options["decoupled"] = False
            theirs = peer([torch_p], 0.05, decay or 2 * lam, fused=fused, **options)
            for step in range(30):
                generator = torch.Generator().manual_seed(step)
                ours_p.grad = torch_p.grad = torch.randn(6, 64, generator=generator, dtype=torch.float64).to(dtype)
                ours.step()
                theirs.step()
                if fused:
                    assert torch.equal(ours_p, torch_p)
                else:
                    torch.testing.assert_close(ours_p, torch_p, rtol=0, atol=20 * torch.finfo(dtype).eps)


def state_of(shapes, depth, dtype, device, amsgrad):
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    weights = [values(s, dtype, device) for s in shapes]
    factors, means = ([values(s, inner, device) for s in shapes for _ in range(depth)] for _ in range(2))
    squares, largest = ([values(s, inner, device, zeros=False).abs() for s in shapes for _ in range(depth)] for _ in range(2))
    # steps that differ, so that each weight has its own correction
    steps = [torch.tensor(float(i // 2), device=device) for i in range(len(shapes))]
    return [weights, factors, means, squares, largest if amsgrad else [], steps]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7, 8, 12])
def test_kernel_equals_reference(kernels, device, dtype, depth):
    shapes = [(3, 5), (2500,), (), (0, 4), (2, 3, 4, 5)]
    layouts = list(LAYOUTS.values())
    lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (0.1, 0.02))
    for rule in ADAM_RULES.values():
        options = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "decoupled": False, "maximize": False, **rule}
        beta1, beta2 = options.pop("betas")
        state = state_of(shapes, depth, dtype, device, options.pop("amsgrad", False))
        grads = [layouts[i % 2 if len(s) > 1 else 0](values(s, dtype, device)) for i, s in enumerate(shapes)]
        names = ("eps", "weight_decay", "decoupled", "maximize")
        results = []
        for mode in ("reference", "compiled"):
            own = copy.deepcopy(state)
            with use_backend(mode):
                for _ in range(2):
                    _ops.factorized_adam_(*own, grads, lr, lam, beta1, beta2, *(options[name] for name in names))
            results.append(list(itertools.chain(*own)))
        for compiled, reference in zip(results[1], results[0], strict=True):
            if FUSED and device.type == "cpu" and dtype != torch.float64:  # torch's root may be off by a unit in float64
                assert torch.equal(compiled, reference)
            else:
                bounds = tolerance(compiled.dtype)
                if device.type == "cuda":  # torch divides before it multiplies there, and means that cancel keep the difference
                    bounds["atol"] *= 100
                torch.testing.assert_close(compiled, reference, **bounds)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_of_weights_gradients_and_state(kernels, layout):
    shape, arrange, depth = (4, 3, 5, 6), LAYOUTS[layout], 2
    plain = [values(shape, torch.float32) for _ in range(2 + 4 * depth)]
    plain[6:] = [x.abs() + 0.1 for x in plain[6:]]  # squares

    def step(tensors):
        weight, grad, *state = tensors
        kinds = [state[k * depth : (k + 1) * depth] for k in range(4)]
        lr, lam = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.01)
        _ops.factorized_adam_([weight], *kinds, [torch.zeros(())], [grad], lr, lam, 0.9, 0.99, 1e-8, 0.1, False, False)

    expected = [x.clone() for x in plain]
    step(expected)
    for strided in range(len(plain)):
        mixed = [arrange(x.clone()) if i == strided else x.clone() for i, x in enumerate(plain)]
        step(mixed)
        assert all(torch.equal(a, b) for a, b in zip(mixed, expected, strict=True))


def test_not_a_number_stays_one(kernels):
    """A NaN in a gradient, or in the squares so far, is no number in all that it reaches, as torch.maximum has it."""
    results = []
    for mode in ("reference", "compiled"):
        with use_backend(mode):
            state = [[torch.ones(40)], [torch.ones(40)], [torch.zeros(40)], [torch.ones(40)], [torch.ones(40)]]
            state[4][0][3] = torch.nan
            grad = torch.ones(40)
            grad[5] = torch.nan
            lr = torch.tensor(0.1)
            _ops.factorized_adam_(*state, [torch.zeros(())], [grad], lr, lr, 0.9, 0.99, 1e-8, 0.0, False, False)
            results.append(torch.cat([state[0][0], state[4][0]]))
    assert results[0].isnan().nonzero().flatten().tolist() == [3, 5, 43, 45]
    assert torch.equal(*(r.nan_to_num(7.0) for r in results))


def test_same_bits_for_any_number_of_threads_and_every_run(kernels):
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        p = nn.Parameter(torch.linspace(-1, 1, 200_000))
        optimizer = FactorizedAdam([p], 0.1, depth=3, lam=1e-3, generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            p.grad = p.detach().sin()
            optimizer.step()
        results.append(p.detach().clone())
    torch.set_num_threads(1)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_the_step_allocates_nothing(kernels):
    p = nn.Parameter(torch.randn(100_000))
    optimizer = FactorizedAdam([p], 0.1, depth=4, lam=1e-3, amsgrad=True)
    p.grad = torch.randn_like(p)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        optimizer.step()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated <= 64  # lr and lam as 0-d tensors


# the mathematics


@pytest.mark.parametrize("depth", [2, 4])
def test_balanced_factors_stay_balanced_and_zeros_stay_zero(backend, depth):
    p = nn.Parameter(torch.tensor([0.5, -0.3, 0.0, 0.8], dtype=torch.float64))
    optimizer = FactorizedAdam([p], 0.01, depth=depth, lam=0.05, factor_init="root")
    for step in range(100):
        p.grad = torch.tensor([0.3, -0.2, 5.0, 0.1], dtype=torch.float64) * (-1) ** step
        optimizer.step()
    magnitudes = torch.stack(optimizer.factors(p)).abs()
    torch.testing.assert_close(magnitudes, magnitudes[:1].expand_as(magnitudes), rtol=1e-10, atol=1e-15)
    assert p[2] == 0


def solved(problem, lam, steps, **options) -> torch.Tensor:
    """The weights after a schedule that ends at 0; what is below float32's epsilon is 0."""
    p = nn.Parameter(torch.full((problem.size,), 0.3, dtype=torch.float64))
    lr = torch.zeros((), dtype=torch.float64)
    optimizer = FactorizedAdam([p], lr, lam=lam, generator=torch.Generator().manual_seed(0), **options)
    for step in range(steps):
        lr.fill_(0.01 * (1 + math.cos(math.pi * step / steps)))
        p.grad = problem.gradient(p.detach())
        optimizer.step()
    return torch.where(p.detach().abs() <= torch.finfo(torch.float32).eps, 0.0, p.detach())


def test_the_lasso_at_depth_two_has_the_support_that_scikit_learn_finds(kernels):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = standardized("wide")
    problem = least_squares(x, y, 0.1)
    solver = linear_model.Lasso(alpha=problem.lam, fit_intercept=False, tol=1e-12, max_iter=100_000)
    expected = torch.from_numpy(solver.fit(x, y).coef_)
    found = solved(problem, problem.lam, 5000)
    assert 0 < (expected != 0).sum() < len(expected) / 2
    assert torch.equal(found != 0, expected != 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_decoupled_lam_neither_selects_weights_nor_pulls_at_them(kernels):
    """Without noise it bounds the factors and is otherwise without effect: least squares, where no weight is zero."""
    x, y = standardized("diabetes")
    problem = least_squares(x, y, 0.1)
    coupled, decoupled = (solved(problem, problem.lam, 5000, decoupled=decoupled) for decoupled in (False, True))
    assert (coupled == 0).sum() >= 3
    assert (decoupled == 0).sum() == 0
    assert problem.gradient(coupled).abs().max() > 0.5 * problem.lam
    assert problem.gradient(decoupled).abs().max() < 0.02 * problem.lam


def test_the_first_step_is_the_learning_rate_in_the_direction_of_each_gradient(backend):
    p = nn.Parameter(torch.tensor([0.5, -0.3, 2.0], dtype=torch.float64))
    optimizer = FactorizedAdam([p], 0.01, depth=3, factor_init="root", eps=1e-30)
    before = [f.clone() for f in optimizer.factors(p)]
    p.grad = torch.tensor([0.3, -1e-9, 5e6], dtype=torch.float64)
    optimizer.step()
    for d, (old, new) in enumerate(zip(before, optimizer.factors(p), strict=True)):
        others = torch.stack([f for k, f in enumerate(before) if k != d]).prod(0)
        torch.testing.assert_close(old - new, 0.01 * (p.grad * others).sign(), rtol=1e-12, atol=0)
