"""FactorizedSGD against torch's optimizer contract."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from small_training import RULES, batch, net, train
from torch import nn

from sparsenn.ops import hadamard_product
from sparsenn.optim import FactorizedSGD


def test_param_groups_have_their_own_options(backend):
    options = [{"lr": 0.05, "depth": 3, "lam": 0.1}, {"lr": 0.2, "depth": 2, "momentum": 0.9}]
    model = net()
    layers = [list(model[i].parameters()) for i in (0, 2)]
    ours = FactorizedSGD([{"params": p, **o} for p, o in zip(layers, options, strict=True)], 0.5)
    assert [len(ours.factors(p[0])) for p in layers] == [3, 2]
    twin = copy.deepcopy(model)
    factors = [[[nn.Parameter(f.clone()) for f in ours.factors(p)] for p in layer] for layer in layers]
    theirs = torch.optim.SGD(
        [
            {
                "params": list(itertools.chain(*f)),
                "lr": o["lr"],
                "momentum": o.get("momentum", 0.0),
                "weight_decay": 2 * o.get("lam", 0.0) / o["depth"],
            }
            for f, o in zip(factors, options, strict=True)
        ]
    )
    for step in range(20):
        train(model, ours, [step])
        theirs.zero_grad()
        x, y = batch(step)
        weights = [hadamard_product(f) for layer in factors for f in layer]
        names = [name for name, _ in twin.named_parameters()]
        (torch.func.functional_call(twin, dict(zip(names, weights, strict=True)), (x,)) - y).square().mean().backward()
        theirs.step()
    for p, f in zip(model.parameters(), itertools.chain(*factors), strict=True):
        torch.testing.assert_close(p, hadamard_product(f), rtol=1e-10, atol=1e-12)


def test_add_param_group_and_refused_groups_leave_nothing(backend):
    model = net()
    optimizer = FactorizedSGD(model[0].parameters(), 0.1)
    optimizer.add_param_group({"params": list(model[2].parameters()), "depth": 4})
    assert len(optimizer.factors(model[2].weight)) == 4
    for bad in ({"depth": 0}, {"lam": -1.0}, {"lr": float("nan")}, {"factor_init": "zeros"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **bad})
    with pytest.raises(ValueError, match="complex64"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 2


def test_schedulers_set_the_step_size(backend):
    trained = []
    for scheduled in (True, False):
        model = net()
        optimizer = FactorizedSGD(model.parameters(), 0.1, depth=2, generator=torch.Generator().manual_seed(0))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5) if scheduled else None
        for step in range(4):
            if not scheduled:
                optimizer.param_groups[0]["lr"] = 0.1 * 0.5**step
            train(model, optimizer, [step])
            if scheduler:
                scheduler.step()
        trained.append(model[0].weight)
    assert torch.equal(*trained)


def test_lr_and_lam_may_be_tensors(backend):
    trained = []
    for as_tensor in (False, True):
        model = net()
        lr, lam = (torch.tensor(x, dtype=torch.float64) if as_tensor else x for x in (0.1, 0.01))
        optimizer = FactorizedSGD(model.parameters(), lr, lam=lam, momentum=0.9, generator=torch.Generator().manual_seed(0))
        train(model, optimizer, range(3))
        if as_tensor:
            lr.fill_(0.05)
        else:
            optimizer.param_groups[0]["lr"] = 0.05
        train(model, optimizer, range(3, 5))
        trained.append(model[0].weight)
    assert torch.equal(*trained)


def test_a_compiled_step_is_compiled_once_for_a_whole_schedule(kernels):
    from torch._dynamo.testing import CompileCounter

    model, twin = net(), net()
    lr = torch.tensor(0.1, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    optimizer = FactorizedSGD(model.parameters(), lr, depth=3, lam=0.01, momentum=0.9, generator=generators[0])
    eager = FactorizedSGD(twin.parameters(), 0.1, depth=3, lam=0.01, momentum=0.9, generator=generators[1])
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    for i in range(6):
        x, y = batch(i)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        step()
        eager.param_groups[0]["lr"] = float(lr)
        train(twin, eager, [i])
        lr.mul_(0.9)
    assert counter.frame_count == 1
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)
    train(model, optimizer, [7])  # and eager steps go on after compiled ones


def test_closure_is_evaluated_once_with_gradients(backend):
    model = net()
    optimizer = FactorizedSGD(model.parameters(), 0.05)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(1)
        optimizer.zero_grad()
        x, y = batch(0)
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    second = optimizer.step(closure)
    assert len(calls) == 2
    assert second < first


def test_parameters_without_gradient_stay(backend):
    model = net()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    optimizer = FactorizedSGD(model.parameters(), 0.1, momentum=0.9)
    before = model[2].bias.clone()
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert torch.equal(model[2].bias, before)
    train(model, optimizer, [0])
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[2].bias, before)
    model[0].weight.requires_grad_(True)
    train(model, optimizer, [1])
    assert not torch.equal(model[0].weight, frozen)


def test_grad_scaler_skips_a_step_with_infinite_gradients(backend):
    model = net(torch.float32)
    optimizer = FactorizedSGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(model.state_dict())
    for value, moves in ((torch.inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(model(batch(0, torch.float32)[0]).sum() * value).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model[0].weight, before["0.weight"]) is not moves


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights_have_float32_factors(backend, dtype):
    model, wide = net(dtype), net(dtype).float()
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    half = FactorizedSGD(model.parameters(), 1e-3, depth=2, momentum=0.9, generator=generators[0])
    full = FactorizedSGD(wide.parameters(), 1e-3, depth=2, momentum=0.9, generator=generators[1])
    for step in range(100):
        x, y = batch(step, dtype)
        half.zero_grad()
        (model(x) - y).square().mean().backward()
        half.step()
        for p, q in zip(model.parameters(), wide.parameters(), strict=True):
            q.grad = p.grad.float()
        full.step()
    for p, q in zip(model.parameters(), wide.parameters(), strict=True):
        assert all(factor.dtype == torch.float32 for factor in half.factors(p))
        assert torch.equal(p, q.to(dtype))  # no small step was lost to the weights' precision
    restored = FactorizedSGD(net(dtype).parameters(), 1e-3, depth=2, momentum=0.9)
    restored.load_state_dict(half.state_dict())
    for p, q in zip(model.parameters(), restored.param_groups[0]["params"], strict=True):
        for a, b in zip(half.factors(p), restored.factors(q), strict=True):
            assert b.dtype == torch.float32
            assert torch.equal(a, b)


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_restored_run_goes_on_to_the_bit(backend, tmp_path, order, rule, dtype):
    model = net(dtype)
    optimizer = FactorizedSGD(model.parameters(), 0.05, depth=3, lam=0.01, **RULES[rule])
    train(model, optimizer, range(5), dtype)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    train(model, optimizer, range(5, 12), dtype)

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other = net(dtype, seed=99)
    restored = FactorizedSGD(other.parameters(), 0.9, depth=3)
    steps = [lambda: other.load_state_dict(saved["model"]), lambda: restored.load_state_dict(saved["optimizer"])]
    for load in steps if order == "model first" else reversed(steps):
        load()
    train(other, restored, range(5, 12), dtype)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_state_that_does_not_fit_is_refused(backend):
    saved = FactorizedSGD(net().parameters(), 0.1, depth=3).state_dict()
    other = FactorizedSGD([nn.Parameter(torch.ones(2, 2)) for _ in range(4)], 0.1, depth=3)
    before = [p.clone() for p in other.param_groups[0]["params"]]
    with pytest.raises(ValueError, match="shape"):
        other.load_state_dict(saved)
    with pytest.raises(ValueError, match="another optimizer"):
        other.load_state_dict(torch.optim.SGD(net().parameters(), 0.1).state_dict())
    del saved["state"][0]["factor_1"]
    with pytest.raises(ValueError, match="depth 3 needs"):
        FactorizedSGD(net().parameters(), 0.1, depth=3).load_state_dict(saved)
    for p, q in zip(before, other.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)


def test_pickle_and_deepcopy_carry_the_state(backend):
    model = net()
    optimizer = FactorizedSGD(model.parameters(), 0.1, depth=2, momentum=0.9)
    train(model, optimizer, range(3))
    copied_model, copied = copy.deepcopy((model, optimizer))
    pickled_model, pickled = pickle.loads(pickle.dumps((model, optimizer)))
    for other_model, other in ((copied_model, copied), (pickled_model, pickled)):
        train(other_model, other, range(3, 6))
    train(model, optimizer, range(3, 6))
    assert torch.equal(model[0].weight, copied_model[0].weight)
    assert torch.equal(model[0].weight, pickled_model[0].weight)


def test_a_failing_gradient_is_found_before_anything_is_written(backend):
    model = net()
    embedding = nn.Embedding(5, 2, sparse=True, dtype=torch.float64)
    optimizer = FactorizedSGD([*model.parameters(), *embedding.parameters()], 0.1)
    before = copy.deepcopy(model.state_dict())
    model(batch(0)[0]).sum().backward()
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_options_may_change_between_steps_as_in_torch_sgd(kernels, fused_torch):
    ours_net, torch_net = net(), net()
    ours = FactorizedSGD(ours_net.parameters(), 0.05, depth=1, momentum=0.9)
    theirs = torch.optim.SGD(torch_net.parameters(), 0.05, momentum=0.9, foreach=False)
    changes = [{}, {"dampening": 0.5}, {"momentum": 0.0, "dampening": 0.0}, {"momentum": 0.9}, {"nesterov": True}]
    for step, change in enumerate(changes):
        for model, optimizer in ((ours_net, ours), (torch_net, theirs)):
            optimizer.param_groups[0].update(change)
            train(model, optimizer, [2 * step, 2 * step + 1])
        assert torch.equal(ours_net[0].weight, torch_net[0].weight)


def test_a_compiled_step_dampens_as_an_eager_one(kernels):
    models = [net(), net()]
    steps = []
    for model in models:
        generator = torch.Generator().manual_seed(0)
        steps.append(FactorizedSGD(model.parameters(), 0.05, momentum=0.9, dampening=0.5, generator=generator))
    torch._dynamo.reset()
    compiled = torch.compile(steps[0].step, backend="eager")
    for i in range(4):
        for model, optimizer, step in zip(models, steps, (compiled, steps[1].step), strict=True):
            x, y = batch(i)
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            step()
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight, rtol=1e-12, atol=0)


def test_a_changed_depth_is_refused_before_any_parameter_moves(backend):
    for depth in (1, 3):
        model = net()
        groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
        optimizer = FactorizedSGD(groups, 0.1, depth=2)
        train(model, optimizer, [0])
        before = copy.deepcopy(model.state_dict())
        optimizer.param_groups[1]["depth"] = depth
        with pytest.raises(RuntimeError, match=f"depth of a group was changed to {depth}"):
            train(model, optimizer, [1])
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_constructor_that_raises_leaves_the_weights(backend):
    model = net()
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="NaN or infinity"):
        FactorizedSGD(model.parameters(), 0.1, factor_init="dwf")
    assert all(torch.equal(p.nan_to_num(), before[name].nan_to_num()) for name, p in model.state_dict().items())


def test_loading_a_state_leaves_the_random_numbers_and_brings_the_seed(backend):
    model, other = net(), net()
    optimizer = FactorizedSGD(model.parameters(), 0.1)
    restored = FactorizedSGD(other.parameters(), 0.1)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    other.load_state_dict(model.state_dict())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(torch.rand(3), expected)
    for m, o in ((model, optimizer), (other, restored)):
        with torch.no_grad():
            m[0].weight.mul_(2.0)
        o.resync()
    assert all(
        torch.equal(a, b) for a, b in zip(optimizer.factors(model[0].weight), restored.factors(other[0].weight), strict=True)
    )


def test_bad_arguments_are_named():
    p = [nn.Parameter(torch.ones(2))]
    for bad, match in (
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": 0.1, "lam": float("inf")}, "lam is inf"),
        ({"lr": 0.1, "depth": 2.5}, "depth is 2.5"),
        ({"lr": 0.1, "nesterov": True}, "nesterov needs momentum"),
        ({"lr": torch.ones(2)}, "lr is a"),
        ({"lr": torch.tensor(-1.0)}, "lr is tensor"),
        ({"lr": "0.1"}, "lr is '0.1'"),
        ({"lr": 0.1, "factor_init": "zeros"}, "'zeros'.*preserve"),
    ):
        with pytest.raises(ValueError, match=match):
            FactorizedSGD(p, **bad)
    with pytest.raises(ValueError, match="no parameter of this optimizer"):
        FactorizedSGD(p, 0.1).factors(torch.ones(2))
