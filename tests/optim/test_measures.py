"""What a step on factors measures: the numbers against float64, and that the step itself is another no more."""

from __future__ import annotations

import copy
import math
import weakref

import pytest
import torch
from cases import DTYPES, LAYOUTS, values
from torch import nn

import sparsenn
from sparsenn import metrics
from sparsenn.ops import backend as use_backend
from sparsenn.optim import FactorizedAdam, FactorizedSGD

_ops = torch.ops.sparsenn
SHAPES = [(37, 61), (), (0, 4), (1,), (5000,), (2, 3, 4, 5)]
LR, LAM = torch.tensor(0.01, dtype=torch.float64), torch.tensor(0.02)
OPTIMIZERS = {
    "sgd": lambda params, depth: FactorizedSGD(params, 0.05, depth=depth, lam=1e-3, momentum=0.9),
    "adam": lambda params, depth: FactorizedAdam(params, 0.05, depth=depth, lam=1e-3),
    "roots": lambda params, depth: FactorizedSGD(
        params, 0.05, depth=depth, lam=1e-3, momentum=0.9, factor_init="root", balanced=True
    ),
}


def parameters(dtype=torch.float32, device="cpu"):
    """With gradients, and weights small enough that some are below the threshold."""
    params = [nn.Parameter(0.2 * values(shape, dtype, device)) for shape in SHAPES]
    for p in params:
        p.grad = values(tuple(p.shape), dtype, device)
    return params


def truth(p, factors, threshold):
    factors, weight = [f.double() for f in factors], p.detach().double()
    kept = int((p.detach().float().abs() > torch.tensor(threshold, dtype=torch.float32)).sum())
    decay = sum(float(f.square().sum()) for f in factors) / len(factors)
    return kept, math.sqrt(float(weight.square().sum())), decay, float(metrics.misalignment(factors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_are_those_of_weights_and_factors(backend, name, depth, dtype):
    params = parameters(dtype)
    optimizer = OPTIMIZERS[name](params, depth)
    for _ in range(3):
        optimizer.measure_next(0.2)
        optimizer.step()
        found = optimizer.measures(0.2)
        assert list(found) == params
        for p in params:
            assert found[p] == pytest.approx(truth(p, optimizer.factors(p), 0.2), rel=1e-12, abs=1e-12 * p.numel())
            if name == "roots":
                assert found[p].misalignment == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_measures_is_the_same_step(backend, name):
    plain = parameters()
    measuring = copy.deepcopy(plain)
    for p, q in zip(plain, measuring, strict=True):
        q.grad = p.grad.clone()
    optimizers = []
    for params in (plain, measuring):
        torch.manual_seed(1)  # of the factors
        optimizers.append(OPTIMIZERS[name](params, 3))
    first, second = optimizers
    for _ in range(4):
        second.measure_next()
        first.step(), second.step()
    for p, q in zip(plain, measuring, strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(a, b) for a, b in zip(first.factors(p), second.factors(q), strict=True))


def test_the_steps_own_numbers_are_taken_as_long_as_they_hold():
    params = parameters()
    optimizer = OPTIMIZERS["sgd"](params, 2)
    optimizer.measure_next(0.2)
    optimizer.step()
    of_step, p = optimizer.measures(), params[0]
    assert of_step == optimizer.measures(0.2)  # what the step was asked for
    assert of_step != optimizer.measures(0.1)
    factor = optimizer.factors(p)[0]
    factor.mul_(2)  # nobody is told: numbers that are formed now would be other ones
    assert optimizer.measures() == of_step
    assert optimizer.measures(0.1)[p].factor_decay > of_step[p].factor_decay
    factor.div_(2)
    optimizer.step()  # which does not measure
    assert optimizer.measures(0.2)[p] == pytest.approx(truth(p, optimizer.factors(p), 0.2), rel=1e-12)
    assert optimizer.measures()[p] == pytest.approx(truth(p, optimizer.factors(p), 0.0), rel=1e-12)


def test_changed_weights_are_measured_when_they_have_their_factors_again():
    params = parameters()
    optimizer = OPTIMIZERS["sgd"](params, 2)
    optimizer.measure_next()
    optimizer.step()
    with torch.no_grad():
        params[0].add_(1)
    with pytest.raises(RuntimeError, match="changed outside the optimizer"):
        optimizer.measures()
    optimizer.resync()
    found = optimizer.measures()[params[0]]
    assert found == pytest.approx(truth(params[0], optimizer.factors(params[0]), 0.0), rel=1e-12)


def test_what_a_step_has_measured_keeps_no_factors_alive():
    params = parameters()
    optimizer = FactorizedSGD(params, 0.05, depth=3, momentum=0.9)
    optimizer.measure_next()
    optimizer.step()
    factors = [weakref.ref(factor) for p in params for factor in optimizer.factors(p)]
    of_step = optimizer.measures()
    optimizer.balance(tolerance=math.inf)
    assert [ref() for ref in factors] == [None] * len(factors)
    now = optimizer.measures()
    assert [own.norm for own in now.values()] == pytest.approx([own.norm for own in of_step.values()], rel=1e-6)
    assert all(own.misalignment == 0 for own in now.values())


def test_parameters_that_no_step_has_moved_are_measured_now():
    params = parameters()
    optimizer = OPTIMIZERS["adam"](params, 3)
    assert optimizer.measures()[params[0]] == pytest.approx(truth(params[0], optimizer.factors(params[0]), 0.0), rel=1e-12)
    params[0].grad = None
    optimizer.measure_next()
    optimizer.step()
    for p in params:
        assert optimizer.measures()[p] == pytest.approx(truth(p, optimizer.factors(p), 0.0), rel=1e-12, abs=1e-12)


def test_sums_over_parameters_are_the_penalties_of_a_factorized_net():
    layer = nn.Linear(7, 5)
    optimizer = FactorizedSGD(layer.parameters(), 0.1, depth=3, lam=1e-3)
    layer(torch.ones(2, 7)).square().sum().backward()
    optimizer.measure_next()
    optimizer.step()
    explicit = sparsenn.factorize(copy.deepcopy(layer), depth=3, include=("weight", "bias"))
    with torch.no_grad():
        for name, p in layer.named_parameters():
            own = explicit.parametrizations[name]
            for d, factor in enumerate(optimizer.factors(p)):
                getattr(own, f"original{d}").copy_(factor)
    found = optimizer.measures().values()
    decay, least = sparsenn.penalties.factor_decay(explicit), sparsenn.penalties.factor_decay_min(explicit)
    assert sum(own.factor_decay for own in found) == pytest.approx(float(decay.detach()), rel=1e-5)
    assert sum(own.misalignment for own in found) == pytest.approx(float((decay - least).detach()), rel=1e-3)


@pytest.mark.parametrize("threshold", [0.7, 0.6])
def test_sums_do_not_depend_on_threads(kernels, threshold):
    """Those of the step, and those that are formed now, for a threshold that it was not asked for."""
    found = []
    for threads in (1, 2, 4):
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        try:
            weight = nn.Parameter(values((300, 700), torch.float32))
            weight.grad = values((300, 700), torch.float32)
            optimizer = OPTIMIZERS["sgd"]([weight], 3)
            optimizer.measure_next(0.7)
            optimizer.step()
            found.append(optimizer.measures(threshold)[weight])
        finally:
            torch.set_num_threads(1)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("depth", [9, 32, 100, 300])
def test_a_product_of_many_small_factors_is_still_a_number(kernels, depth):
    """Relative to the one that is 1 their product is less than the least float64, its root of this depth is not."""
    small = 10.0 ** (-200 / (depth - 1))
    factors = [torch.ones(3, dtype=torch.float64), *(torch.full((3,), small, dtype=torch.float64) for _ in range(depth - 1))]
    row = torch.empty(1, 4, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    nothing = [torch.zeros(3, dtype=torch.float64)]
    _ops.factorized_sgd_([torch.ones(3, dtype=torch.float64)], factors, [], nothing, zero, zero, 0, 0, 0, False, False, row, 0)
    squares = small**2
    assert float(row[0, 3]) == pytest.approx(3 * ((1 + (depth - 1) * squares) / depth - 10.0 ** (-400 / depth)), rel=1e-11)


def calls(depth, momentum=0.9):
    """The operators with a place for what they measure, and how many tensors of a state they take for each factor."""
    rule = (0.0, 0.0, False, False)
    return {
        "factorized_sgd_": (depth, lambda w, k, g, *m: _ops.factorized_sgd_(w, k[0], k[1], g, LR, LAM, momentum, *rule, *m)),
        "balanced_sgd_": (1, lambda w, k, g, *m: _ops.balanced_sgd_(w, k[0], k[1], g, LR, LAM, depth, momentum, *rule, *m)),
        "factorized_adam_": (
            depth,
            lambda w, k, g, *m: _ops.factorized_adam_(
                w,
                *k[:2],
                [x.square() for x in k[0]],
                [],
                [torch.zeros((), device=x.device) for x in w],
                g,
                *(LR, LAM, 0.9, 0.99, 1e-3, 0.0, False, False),
                *m,
            ),
        ),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 8, 9, 13])
@pytest.mark.parametrize("name", calls(1))
def test_kernels_equal_the_reference(kernels, device, name, depth, dtype):
    """In any layout: what is counted to the unit, sums to the last digits of float64."""
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    many, call = calls(depth)[name]
    layouts = list(LAYOUTS.values())
    weights, grads = (
        [layouts[i % 4](values(s, dtype, device)) if s else values(s, dtype, device) for i, s in enumerate(SHAPES)]
        for _ in "wg"
    )
    state = [[values(s, inner, device) for s in SHAPES for _ in range(many)] for _ in range(2)]
    found = []
    for mode in ("reference", "compiled"):
        own, kinds = copy.deepcopy(weights), copy.deepcopy(state)
        found.append(torch.empty(len(SHAPES), 4, dtype=torch.float64, device=device))
        with use_backend(mode):
            call(own, kinds, grads, found[-1], 0.7)
    reference, compiled = found
    assert torch.equal(compiled[:, 0], reference[:, 0])
    assert 0 < int(reference[:, 0].sum()) < sum(math.prod(s) for s in SHAPES)
    rtol = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 1e-3)  # the sums are of numbers that were rounded to it
    torch.testing.assert_close(compiled, reference, rtol=rtol, atol=1e-10)
    assert torch.equal(compiled[2], torch.zeros(4, dtype=torch.float64, device=device))  # of an empty weight


@pytest.mark.parametrize("name", calls(1))
def test_wrong_places_are_refused_before_anything_moves(kernels, name):
    many, call = calls(2)[name]
    weight, factors = torch.ones(3), [torch.ones(3) for _ in range(many)]
    for rows, threshold, message in (
        (torch.empty(1, 3, dtype=torch.float64), 0.0, r"contiguous float64 tensor of shape \(1, 4\)"),
        (torch.empty(2, 4, dtype=torch.float64), 0.0, r"shape \(1, 4\)"),
        (torch.empty(1, 4), 0.0, "float64"),
        (torch.empty(1, 8, dtype=torch.float64)[:, ::2], 0.0, "contiguous"),
        (torch.empty(1, 4, dtype=torch.float64), -0.1, "threshold is -0.1; it takes a number >= 0"),
        (torch.empty(1, 4, dtype=torch.float64), math.nan, "threshold is nan"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call([weight], [factors, copy.deepcopy(factors)], [torch.ones(3)], rows, threshold)
        assert all(torch.equal(x, torch.ones(3)) for x in (weight, *factors))


@pytest.mark.parametrize("threshold", [-1.0, math.nan, math.inf, "small", [0.1]])
def test_a_threshold_is_a_number(threshold):
    optimizer = OPTIMIZERS["sgd"](parameters(), 2)
    for method in (optimizer.measure_next, optimizer.measures):
        with pytest.raises(ValueError, match=r"threshold is .*; it takes a finite number >= 0"):
            method(threshold)
