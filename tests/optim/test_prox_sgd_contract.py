"""ProxSGD against torch's optimizer contract."""

from __future__ import annotations

import copy
import pickle
from collections import defaultdict

import pytest
import torch
from small_training import RULES, batch, net, train
from torch import nn

from sparsenn.optim import FactorizedSGD, ProxSGD


def gradients(model: nn.Module, step: int = 0) -> None:
    """The gradients of one batch, without a step."""
    x, y = batch(step)
    model.zero_grad()
    (model(x) - y).square().mean().backward()


def kept(model: nn.Module, work, error, match: str) -> None:
    """The work raises, and no parameter has changed."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match):
        work()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_parameters_that_overlap_are_refused_and_columns_of_one_matrix_taken(kernels):
    matrix = torch.arange(1.0, 13.0).view(3, 4)

    def stepped(*parts):
        params = [nn.Parameter(part) for part in parts]
        for p in params:
            p.grad = torch.ones(p.shape)
        ProxSGD(params, lr=0.5, lam=0.0).step()

    before = matrix.clone()
    with pytest.raises(RuntimeError, match=r"prox_sgd_: weights\[1\] and weights\[0\] share memory, and both are written"):
        stepped(matrix[:2], matrix[1:])
    assert torch.equal(matrix, before)
    apart = [matrix[:, :1].clone(), matrix[:, 1:].clone()]
    stepped(*apart)
    stepped(matrix[:, :1], matrix[:, 1:])
    assert torch.equal(matrix, torch.cat(apart, 1))


def test_param_groups_have_their_own_options(backend):
    options = [{"lr": 0.05, "lam": 0.1}, {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.1}]
    together, apart = net(), net()
    layers = [[list(model[i].parameters()) for i in (0, 2)] for model in (together, apart)]
    ours = ProxSGD([{"params": p, **o} for p, o in zip(layers[0], options, strict=True)], 0.5)
    single = [ProxSGD(p, **o) for p, o in zip(layers[1], options, strict=True)]
    for step in range(20):
        train(together, ours, [step])
        gradients(apart, step)
        for optimizer in single:
            optimizer.step()
    for p, q in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.equal(p, q)
    assert (together[0].weight == 0).any()
    assert (together[2].weight != 0).all()


def test_add_param_group_and_refused_groups_leave_nothing(backend):
    model = net()
    optimizer = ProxSGD(model[0].parameters(), 0.1, momentum=0.9)
    optimizer.add_param_group({"params": list(model[2].parameters()), "lam": 0.4})
    bad_groups = [
        ({"lam": -1.0}, "lam is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"lam": torch.ones(3)}, r"lam has shape \(3,\), which doesn't broadcast to a parameter of \(2,\)"),
        ({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]}, "complex64"),
        ({"params": [nn.Parameter(torch.ones(2).to_sparse())]}, "layout torch.sparse_coo"),
        ({"params": [nn.Parameter(torch.ones(2).expand(3, 2))]}, "expanded"),
    ]
    states = len(optimizer.state)
    for bad, match in bad_groups:
        with pytest.raises(ValueError, match=match):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **bad})
        assert len(optimizer.param_groups) == 2
        assert len(optimizer.state) == states
    gradients(model)
    optimizer.step()


def test_bad_arguments_are_named():
    p = [nn.Parameter(torch.ones(2, 3))]
    for bad, match in (
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": None}, "lr is None"),
        ({"lr": 0.1, "lam": None}, "lam is None"),
        ({"lr": 0.1, "lam": float("inf")}, "lam is inf"),
        ({"lr": 0.1, "lam": float("nan")}, "lam is nan"),
        ({"lr": 0.1, "lam": torch.tensor(-1.0)}, "lam is tensor"),
        ({"lr": 0.1, "lam": torch.tensor(1)}, "lam is a torch.int64 tensor"),
        ({"lr": 0.1, "lam": torch.tensor([1, 2, 3])}, "lam is a torch.int64 tensor"),
        ({"lr": 0.1, "lam": torch.tensor([1.0, torch.nan, 0.0])}, "negative, infinite or NaN"),
        ({"lr": 0.1, "lam": torch.tensor([[1.0], [-0.1]])}, "negative, infinite or NaN"),
        ({"lr": 0.1, "lam": torch.ones(2)}, r"lam has shape \(2,\)"),
        ({"lr": 0.1, "lam": torch.ones(1, 2, 3)}, r"lam has shape \(1, 2, 3\)"),
        ({"lr": 0.1, "lam": torch.ones(3).to_sparse()}, "layout torch.sparse_coo"),
        ({"lr": 0.1, "nesterov": True}, "nesterov needs momentum"),
        ({"lr": 0.1, "momentum": 1.0}, "momentum is 1.0; it takes a number below 1"),
        ({"lr": 0.1, "momentum": 0.9, "dampening": 1.0, "lam": 0.1}, "dampening is 1.0"),
        ({"lr": 0.1, "weight_decay": torch.ones(())}, "weight_decay is a torch.float32 tensor"),
        ({"lr": torch.ones(2)}, "lr is a"),
        ({"lr": "0.1"}, "lr is '0.1'"),
    ):
        with pytest.raises(ValueError, match=f"ProxSGD: .*{match}"):
            ProxSGD(p, **bad)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": torch.tensor(float("nan"))}, "lr is tensor"),
        ({"lam": float("nan")}, "lam is nan"),
        ({"lam": torch.ones(7)}, r"lam has shape \(7,\)"),
        ({"lam": -torch.ones(1)}, "negative, infinite or NaN"),
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"dampening": 1.0, "lam": 0.1}, "dampening is 1.0"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_options_changed_to_bad_ones_are_refused_before_any_parameter_moves(backend, change, match):
    model = net()
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
    optimizer = ProxSGD(groups, 0.1, lam=0.01, momentum=0.9)
    train(model, optimizer, [0])
    good = dict(optimizer.param_groups[1])
    optimizer.param_groups[1].update(change)
    gradients(model)
    for _ in range(2):
        kept(model, optimizer.step, ValueError, match)
    optimizer.param_groups[1].update(good)
    optimizer.step()


@pytest.mark.parametrize("name", ["lr", "lam", "spread"])
def test_tensors_changed_in_place_are_checked_again(backend, name):
    model = net()
    lr = torch.tensor(0.1, dtype=torch.float64)
    lam = torch.tensor([0.1]) if name == "spread" else torch.tensor(0.1)
    optimizer = ProxSGD(model.parameters(), lr, lam=lam, momentum=0.9)
    train(model, optimizer, [0])
    gradients(model)
    (lr if name == "lr" else lam).fill_(-0.1)
    kept(model, optimizer.step, ValueError, "negative" if name == "spread" else f"{name} is tensor")


def test_failing_gradients_are_found_before_anything_is_written(backend):
    model = net()
    embedding = nn.Embedding(5, 2, sparse=True, dtype=torch.float64)
    optimizer = ProxSGD([{"params": model.parameters()}, {"params": embedding.parameters()}], 0.1, lam=0.1)
    model(batch(0)[0]).sum().backward()
    embedding(torch.tensor([1])).sum().backward()
    kept(model, optimizer.step, RuntimeError, "ProxSGD.step: a gradient is sparse")
    assert optimizer.zeros(embedding.weight) == 0
    embedding.weight.grad = torch.zeros(5, 2, dtype=torch.float64)
    optimizer.step()
    embedding.weight.grad = embedding.weight.grad.to_sparse()
    kept(model, optimizer.step, RuntimeError, "sparse")


def test_schedulers_set_the_step_size(backend):
    trained = []
    for scheduled in (True, False):
        model = net()
        optimizer = ProxSGD(model.parameters(), 0.1, lam=0.05)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5) if scheduled else None
        for step in range(4):
            if not scheduled:
                optimizer.param_groups[0]["lr"] = 0.1 * 0.5**step
            train(model, optimizer, [step])
            if scheduler:
                scheduler.step()
        trained.append(model[0].weight)
    assert torch.equal(*trained)


@pytest.mark.parametrize("shape", [(), (1,)], ids=["number", "spread"])
def test_lr_and_lam_may_be_tensors_that_change_in_place(backend, shape):
    trained = []
    for as_tensor in (False, True):
        model = net(torch.float32)
        lr = torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1
        lam = torch.full(shape, 0.25, dtype=torch.float64) if as_tensor else 0.25  # spread over float32 weights: converted
        optimizer = ProxSGD(model.parameters(), lr, lam=lam, momentum=0.5)
        train(model, optimizer, range(3), torch.float32)
        if as_tensor:
            lr.fill_(0.05)
            lam.fill_(0.125)
        else:
            optimizer.param_groups[0].update(lr=0.05, lam=0.125)
        train(model, optimizer, range(3, 6), torch.float32)
        trained.append(model[0].weight)
    torch.testing.assert_close(*trained, rtol=1e-6, atol=1e-8)
    assert torch.equal(trained[0] == 0, trained[1] == 0)
    assert (trained[0] == 0).any()


@pytest.mark.parametrize("spread", [False, True], ids=["number", "spread"])
def test_a_compiled_step_is_compiled_once_for_a_whole_schedule(kernels, spread):
    from torch._dynamo.testing import CompileCounter

    model, twin = net(), net()
    lr, lam = torch.tensor(0.1, dtype=torch.float64), torch.full((1,) * spread, 0.03, dtype=torch.float64)
    optimizer = ProxSGD(model.parameters(), lr, lam=lam, momentum=0.9)
    eager = ProxSGD(twin.parameters(), 0.1, lam=0.03, momentum=0.9)
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter, fullgraph=True)
    for i in range(6):
        gradients(model, i)
        step()
        eager.param_groups[0].update(lr=float(lr), lam=float(lam))
        train(twin, eager, [i])
        lr.mul_(0.9)
        lam.mul_(1.1)
        for p in model.parameters():
            assert optimizer.zeros(p) == (p == 0).sum()
    assert counter.frame_count == 1
    train(model, optimizer, [7])  # and eager steps go on after compiled ones
    eager.param_groups[0].update(lr=float(lr), lam=float(lam))
    train(twin, eager, [7])
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)
        assert optimizer.zeros(p) == eager.zeros(q) == (p == 0).sum()
    assert optimizer.sparsity() > 0
    gradients(model, 8)
    lam.fill_(10.0)
    step()  # and compiled ones after eager ones
    assert optimizer.sparsity() == 1.0
    assert counter.frame_count == 1


def test_a_compiled_step_dampens_as_an_eager_one(kernels):
    models = [net(), net()]
    optimizers = [ProxSGD(model.parameters(), 0.05, lam=0.02, momentum=0.9, dampening=0.5) for model in models]
    torch._dynamo.reset()
    compiled = torch.compile(optimizers[0].step, backend="eager")
    for i in range(4):
        for model, step in zip(models, (compiled, optimizers[1].step), strict=True):
            gradients(model, i)
            step()
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight, rtol=1e-12, atol=0)


def test_closure_is_evaluated_once_with_gradients(backend):
    model = net()
    optimizer = ProxSGD(model.parameters(), 0.05, lam=1e-3)
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


@pytest.mark.parametrize("set_to_none", [True, False])
def test_parameters_without_gradient_stay(backend, set_to_none):
    model = net()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    optimizer = ProxSGD(model.parameters(), 0.1, lam=10.0, momentum=0.9)
    before = model[2].bias.clone()
    optimizer.step()
    assert torch.equal(model[2].bias, before)
    gradients(model)
    optimizer.step()
    assert torch.equal(model[0].weight, frozen)
    assert (model[2].bias == 0).all()
    model[0].weight.requires_grad_(True)
    gradients(model)
    with torch.no_grad():
        model[2].bias.fill_(3.0)
    model[2].bias.grad = None
    optimizer.step()
    assert (model[0].weight == 0).all()
    assert (model[2].bias == 3.0).all()
    optimizer.zero_grad(set_to_none=set_to_none)
    optimizer.step()  # a gradient of zeros is one: the weight is shrunk
    assert (model[2].bias == 3.0).all()


def test_the_gradient_of_a_step_is_that_of_the_moment(backend):
    """Gradients that are replaced, and those that are accumulated in place, are both seen."""
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = ProxSGD([p], 1.0)
    total = torch.zeros(3, dtype=torch.float64)
    for step in range(6):
        if step % 2:
            p.grad = torch.full((3,), float(step), dtype=torch.float64)
        elif p.grad is not None:
            p.grad.add_(0.5)
        else:
            p.grad = torch.ones(3, dtype=torch.float64)
        total -= p.grad
        optimizer.step()
    assert torch.equal(p.detach(), total)


def test_grad_scaler_skips_a_step_with_infinite_gradients(backend):
    model = net(torch.float32)
    optimizer = ProxSGD(model.parameters(), 0.1, lam=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(model.state_dict())
    for value, moves in ((torch.inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(model(batch(0, torch.float32)[0]).sum() * value).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model[0].weight, before["0.weight"]) is not moves


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_restored_run_goes_on_to_the_bit(backend, tmp_path, order, rule, dtype):
    lam = torch.tensor([0.02])
    model = net(dtype)
    optimizer = ProxSGD(model.parameters(), 0.05, lam=lam, **RULES[rule])
    train(model, optimizer, range(5), dtype)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    train(model, optimizer, range(5, 12), dtype)

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other = net(dtype, seed=99)
    restored = ProxSGD(other.parameters(), 0.9)
    steps = [lambda: other.load_state_dict(saved["model"]), lambda: restored.load_state_dict(saved["optimizer"])]
    for load in steps if order == "model first" else reversed(steps):
        load()
    for index, entries in saved["optimizer"]["state"].items():
        loaded = restored.state_dict()["state"][index]
        assert loaded["momentum_buffer"].dtype == torch.float32
        assert torch.equal(loaded["momentum_buffer"], entries["momentum_buffer"])
    train(other, restored, range(5, 12), dtype)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_state_that_does_not_fit_is_refused(backend):
    saved = ProxSGD(net().parameters(), 0.1, momentum=0.9).state_dict()
    other = ProxSGD([nn.Parameter(torch.ones(2, 2)) for _ in range(4)], 0.3, momentum=0.9)
    with pytest.raises(ValueError, match="momentum_buffer has shape"):
        other.load_state_dict(saved)
    for foreign in (torch.optim.SGD(net().parameters(), 0.1), FactorizedSGD(net().parameters(), 0.1)):
        with pytest.raises(ValueError, match="another optimizer"):
            other.load_state_dict(foreign.state_dict())
    assert other.param_groups[0]["lr"] == 0.3


def test_pickle_and_deepcopy_carry_the_state(backend):
    model = net()
    optimizer = ProxSGD(model.parameters(), 0.1, lam=0.01, momentum=0.9, dampening=0.1)
    train(model, optimizer, range(3))
    copied_model, copied = copy.deepcopy((model, optimizer))
    pickled_model, pickled = pickle.loads(pickle.dumps((model, optimizer)))
    for other_model, other in ((copied_model, copied), (pickled_model, pickled)):
        assert other.sparsity() == optimizer.sparsity()
        train(other_model, other, range(3, 6))
    train(model, optimizer, range(3, 6))
    assert torch.equal(model[0].weight, copied_model[0].weight)
    assert torch.equal(model[0].weight, pickled_model[0].weight)


def test_options_may_change_between_steps_as_in_torch_sgd(kernels, fused_torch):
    ours_net, torch_net = net(), net()
    ours = ProxSGD(ours_net.parameters(), 0.05, momentum=0.9)
    theirs = torch.optim.SGD(torch_net.parameters(), 0.05, momentum=0.9, foreach=False)
    changes = [
        {},
        {"dampening": 0.5},
        {"momentum": 0.0, "dampening": 0.2},
        {"momentum": 0.9, "dampening": 0.0},
        {"nesterov": True},
        {"weight_decay": 0.1, "momentum": 0.7},
        {"maximize": True},
    ]
    for step, change in enumerate(changes):
        for model, optimizer in ((ours_net, ours), (torch_net, theirs)):
            optimizer.param_groups[0].update(change)
            train(model, optimizer, [2 * step, 2 * step + 1])
        assert torch.equal(ours_net[0].weight, torch_net[0].weight)


def test_dampening_without_momentum_is_ignored_as_in_torch(backend):
    """The threshold too: with momentum 0 the gradient is not dampened."""
    trained = []
    for dampening in (0.0, 0.8):
        model = net()
        train(model, ProxSGD(model.parameters(), 0.1, lam=0.05, dampening=dampening), range(5))
        trained.append(model[0].weight)
    assert torch.equal(*trained)


def test_a_parameter_that_starts_late_has_an_undampened_first_step(backend):
    model, twin = net(), net()
    optimizer = ProxSGD(model.parameters(), 0.1, momentum=0.9, dampening=0.5)
    theirs = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, dampening=0.5)
    for step in range(4):
        for m, o in ((model, optimizer), (twin, theirs)):
            gradients(m, step)
            if step < 2:
                m[0].weight.grad = None
            o.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


def test_a_state_that_was_emptied_or_replaced_is_used(backend):
    for reset in ("clear", "replace", "exchange", "entry"):
        model, fresh = net(), net()
        optimizer = ProxSGD(model.parameters(), 0.1, lam=0.01, momentum=0.9)
        train(model, optimizer, range(3))
        if reset == "clear":
            optimizer.state.clear()
        elif reset == "replace":
            optimizer.state = defaultdict(dict)
        elif reset == "exchange":
            buffers = {p: {"momentum_buffer": torch.zeros_like(p), "momentum_started": True} for p in model.parameters()}
            optimizer.state = defaultdict(dict, buffers)
        else:
            for p in model.parameters():
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        fresh.load_state_dict(model.state_dict())
        train(model, optimizer, [3])
        train(fresh, ProxSGD(fresh.parameters(), 0.1, lam=0.01, momentum=0.9), [3])
        assert torch.equal(model[0].weight, fresh[0].weight), reset


def test_parameters_that_are_replaced_in_a_group_are_used(backend):
    model = net()
    optimizer = ProxSGD(model.parameters(), 0.1, lam=0.01, momentum=0.9)
    train(model, optimizer, [0])
    new = nn.Parameter(torch.ones_like(model[0].weight))
    model[0].weight = optimizer.param_groups[0]["params"][0] = new
    gradients(model)
    optimizer.step()
    assert not torch.equal(new, torch.ones_like(new))


def test_a_model_that_is_cast_before_its_first_step_trains(backend):
    model, twin = net(torch.float32), net(torch.float32)
    optimizer = ProxSGD(model.parameters(), 0.1, lam=0.01, momentum=0.9)
    model.double()
    twin.double()
    train(model, optimizer, range(3))
    train(twin, ProxSGD(twin.parameters(), 0.1, lam=0.01, momentum=0.9), range(3))
    assert torch.equal(model[0].weight, twin[0].weight)


def test_one_group_may_mix_dtypes_and_a_lam_for_each_element(backend):
    shape, lam = (4, 3), torch.linspace(0, 1, 12, dtype=torch.float64).view(4, 3)
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32)
    together = [nn.Parameter(torch.linspace(-1, 1, 12).view(shape).to(dtype)) for dtype in dtypes]
    apart = copy.deepcopy(together)
    optimizers = [ProxSGD(together, 0.1, lam=lam, momentum=0.9)] + [ProxSGD([p], 0.1, lam=lam, momentum=0.9) for p in apart]
    for _ in range(4):
        for p in [*together, *apart]:
            p.grad = p.detach().sin()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(together, apart, strict=True):
        assert torch.equal(p, q)
        assert optimizers[0].zeros(p) == (p == 0).sum() > 0


def test_weights_that_autograd_saved_are_watched(backend):
    model = net()
    optimizer = ProxSGD(model.parameters(), 0.1)
    x, _ = batch(0)
    loss = model(x).square().sum()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
