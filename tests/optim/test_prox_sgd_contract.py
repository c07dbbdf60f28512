"""ProxSGD as an optimizer of torch, beyond what all owe: λ spread over elements, counts of zeros, states and options."""

from __future__ import annotations

import copy
from collections import defaultdict

import pytest
import torch
from small_training import batch, net, train
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


def test_groups_that_do_not_fit_are_refused(backend):
    optimizer = ProxSGD(net().parameters(), 0.1, momentum=0.9)
    for bad, match in (
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"lam": torch.ones(3)}, r"lam has shape \(3,\), which doesn't broadcast to a parameter of \(2,\)"),
    ):
        with pytest.raises(ValueError, match=match):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **bad})
        assert len(optimizer.param_groups) == 1


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


def test_a_lam_spread_over_the_elements_may_change_in_place(backend):
    trained = []
    for spread in (False, True):
        model = net(torch.float32)
        lam = torch.full((1,), 0.25, dtype=torch.float64) if spread else 0.25  # over float32 weights: converted
        optimizer = ProxSGD(model.parameters(), 0.1, lam=lam, momentum=0.5)
        train(model, optimizer, range(3), torch.float32)
        if spread:
            lam.fill_(0.125)
        else:
            optimizer.param_groups[0]["lam"] = 0.125
        train(model, optimizer, range(3, 6), torch.float32)
        trained.append(model[0].weight)
    torch.testing.assert_close(*trained, rtol=1e-6, atol=1e-8)
    assert torch.equal(trained[0] == 0, trained[1] == 0)
    assert (trained[0] == 0).any()


@pytest.mark.parametrize("spread", [False, True], ids=["number", "spread"])
def test_a_compiled_step_counts_zeros_and_takes_a_lam_for_each_element(kernels, spread):
    from torch._dynamo.testing import CompileCounter

    model = net()
    lam = torch.full((1,) * spread, 0.03, dtype=torch.float64)
    optimizer = ProxSGD(model.parameters(), 0.1, lam=lam, momentum=0.9)
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter, fullgraph=True)
    for i in range(6):
        gradients(model, i)
        step()
        lam.mul_(1.1)
        for p in model.parameters():
            assert optimizer.zeros(p) == (p == 0).sum()
    assert 0 < optimizer.sparsity() < 1
    gradients(model, 8)
    lam.fill_(10.0)
    step()
    assert optimizer.sparsity() == 1.0
    assert counter.frame_count == 1


def test_zeros_are_those_of_the_last_step_be_it_compiled_or_not():
    torch._dynamo.reset()
    p = nn.Parameter(torch.tensor([0.5, 1.0, 1.5]))
    optimizer = ProxSGD([p], lr=1.0, lam=0.5)
    p.grad = torch.zeros(3)
    compiled = torch.compile(optimizer.step, backend="eager")
    for count, step in enumerate((optimizer.step, compiled, optimizer.step), 1):
        step()
        assert int((p == 0).sum()) == count
        assert int(optimizer.zeros(p)) == count
        assert optimizer.sparsity() == pytest.approx(count / 3)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_parameters_without_gradient_are_not_shrunk(backend, set_to_none):
    model = net()
    optimizer = ProxSGD(model.parameters(), 0.1, lam=10.0, momentum=0.9)
    gradients(model)
    with torch.no_grad():
        model[2].bias.fill_(3.0)
    model[2].bias.grad = None
    optimizer.step()
    assert (model[0].weight == 0).all()
    optimizer.zero_grad(set_to_none=set_to_none)
    with torch.no_grad():
        model[0].bias.fill_(0.5)
    optimizer.step()
    assert (model[0].bias == 0.5).all() == set_to_none  # a gradient of zeros is one: the weight is shrunk
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


def test_a_state_that_does_not_fit_is_refused(backend):
    saved = ProxSGD(net().parameters(), 0.1, momentum=0.9).state_dict()
    other = ProxSGD([nn.Parameter(torch.ones(2, 2)) for _ in range(4)], 0.3, momentum=0.9)
    with pytest.raises(ValueError, match="momentum_buffer has shape"):
        other.load_state_dict(saved)
    for foreign in (torch.optim.SGD(net().parameters(), 0.1), FactorizedSGD(net().parameters(), 0.1)):
        with pytest.raises(ValueError, match="another optimizer"):
            other.load_state_dict(foreign.state_dict())
    assert other.param_groups[0]["lr"] == 0.3


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
