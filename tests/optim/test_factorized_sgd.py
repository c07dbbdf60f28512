"""FactorizedSGD against the factorized network under torch.optim.SGD, and its mathematics."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from cases import DTYPES, FUSED, LAYOUTS, tolerance, values
from small_training import RULES, batch, net, train
from torch import nn

import sparsenn
from sparsenn.ops import backend as use_backend
from sparsenn.ops import hadamard_product
from sparsenn.optim import FactorizedSGD

_ops = torch.ops.sparsenn


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 9])
def test_equals_sgd_on_the_factorized_network(backend, depth, rule):
    options = dict(RULES[rule])
    lam, decay, lr = 0.02, options.pop("weight_decay", 0.0), 0.05
    sign = -1 if options.get("maximize") else 1
    dense, factorized = net(), net()
    ours = FactorizedSGD(dense.parameters(), lr, depth=depth, lam=lam, weight_decay=decay, **options)

    # the same factors as parameters: w = prod_d w_d, and the plain L2 on w written into the loss
    names = [name for name, _ in factorized.named_parameters()]
    factors = {name: [nn.Parameter(f.clone()) for f in ours.factors(p)] for name, p in dense.named_parameters()}
    theirs = torch.optim.SGD(itertools.chain(*factors.values()), lr, weight_decay=2 * lam / depth, **options)
    for step in range(200):
        x, y = batch(step)
        ours.zero_grad()
        (sign * (dense(x) - y).square().mean()).backward()
        ours.step()
        theirs.zero_grad()
        weights = {name: torch.stack(tuple(factors[name])).prod(0) for name in names}
        loss = (torch.func.functional_call(factorized, weights, (x,)) - y).square().mean()
        (sign * loss + 0.5 * decay * sum(w.square().sum() for w in weights.values())).backward()
        theirs.step()
    for name, p in dense.named_parameters():
        torch.testing.assert_close(p, torch.stack(tuple(factors[name])).prod(0), rtol=1e-9, atol=1e-11)
        for mine, reference in zip(ours.factors(p), factors[name], strict=True):
            torch.testing.assert_close(mine, reference.detach(), rtol=1e-9, atol=1e-11)


def test_equals_factorize_with_any_optimizer(backend):
    dense = net()
    ours = FactorizedSGD(dense.parameters(), 0.05, depth=3, lam=0.01, momentum=0.9)
    model = sparsenn.factorize(net(), 3, "root")
    with torch.no_grad():
        for (_, p), module_name in zip(dense.named_parameters(), ["0.weight", "0.bias", "2.weight", "2.bias"], strict=True):
            layer, name = module_name.split(".")
            for d, factor in enumerate(ours.factors(p)):
                getattr(model[int(layer)].parametrizations[name], f"original{d}").copy_(factor)
    theirs = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=2 * 0.01 / 3)
    train(dense, ours, range(300))
    train(model, theirs, range(300))
    for p, q in zip(dense.parameters(), sparsenn.collapse(model, threshold=0).parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_depth_one_without_penalty_is_torch_sgd_to_the_bit(kernels, fused_torch, dtype, rule):
    ours_net, torch_net = net(dtype), net(dtype)
    ours = FactorizedSGD(ours_net.parameters(), 0.05, depth=1, **RULES[rule])
    theirs = torch.optim.SGD(torch_net.parameters(), 0.05, foreach=False, fused=False, **RULES[rule])
    for step in range(50):
        train(ours_net, ours, [step], dtype)
        train(torch_net, theirs, [step], dtype)
        for p, q in zip(ours_net.parameters(), torch_net.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12])
def test_kernel_equals_reference(kernels, device, dtype, rule, depth):
    options = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False, **RULES[rule]}
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = [(3, 5), (2500,), (), (0, 4), (2, 3, 4, 5)]
    weights = [values(s, dtype, device) for s in shapes]
    layouts = list(LAYOUTS.values())
    grads = [layouts[i % 2 if len(s) > 1 else 0](values(s, dtype, device)) for i, s in enumerate(shapes)]
    state = [[values(s, inner, device) for s in shapes for _ in range(depth)] for _ in range(2)]
    lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (0.1, 0.02))
    results = []
    for mode in ("reference", "compiled"):
        w, f, m = copy.deepcopy((weights, *state))
        with use_backend(mode):
            _ops.factorized_sgd_(w, f, m if options["momentum"] else [], grads, lr, lam, *options.values())
        results.append([*w, *f, *m])
    for compiled, reference in zip(results[1], results[0], strict=True):
        if FUSED and device.type == "cpu":
            assert torch.equal(compiled, reference)
        else:
            torch.testing.assert_close(compiled, reference, **tolerance(compiled.dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_of_weights_gradients_and_state(kernels, layout):
    shape, arrange = (4, 3, 5, 6), LAYOUTS[layout]
    plain = [values(shape, torch.float32) for _ in range(6)]
    lr, lam = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.01)
    expected = [x.clone() for x in plain]
    _ops.factorized_sgd_([expected[0]], expected[1:3], expected[3:5], [expected[5]], lr, lam, 0.9, 0.0, 0.0, False, False)
    for strided in range(6):
        mixed = [arrange(x.clone()) if i == strided else x.clone() for i, x in enumerate(plain)]
        _ops.factorized_sgd_([mixed[0]], mixed[1:3], mixed[3:5], [mixed[5]], lr, lam, 0.9, 0.0, 0.0, False, False)
        assert all(torch.equal(a, b) for a, b in zip(mixed, expected, strict=True))


def test_channels_last_parameters_keep_their_layout():
    conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(conv).to(memory_format=torch.contiguous_format)
    steps = []
    for model in (conv, plain):
        optimizer = FactorizedSGD(model.parameters(), 0.1, depth=2, momentum=0.9, generator=torch.Generator().manual_seed(3))
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 2 * 3 * 36).view(2, 3, 6, 6)).square().mean().backward()
            optimizer.step()
        steps.append(model.weight)
        assert optimizer.factors(model.weight)[0].stride() == model.weight.stride()
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-5, atol=1e-7)


def test_same_bits_for_any_number_of_threads_and_every_run(kernels):
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        p = nn.Parameter(torch.linspace(-1, 1, 200_000))
        optimizer = FactorizedSGD([p], 0.1, depth=3, lam=1e-3, momentum=0.9, generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            p.grad = p.detach().sin()
            optimizer.step()
        results.append(p.detach().clone())
    torch.set_num_threads(1)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_the_step_allocates_nothing(kernels):
    p = nn.Parameter(torch.randn(100_000))
    optimizer = FactorizedSGD([p], 0.1, depth=4, lam=1e-3, momentum=0.9)
    p.grad = torch.randn_like(p)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        optimizer.step()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated <= 64  # lr and lam as 0-d tensors


# weights that are changed from outside


def test_changed_weights_are_noticed_and_resynced(backend):
    model = net()
    optimizer = FactorizedSGD(model.parameters(), 0.1, depth=3, momentum=0.9)
    train(model, optimizer, range(3))
    untouched = [f.clone() for f in optimizer.factors(model[0].weight)]
    with torch.no_grad():
        model[2].weight[0, :4] *= 2.0
    target = model[2].weight.clone()
    frozen = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match=r"parameter 2 .*resync"):
        train(model, optimizer, [3])
    for index, entries in frozen["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, optimizer.state_dict()["state"][index][name])
    optimizer.resync()
    torch.testing.assert_close(model[2].weight, target, rtol=1e-14, atol=0)
    momentum = optimizer.state[model[2].weight]["momentum_0"]
    assert (momentum[0, :4] == 0).all()
    assert (momentum[1:] != 0).all()
    assert all(torch.equal(a, b) for a, b in zip(untouched, optimizer.factors(model[0].weight), strict=True))
    train(model, optimizer, [3])


def test_loading_the_same_weights_is_no_change(backend):
    model = net()
    optimizer = FactorizedSGD(model.parameters(), 0.1)
    train(model, optimizer, [0])
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight.zero_()
    model.load_state_dict(state)
    train(model, optimizer, [1])


def test_weights_that_autograd_saved_are_watched(backend):
    model = net()
    optimizer = FactorizedSGD(model.parameters(), 0.1)
    x, _ = batch(0)
    loss = model(x).square().sum()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_clipping_the_weights_gradient_does_not_clip_the_factors(backend):
    p = nn.Parameter(torch.tensor([4.0, 0.25], dtype=torch.float64))
    optimizer = FactorizedSGD([p], 1.0, depth=2)
    p.grad = torch.tensor([30.0, 40.0], dtype=torch.float64)
    nn.utils.clip_grad_norm_([p], 1.0)
    before = [f.clone() for f in optimizer.factors(p)]
    optimizer.step()
    moved = [old - new for old, new in zip(before, optimizer.factors(p), strict=True)]
    torch.testing.assert_close(moved[0], torch.tensor([0.6, 0.8], dtype=torch.float64) * before[1])
    assert torch.stack(moved).norm() > 1.0


# the mathematics


def test_theorem_1_the_objective_is_that_of_the_induced_penalty(backend):
    for depth in (1, 2, 3, 4):
        weight = values((50,), torch.float64, zeros=False)
        factors = [torch.empty_like(weight) for _ in range(depth)]
        sparsenn.init.root_(factors, weight)
        penalty = sum(f.square().sum() for f in factors) / depth
        torch.testing.assert_close(penalty, weight.abs().pow(2 / depth).sum())
        unbalanced = [factors[0] * 3, *factors[1:-1], factors[-1] / 3] if depth > 1 else factors
        torch.testing.assert_close(hadamard_product(unbalanced), weight)
        assert sum(f.square().sum() for f in unbalanced) / depth >= penalty - 1e-9


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_lemma_4_balanced_factors_stay_balanced_and_zeros_stay_zero(backend, depth):
    p = nn.Parameter(torch.tensor([0.5, -0.3, 0.0, 0.8], dtype=torch.float64))
    optimizer = FactorizedSGD([p], 0.1, depth=depth, lam=0.05, momentum=0.9, factor_init="root")
    for step in range(100):
        p.grad = torch.tensor([0.3, -0.2, 5.0, 0.1], dtype=torch.float64) * (-1) ** step
        optimizer.step()
    magnitudes = torch.stack(optimizer.factors(p)).abs()
    torch.testing.assert_close(magnitudes, magnitudes[:1].expand_as(magnitudes), rtol=1e-12, atol=1e-15)
    assert p[2] == 0


def test_the_lasso_at_depth_two():
    """Stationarity of the lasso: |gradient| = lam where w != 0, <= lam where it is 0 (mean squared error: lam = 2 alpha)."""
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    target = design[:, :4] @ torch.tensor([2.0, -1.5, 1.0, -0.8], dtype=torch.float64)
    lam = 0.3
    p = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    optimizer = FactorizedSGD([p], 0.02, depth=2, lam=lam, momentum=0.9, generator=generator)
    for _ in range(6000):
        optimizer.zero_grad()
        (design @ p - target).square().mean().backward()
        optimizer.step()
    gradient = 2 * design.T @ (design @ p.detach() - target) / 60
    support = p.detach().abs() > 1e-8
    assert 0 < support.sum() < 20
    torch.testing.assert_close(gradient[support], -lam * p.detach()[support].sign(), rtol=1e-8, atol=1e-8)
    assert (gradient[~support].abs() <= lam).all()
