"""ProxSGD: the step against the formula written out, and the fixed points against closed forms."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, values
from small_training import RULES, net, train
from torch import nn

import sparsenn
from sparsenn.optim import ProxSGD

MOMENTA = {
    "plain": {},
    "half": {"momentum": 0.5},
    "heavy": {"momentum": 0.9},
    "dampened": {"momentum": 0.9, "dampening": 0.3},
    "lightly dampened": {"momentum": 0.5, "dampening": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}


def soft(x: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    return x.sign() * (x.abs() - threshold).clamp(min=0.0)


def written_out(w, grads, lr, lam, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, maximize=False):
    """The step of the docstring, in the tensors' own precision."""
    velocity = None
    for grad in grads:
        g = (-grad if maximize else grad) + weight_decay * w
        velocity_is_new, damped = velocity is None, 0.0 if velocity is None else dampening
        if momentum:
            velocity = g if velocity_is_new else momentum * velocity + (1 - damped) * g
            g = g + momentum * velocity if nesterov else velocity
            w = soft(w - lr * g, lr * lam * (1 - damped) / (1 - momentum))
        else:
            w = soft(w - lr * g, lr * lam)
    return w


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_formula(backend, rule):
    start, grads = values((40, 30), torch.float64), [values((40, 30), torch.float64) for _ in range(8)]
    p = nn.Parameter(start.clone())
    optimizer = ProxSGD([p], 0.1, lam=0.2, **RULES[rule])
    for grad in grads:
        p.grad = grad
        optimizer.step()
    expected = written_out(start, grads, 0.1, 0.2, **RULES[rule])
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)
    assert 0 < (expected == 0).sum() < expected.numel()
    assert torch.equal(p == 0, expected == 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_half_weights_are_rounded_once_a_step(backend, dtype, rule):
    p = nn.Parameter(values((50, 40), dtype))
    wide = p.detach().clone()
    optimizer = ProxSGD([p], 0.125, lam=0.25, **RULES[rule])
    grads: list[torch.Tensor] = []
    for _ in range(4):
        p.grad = values((50, 40), dtype)
        grads.append(p.grad.double())
        before = p.detach().clone()
        optimizer.step()
        if not RULES[rule]:
            assert torch.equal(p.detach(), written_out(before.double(), grads[-1:], 0.125, 0.25).to(dtype))
    spacing = torch.finfo(dtype).eps
    expected = written_out(wide.double(), grads, 0.125, 0.25, **RULES[rule])
    torch.testing.assert_close(p.detach().double(), expected, rtol=4 * spacing, atol=4 * spacing)
    if "momentum" in RULES[rule]:
        assert optimizer.state[p]["momentum_buffer"].dtype == torch.float32


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_penalty_it_is_torch_sgd_to_the_bit(kernels, fused_torch, dtype, rule):
    ours_net, torch_net = net(dtype), net(dtype)
    ours = ProxSGD(ours_net.parameters(), 0.05, **RULES[rule])
    theirs = torch.optim.SGD(torch_net.parameters(), 0.05, foreach=False, fused=False, **RULES[rule])
    for step in range(50):
        train(ours_net, ours, [step], dtype)
        train(torch_net, theirs, [step], dtype)
        for p, q in zip(ours_net.parameters(), torch_net.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("options", MOMENTA.values(), ids=MOMENTA)
@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_the_limit_solves_the_problem_at_lam_whatever_the_momentum(backend, options, decay):
    """min h (w - a)^2 / 2 + decay w^2 / 2 + lam |w| has the solution S(h a, lam) / (h + decay)."""
    a = torch.linspace(-2, 2, 41, dtype=torch.float64)
    h = 0.5 + torch.arange(41, dtype=torch.float64) % 3 / 2
    p = nn.Parameter(torch.ones(41, dtype=torch.float64))
    optimizer = ProxSGD([p], 0.2, lam=0.3, weight_decay=decay, **options)
    for _ in range(1500):
        p.grad = h * (p.detach() - a)
        optimizer.step()
    expected = soft(h * a, 0.3) / (h + decay)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(p == 0, expected == 0)
    assert 5 < (expected == 0).sum() < 36


@pytest.mark.parametrize("options", MOMENTA.values(), ids=MOMENTA)
def test_a_stationary_point_stays_and_no_other_point_does(backend, options):
    """With the momentum that a constant gradient has in the long run, w stays exactly where 0 is in g + lam d|w|."""
    lam, w = 0.3, torch.tensor([0.7, -0.4, 0.0, 0.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    grad = torch.tensor([-0.3, 0.3, 0.2, -0.3, 0.0, -0.2, 0.4], dtype=torch.float64)
    stationary = torch.tensor([True, True, True, True, True, False, False])
    p = nn.Parameter(w.clone())
    optimizer = ProxSGD([p], 0.1, lam=lam, **options)
    if options:
        long_run = (1 - options.get("dampening", 0.0)) / (1 - options["momentum"])
        optimizer.state[p].update(momentum_buffer=long_run * grad, momentum_started=True)
    p.grad = grad
    optimizer.step()
    moved = (p.detach() - w).abs()
    assert (moved[stationary] <= 1e-15).all()
    assert (moved[~stationary] > 1e-3).all()
    assert (p.detach()[2:5] == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", ["element", "row", "last"])
def test_a_lam_for_each_element_is_the_step_with_each_lam_alone(backend, dtype, spread, layout):
    shape = {"element": (4, 3), "row": (4, 1), "last": (3,)}[spread]
    lams = torch.linspace(0.0, 1.0, torch.Size(shape).numel()).reshape(shape)
    start, grads = values((4, 3), dtype), [values((4, 3), dtype) for _ in range(3)]
    p = nn.Parameter(LAYOUTS[layout](start.clone()))
    together = ProxSGD([p], 0.25, lam=lams.to(torch.float64), momentum=0.5)
    single = []
    for lam in lams.flatten().tolist():
        q = nn.Parameter(start.clone())
        single.append((q, ProxSGD([q], 0.25, lam=lam, momentum=0.5)))
    for grad in grads:
        p.grad = LAYOUTS[layout](grad.clone())
        together.step()
        for q, alone in single:
            q.grad = grad.clone()
            alone.step()
    own = torch.arange(lams.numel()).reshape(shape).expand(4, 3)
    expected = torch.stack([q.detach() for q, _ in single]).gather(0, own.unsqueeze(0))[0]
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(p.detach(), expected, rtol=4 * eps, atol=4 * eps)
    assert torch.equal(p == 0, expected == 0)


def test_a_weighted_penalty_has_the_weighted_lassos_solution(backend):
    a, lam = torch.full((5, 4), 1.0, dtype=torch.float64), torch.tensor([[0.0], [0.25], [0.5], [1.0], [2.0]])
    p = nn.Parameter(torch.zeros(5, 4, dtype=torch.float64))
    optimizer = ProxSGD([p], 0.2, lam=lam, momentum=0.9)
    for _ in range(800):
        p.grad = p.detach() - a
        optimizer.step()
    torch.testing.assert_close(p.detach(), soft(a, lam.double()), rtol=1e-12, atol=1e-14)


def test_no_zero_is_negative_and_only_nan_makes_nan(backend):
    w = torch.tensor([-0.0, 0.0, -1e-30, 1e-30, -0.05, 0.0, torch.nan, 1.0])
    p = nn.Parameter(w)
    optimizer = ProxSGD([p], 0.1, lam=1.0, momentum=0.9)
    p.grad = torch.tensor([0.0, -0.0, 0.0, -0.0, 0.5, torch.nan, 0.0, torch.inf])
    optimizer.step()
    assert torch.equal(p.isnan(), torch.tensor([False] * 5 + [True, True, False]))
    assert (p[:5] == 0).all()
    assert not torch.signbit(p[:5]).any()
    assert p[7] == -torch.inf
    assert optimizer.zeros(p) == 5


def test_the_penalty_shrinks_what_is_maximised_too(backend):
    """maximize is min -loss + lam |w|."""
    trained = []
    for sign in (1.0, -1.0):
        p = nn.Parameter(torch.tensor([0.3, -2.0, 0.01], dtype=torch.float64))
        optimizer = ProxSGD([p], 0.1, lam=0.2, momentum=0.5, maximize=sign < 0)
        for _ in range(5):
            p.grad = sign * torch.tensor([0.1, -0.4, 0.1], dtype=torch.float64)
            optimizer.step()
        trained.append(p.detach())
    assert torch.equal(*trained)


# the counts of zeros


def test_zeros_are_counted_for_every_parameter_at_every_step(backend):
    model = nn.Sequential(net(torch.float32), net(torch.bfloat16, seed=2))
    model.empty = nn.Parameter(torch.ones(0, 3))
    optimizer = ProxSGD(
        [{"params": model[0].parameters(), "lam": 0.5}, {"params": [*model[1].parameters(), model.empty], "lam": 1.0}],
        0.02,
        momentum=0.9,
        dampening=0.5,
    )
    assert optimizer.sparsity() == 0.0
    seen = set()
    for step in range(8):
        for i, p in enumerate(model.parameters()):
            p.grad = values(tuple(p.shape), p.dtype) if (i + step) % 3 else None  # the pattern changes at every step
        optimizer.step()
        for p in model.parameters():
            count = optimizer.zeros(p)
            assert count.dtype == torch.int64
            assert count.shape == ()
            assert count == (p == 0).sum()
        assert optimizer.sparsity() == sparsenn.metrics.sparsity(model)
        seen.add(optimizer.sparsity())
    assert len(seen) > 3


def test_a_count_is_a_copy_of_what_the_last_step_left(backend):
    p = nn.Parameter(torch.tensor([0.25, 0.05, 2.0]))
    optimizer = ProxSGD([p], 0.1, lam=1.0)
    p.grad = torch.zeros(3)
    counts = [optimizer.zeros(p)]
    for _ in range(4):
        optimizer.step()
        counts.append(optimizer.zeros(p))
    assert torch.stack(counts).tolist() == [0, 1, 1, 2, 2]
    with torch.no_grad():
        p.zero_()
    assert optimizer.zeros(p) == 2
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.zeros(p) == 3
    with pytest.raises(ValueError, match="no parameter of this optimizer"):
        optimizer.zeros(torch.ones(3))


def test_no_elements_no_zeros(backend):
    p = nn.Parameter(torch.ones(0, 4))
    optimizer = ProxSGD([p], 0.1, lam=1.0, momentum=0.9)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.zeros(p) == 0
    assert optimizer.sparsity() == 0.0


# memory and bits


def test_same_bits_and_counts_for_any_number_of_threads(kernels):
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        p = nn.Parameter(torch.linspace(-1, 1, 200_000))
        optimizer = ProxSGD([p], 0.1, lam=0.1, momentum=0.9)
        for _ in range(3):
            p.grad = p.detach().sin()
            optimizer.step()
        results.append((p.detach().clone(), int(optimizer.zeros(p))))
    torch.set_num_threads(1)
    for weights, count in results:
        assert torch.equal(weights, results[0][0])
        assert 0 < count == results[0][1]


@pytest.mark.parametrize("lam", [1e-3, torch.full((1000, 1), 1e-3, dtype=torch.float64)], ids=["number", "row"])
def test_the_step_allocates_nothing(kernels, lam):
    p = nn.Parameter(torch.randn(1000, 100))
    optimizer = ProxSGD([p], 0.1, lam=lam, momentum=0.9)
    for _ in range(2):
        p.grad = torch.randn_like(p)
        optimizer.step()
    p.grad = torch.randn_like(p)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        optimizer.step()
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profile.events()) == 0
