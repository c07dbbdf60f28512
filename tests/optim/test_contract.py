"""What torch and its users expect of any optimizer, of each of this package's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from small_training import MAKERS, OPTIONS, batch, net, train
from torch import nn

MAKER = pytest.mark.parametrize("maker", MAKERS)
FACTORIZED = pytest.mark.parametrize("maker", [maker for maker in MAKERS if maker.startswith("Factorized")])
LIKE_SGD = pytest.mark.parametrize("maker", [maker for maker in MAKERS if maker.endswith("SGD")])
HALF = [torch.bfloat16, torch.float16]


def make(maker: str, params, lr=0.05, **options):
    """The optimizer, whose factors are those of seed 0."""
    torch.manual_seed(0)
    return MAKERS[maker](params, lr=lr, **options)


def backward(model: nn.Module, optimizer, step: int = 0, dtype=torch.float64) -> torch.Tensor:
    x, y = batch(step, dtype)
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    return loss


def values(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def tensors(state_dict: dict) -> dict:
    """All tensors of a state, by parameter and name."""
    return {(i, k): x.clone() for i, entry in state_dict["state"].items() for k, x in entry.items() if torch.is_tensor(x)}


def same(before, after) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(before, after, strict=True))


@MAKER
def test_schedulers_set_the_step_size(backend, maker):
    trained = []
    for scheduled in (True, False):
        model = net()
        optimizer = make(maker, model.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5) if scheduled else None
        for step in range(4):
            if not scheduled:
                optimizer.param_groups[0]["lr"] = 0.1 * 0.5**step
            train(model, optimizer, [step])
            if scheduler:
                scheduler.step()
        trained.append(values(model))
    assert same(*trained)


@MAKER
def test_lr_and_lam_may_be_tensors_that_change_in_place(backend, maker):
    trained = []
    for as_tensor in (False, True):
        model = net()
        lr, lam = (torch.tensor(x, dtype=torch.float64) if as_tensor else x for x in (0.1, 0.01))
        optimizer = make(maker, model.parameters(), lr, lam=lam)
        train(model, optimizer, range(3))
        if as_tensor:
            lr.fill_(0.05)
            lam.fill_(0.02)
        else:
            optimizer.param_groups[0].update(lr=0.05, lam=0.02)
        train(model, optimizer, range(3, 6))
        trained.append(values(model))
    assert same(*trained)


@MAKER
def test_a_compiled_step_is_compiled_once_for_a_whole_schedule(kernels, maker):
    from torch._dynamo.testing import CompileCounter

    model, twin = net(), net()
    lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (0.1, 0.01))
    optimizer, eager = make(maker, model.parameters(), lr, lam=lam), make(maker, twin.parameters(), 0.1)
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    for i in (0, 1, 2, 3, 5, 6):
        backward(model, optimizer, i)
        step()
        eager.param_groups[0].update(lr=float(lr), lam=float(lam))
        train(twin, eager, [i])
        if i == 3:  # eager steps go on after compiled ones, and compiled after eager ones
            train(model, optimizer, [4])
            train(twin, eager, [4])
        lr.mul_(0.9)
        lam.mul_(1.1)
    assert counter.frame_count == 1
    for p, q in zip(values(model), values(twin), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@LIKE_SGD
def test_a_compiled_step_dampens_as_an_eager_one(kernels, maker):
    models = [net(), net()]
    optimizers = [make(maker, model.parameters(), dampening=0.5) for model in models]
    torch._dynamo.reset()
    compiled = torch.compile(optimizers[0].step, backend="eager")
    for i in range(4):
        for model, optimizer, step in zip(models, optimizers, (compiled, optimizers[1].step), strict=True):
            backward(model, optimizer, i)
            step()
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight, rtol=1e-12, atol=0)


@LIKE_SGD
def test_options_may_change_between_steps_as_in_torch_sgd(kernels, fused_torch, maker):
    """Without a penalty and, of factors, with one a weight, the bits are torch's."""
    ours_net, torch_net = net(), net()
    ours = make(maker, ours_net.parameters(), lam=0.0, **({"depth": 1} if maker == "FactorizedSGD" else {}))
    theirs = torch.optim.SGD(torch_net.parameters(), 0.05, momentum=0.9, foreach=False)
    changes = [
        {},
        {"dampening": 0.5},
        {"momentum": 0.0, "dampening": 0.0 if maker == "FactorizedSGD" else 0.2},
        {"momentum": 0.9, "dampening": 0.0},
        {"nesterov": True},
        {"weight_decay": 0.1, "momentum": 0.7},
        {"maximize": True},
    ]
    for step, change in enumerate(changes):
        for model, optimizer in ((ours_net, ours), (torch_net, theirs)):
            optimizer.param_groups[0].update(change)
            train(model, optimizer, [2 * step, 2 * step + 1])
        assert same(values(ours_net), values(torch_net))


@MAKER
def test_closure_is_evaluated_once_with_gradients(backend, maker):
    model = net()
    optimizer = make(maker, model.parameters(), 0.01)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(1)
        return backward(model, optimizer)

    first = optimizer.step(closure)
    second = optimizer.step(closure)
    assert len(calls) == 2
    assert second < first


@MAKER
def test_parameters_without_gradient_stay(backend, maker):
    model = net()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    optimizer = make(maker, model.parameters())
    before = values(model)
    optimizer.step()  # none has one
    assert same(values(model), before)
    train(model, optimizer, [0])
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[2].bias, before[3])
    model[0].weight.requires_grad_(True)
    train(model, optimizer, [1])
    assert not torch.equal(model[0].weight, frozen)


@MAKER
def test_grad_scaler_skips_a_step_with_infinite_gradients(backend, maker):
    model = net(torch.float32)
    optimizer = make(maker, model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = values(model)
    for value, moves in ((torch.inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(model(batch(0, torch.float32)[0]).sum() * value).backward()
        scaler.step(optimizer)
        scaler.update()
        assert same(values(model), before) is not moves


@MAKER
def test_a_failing_gradient_is_found_before_anything_is_written(backend, maker):
    model = net()
    embedding = nn.Embedding(5, 2, sparse=True, dtype=torch.float64)
    optimizer = make(maker, [{"params": model.parameters()}, {"params": embedding.parameters()}])
    backward(model, optimizer)
    embedding(torch.tensor([1])).sum().backward()
    before = values(model), tensors(optimizer.state_dict())
    with pytest.raises(RuntimeError, match=f"{maker}.step: a gradient is sparse"):
        optimizer.step()
    assert same(values(model), before[0])
    assert same(tensors(optimizer.state_dict()).values(), before[1].values())
    embedding.weight.grad = torch.zeros(5, 2, dtype=torch.float64)
    optimizer.step()
    before = values(model)
    embedding.weight.grad = embedding.weight.grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert same(values(model), before)


@MAKER
def test_parameters_that_overlap_are_refused_and_columns_of_one_matrix_taken(kernels, maker):
    def optimizer_of(*parts):
        params = [nn.Parameter(part) for part in parts]
        for p in params:
            p.grad = torch.ones(p.shape)
        return make(maker, params)

    matrix = torch.arange(1.0, 13.0).view(3, 4)
    optimizer = optimizer_of(matrix[:2], matrix[1:])
    before = matrix.clone()
    with pytest.raises(RuntimeError, match=r"_: weights\[1\] and weights\[0\] share memory, and both are written"):
        optimizer.step()
    assert torch.equal(matrix, before)
    apart = [matrix[:, :1].clone(), matrix[:, 1:].clone()]
    optimizer_of(*apart).step()
    optimizer_of(matrix[:, :1], matrix[:, 1:]).step()
    assert torch.equal(matrix, torch.cat(apart, 1))
    assert not torch.equal(matrix, before)


@MAKER
def test_weights_that_autograd_saved_are_watched(backend, maker):
    model = net()
    optimizer = make(maker, model.parameters())
    loss = model(batch(0)[0]).square().sum()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@FACTORIZED
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_weights_have_float32_factors_and_moments(backend, maker, dtype):
    model, wide = net(dtype), net(dtype).float()
    half, full = make(maker, model.parameters(), 1e-4), make(maker, wide.parameters(), 1e-4)
    for step in range(100):
        backward(model, half, step, dtype)
        half.step()
        for p, q in zip(model.parameters(), wide.parameters(), strict=True):
            q.grad = p.grad.float()
        full.step()
    # no small step was lost to the weights' precision
    assert same(tensors(half.state_dict()).values(), tensors(full.state_dict()).values())
    assert same(values(model), [p.to(dtype) for p in values(wide)])
    assert all(x.dtype == torch.float32 for x in tensors(half.state_dict()).values())


@pytest.mark.parametrize("order", ["model first", "optimizer first", "model before the optimizer is made"])
@pytest.mark.parametrize(("maker", "rule"), [(maker, rule) for maker in MAKERS for rule in OPTIONS[maker]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_restored_run_goes_on_to_the_bit(backend, tmp_path, order, maker, rule, dtype):
    model = net(dtype)
    optimizer = make(maker, model.parameters(), **OPTIONS[maker][rule])
    train(model, optimizer, range(5), dtype)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    train(model, optimizer, range(5, 12), dtype)

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    before = tensors(saved["optimizer"])
    other = net(dtype, seed=99)
    if order == "model before the optimizer is made":
        other.load_state_dict(saved["model"])
    restored = make(maker, other.parameters(), 0.9, lam=0.5, **({} if maker == "ProxSGD" else {"factor_init": "dwf"}))
    if order == "model first":
        other.load_state_dict(saved["model"])
    restored.load_state_dict(saved["optimizer"])
    if order == "optimizer first":
        other.load_state_dict(saved["model"])
    assert same(values(other), saved["model"].values())
    assert same(tensors(restored.state_dict()).values(), before.values())  # in their own dtype, whatever the weights'
    train(other, restored, range(5, 12), dtype)
    assert same(values(model), values(other))
    assert same(tensors(saved["optimizer"]).values(), before.values())  # what was loaded is still what was saved


@pytest.mark.parametrize("maker", ["FactorizedSGD", "FactorizedAdam"])
def test_weights_that_are_not_those_of_the_state_are_left_to_resync(backend, maker):
    model = net()
    optimizer = make(maker, model.parameters())
    train(model, optimizer, range(3))
    saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    saved["model"]["0.weight"][:2] = 0.0  # pruned behind the optimizer's back
    for order in ("model first", "optimizer first"):
        other = net(seed=99)
        restored = make(maker, other.parameters())
        parts = [(other, saved["model"]), (restored, saved["optimizer"])]
        for part, state in parts if order == "model first" else reversed(parts):
            part.load_state_dict(state)
        assert same(values(other), saved["model"].values())
        with pytest.raises(RuntimeError, match=r"parameter 0 .* was changed outside"):
            train(other, restored, [3])
        restored.resync()
        assert (other[0].weight[:2].abs() <= 1e-4).all()
        train(other, restored, [3])


@MAKER
@pytest.mark.parametrize("other", MAKERS)
def test_a_state_of_another_optimizer_is_refused(backend, maker, other):
    optimizer = make(maker, net().parameters(), 0.3)
    foreign = torch.optim.SGD(net().parameters(), 0.1) if other == maker else make(other, net().parameters())
    before = tensors(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"{maker}.*another optimizer"):
        optimizer.load_state_dict(foreign.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert same(tensors(optimizer.state_dict()).values(), before.values())


@MAKER
def test_pickle_and_deepcopy_carry_the_state(backend, maker):
    model = net()
    optimizer = make(maker, model.parameters())
    train(model, optimizer, range(3))
    others = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    train(model, optimizer, range(3, 6))
    for other_model, other in others:
        train(other_model, other, range(3, 6))
        assert same(values(model), values(other_model))
        assert same(tensors(optimizer.state_dict()).values(), tensors(other.state_dict()).values())


@MAKER
def test_a_refused_group_leaves_nothing(backend, maker):
    model = net()
    optimizer = make(maker, model[0].parameters())
    optimizer.add_param_group({"params": list(model[2].parameters()), "lam": 0.4})
    states = len(optimizer.state)
    for bad, match in (
        ({"lam": -1.0}, "lam is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]}, "complex64"),
        ({"params": [nn.Parameter(torch.ones(2).to_sparse())]}, "layout torch.sparse_coo"),
        ({"params": [nn.Parameter(torch.ones(2).expand(3, 2))]}, "expanded"),
    ):
        with pytest.raises(ValueError, match=match):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **bad})
        assert len(optimizer.param_groups) == 2
        assert len(optimizer.state) == states
    before = values(model)
    train(model, optimizer, [0])
    assert not any(torch.equal(p, q) for p, q in zip(values(model), before, strict=True))
