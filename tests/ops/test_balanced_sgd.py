"""The step on balanced factors: kernel against reference, and both against the step on all D factors."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import DTYPES, FUSED, LAYOUTS, tolerance, values

from sparsenn.ops import backend as use_backend

_ops = torch.ops.sparsenn
RULES = (  # momentum, dampening, weight_decay, nesterov, maximize
    (0.0, 0.0, 0.0, False, False),
    (0.9, 0.0, 0.1, True, False),
    (0.9, 0.3, 0.0, False, True),
)
SHAPES = [(3, 5), (2500,), (), (0, 4), (2, 3, 4, 5)]
LR, LAM = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.02)


def drawn(dtype, device="cpu"):
    """Roots and momenta so large beside each other that many a root crosses zero."""
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    weights, grads = ([values(s, dtype, device) for s in SHAPES] for _ in range(2))
    roots, momenta = ([values(s, inner, device) for s in SHAPES] for _ in range(2))
    return weights, roots, [4 * v for v in momenta], grads


def steps(depth):
    """High powers soon leave the numbers' range."""
    return 3 if depth <= 5 else 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12])
def test_kernel_equals_reference(kernels, device, dtype, depth):
    weights, roots, momenta, grads = drawn(dtype, device)
    layouts = list(LAYOUTS.values())
    grads = [layouts[i % 2 if len(s) > 1 else 0](grad) for i, (s, grad) in enumerate(zip(SHAPES, grads, strict=True))]
    for rule in RULES:
        results = []
        for mode in ("reference", "compiled"):
            w, r, m = copy.deepcopy((weights, roots, momenta if rule[0] else []))
            with use_backend(mode):
                for _ in range(steps(depth)):
                    _ops.balanced_sgd_(w, r, m, grads, LR, LAM, depth, *rule)
            results.append([*w, *r, *m])
        for reference, compiled in zip(*results, strict=True):
            if FUSED and device.type == "cpu":
                assert torch.equal(compiled, reference)
            else:
                torch.testing.assert_close(compiled, reference, **tolerance(compiled.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 8, 9])
def test_is_the_step_on_all_factors_with_any_signs(backend, dtype, depth):
    """Up to depth 4 to the bit, zero crossings included; beyond, products of the same numbers are formed in another order."""
    weights, roots, momenta, grads = drawn(dtype)
    for rule in RULES:
        signs = [torch.randn(depth, *s, dtype=r.dtype).sign() for s, r in zip(SHAPES, roots, strict=True)]
        for own, root in zip(signs, roots, strict=True):
            own[0] *= own.prod(0) * torch.where(root.signbit(), -1.0, 1.0)  # so that the factors' signs multiply to the root's
        factors = [sign * r.abs() for own, r in zip(signs, roots, strict=True) for sign in own]
        pairs = zip(signs, momenta, roots, strict=True)
        velocities = [sign * torch.where(r.signbit(), -v, v) for own, v, r in pairs for sign in own] if rule[0] else []
        many, few = copy.deepcopy(weights), copy.deepcopy(weights)
        r, m = copy.deepcopy((roots, momenta if rule[0] else []))
        crossed = 0
        for _ in range(steps(depth)):
            before = [f.signbit() for f in factors]
            _ops.factorized_sgd_(many, factors, velocities, grads, LR, LAM, *rule)
            _ops.balanced_sgd_(few, r, m, grads, LR, LAM, depth, *rule)
            crossed += sum(int((f.signbit() != b).sum()) for f, b in zip(factors, before, strict=True))
        assert crossed > 100
        for a, b in zip(few, many, strict=True):
            if depth <= 4:
                assert torch.equal(a, b)
            else:
                torch.testing.assert_close(a, b, rtol=100 * tolerance(dtype)["rtol"], atol=100 * tolerance(dtype)["atol"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(kernels, layout):
    shape, arrange = (4, 3, 5, 6), LAYOUTS[layout]
    plain = [values(shape, torch.float32) for _ in range(4)]
    expected = [x.clone() for x in plain]
    _ops.balanced_sgd_(*([x] for x in expected), LR, LAM, 4, 0.9, 0.0, 0.0, False, False)
    for strided in range(4):
        mixed = [arrange(x.clone()) if i == strided else x.clone() for i, x in enumerate(plain)]
        _ops.balanced_sgd_(*([x] for x in mixed), LR, LAM, 4, 0.9, 0.0, 0.0, False, False)
        assert all(torch.equal(a, b) for a, b in zip(mixed, expected, strict=True))


def test_wrong_arguments_are_refused_before_anything_is_written(kernels):
    def call(depth=2, momentum=0.9, **changes):
        given = {name: [torch.ones(3)] for name in ("weights", "roots", "momenta", "grads")} | changes
        before = copy.deepcopy(given)
        try:
            _ops.balanced_sgd_(*given.values(), LR, LAM, depth, momentum, 0.0, 0.0, False, False)
        finally:
            for name, tensors in given.items():
                assert all(torch.equal(a, b) for a, b in zip(tensors, before[name], strict=True))

    shared = torch.ones(3)
    for changes, message in (
        ({"depth": 0}, "depth is 0; it takes an integer >= 1"),
        ({"roots": [torch.ones(3)] * 2}, "one root for each weight"),
        ({"grads": []}, "balanced_sgd_: one gradient for each weight"),
        ({"momenta": []}, "one momentum for each"),
        ({"momentum": 0.0}, "none where momentum is 0"),
        ({"roots": [torch.ones(4)]}, r"roots\[0\] is float32 \(4,\); its weight is float32 \(3,\), and they must agree"),
        ({"roots": [torch.ones(3, dtype=torch.float64)]}, r"roots\[0\] is float64 \(3,\); its weight is float32 \(3,\)"),
        ({"roots": [torch.ones(1).expand(3)]}, r"roots\[0\] is written but several of its elements share memory"),
        (
            {"roots": [shared], "momenta": [shared]},
            r"(roots|momenta)\[0\] and (roots|momenta)\[0\] share memory",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(**changes)
