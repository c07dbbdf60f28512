"""Proximal: the fixed points of every base optimizer, and torch's optimizer contract."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

import sparsenn
from sparsenn.ops import reference
from sparsenn.optim import Proximal, param_groups
from sparsenn.penalties import L1, L2_3, MCP, SCAD, ElasticNet, GroupL1, SparseGroupL1

LAM = 0.3


def problem(rows: int = 40, columns: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares with scales that differ by an order of magnitude, and a sparse truth."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-0.5, 0.3, columns, dtype=torch.float64)
    truth = torch.tensor([2.0, -1.5, 0, 0, 1.0, 0, -0.7, 0], dtype=torch.float64)[:columns]
    return x, x @ truth + 0.1 * torch.randn(rows, generator=generator, dtype=torch.float64)


def gradient(x, y, w):
    return x.T @ (x @ w.reshape(-1) - y) / len(y)


def lasso_residual(x, y, w, lam=LAM) -> float:
    """The KKT conditions of the lasso, written down once more."""
    g = gradient(x, y, w)
    return float(torch.where(w == 0, (g.abs() - lam).clamp(min=0), (g + lam * w.sign()).abs()).max())


def run(w, optimizer, x, y, steps, stop=lambda: False):
    for _ in range(steps):
        w.grad = gradient(x, y, w.detach()).view_as(w)
        optimizer.step()
        if stop():
            break


BASES = {
    "sgd": lambda p: SGD(p, 0.1),
    "momentum": lambda p: SGD(p, 0.02, momentum=0.9),
    "nesterov": lambda p: SGD(p, 0.02, momentum=0.9, nesterov=True),
    "dampening": lambda p: SGD(p, 0.1, momentum=0.8, dampening=0.6),
    "dampening_only": lambda p: SGD(p, 0.1, dampening=0.6),  # which torch does not look at
    "adam": lambda p: Adam(p, 0.01),
    "amsgrad": lambda p: Adam(p, 0.05, amsgrad=True),
    "adamw": lambda p: AdamW(p, 0.01, weight_decay=0.0),
    "nadam": lambda p: NAdam(p, 0.01),
    "radam": lambda p: RAdam(p, 0.01),
    "adamax": lambda p: Adamax(p, 0.01),
    "rmsprop": lambda p: RMSprop(p, 0.01),
    "rmsprop_momentum": lambda p: RMSprop(p, 0.002, momentum=0.8),
    "adagrad": lambda p: Adagrad(p, 1.0),
}


@pytest.mark.parametrize("base", BASES)
def test_the_fixed_point_is_the_lasso(base):
    x, y = problem()
    w = nn.Parameter(torch.full((8,), 0.5, dtype=torch.float64))
    optimizer = Proximal(BASES[base]([w]), L1(LAM))
    run(w, optimizer, x, y, 12_000, lambda: lasso_residual(x, y, w.detach()) <= 1e-9)
    assert lasso_residual(x, y, w.detach()) <= 1e-8
    assert 2 <= int((w == 0).sum()) <= 6
    assert not w.signbit()[w == 0].any()


@pytest.mark.parametrize("base", ["momentum", "adam"])
@pytest.mark.parametrize(
    "penalty",
    [ElasticNet(LAM, 0.5), GroupL1(0.2, "rows"), SparseGroupL1(0.2, 0.5, "columns"), MCP(LAM, 3.0), SCAD(LAM), L2_3(0.1)],
    ids=lambda penalty: type(penalty).__name__,
)
def test_the_fixed_point_is_stationary_for_any_penalty(base, penalty):
    x, y = problem()
    w = nn.Parameter(torch.full((2, 4), 0.5, dtype=torch.float64))
    optimizer = Proximal(BASES[base]([w]), penalty)

    def residual():
        return float(penalty.subdiff_distance(w.detach(), gradient(x, y, w.detach()).view_as(w)).max())

    run(w, optimizer, x, y, 20_000, lambda: residual() <= 1e-9)
    assert residual() <= 1e-8
    assert (w == 0).any()


def test_coupled_decay_is_an_elastic_net_and_decoupled_decay_is_as_documented():
    x, y = problem()
    w = nn.Parameter(torch.full((8,), 0.5, dtype=torch.float64))
    optimizer = Proximal(SGD([w], 0.05, momentum=0.5, weight_decay=0.2), L1(LAM))
    run(w, optimizer, x, y, 5000)
    g = gradient(x, y, w.detach()) + 0.2 * w.detach()
    assert float(L1(LAM).subdiff_distance(w.detach(), g).max()) <= 1e-10
    optimizer = Proximal(AdamW([w], 0.01, weight_decay=0.2, eps=1e-3, betas=(0.9, 0.99)), L1(LAM))
    run(w, optimizer, x, y, 6000)
    g = gradient(x, y, w.detach())
    decayed = g + 0.2 * (g.abs() + 1e-3) * w.detach()
    assert float(L1(LAM).subdiff_distance(w.detach(), decayed).max()) <= 1e-8
    assert lasso_residual(x, y, w.detach()) > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.7, "dampening": 0.4}], ids=str
)
def test_equals_the_definition_of_prox_sgd(options):
    x, y = problem()
    w = nn.Parameter(torch.full((8,), 0.5, dtype=torch.float64))
    theirs = w.detach().clone()
    optimizer = Proximal(SGD([w], 0.02, **options), L1(LAM))
    momenta = [torch.zeros_like(theirs)] if options else []
    for step in range(100):
        w.grad = gradient(x, y, w.detach())
        optimizer.step()
        reference.prox_sgd_(
            [theirs],
            momenta,
            [gradient(x, y, theirs)],
            [torch.tensor(LAM, dtype=torch.float64)],
            torch.empty(0, dtype=torch.int64),
            torch.tensor(0.02, dtype=torch.float64),
            options.get("momentum", 0.0),
            options.get("dampening", 0.0) if step else 0.0,
            0.0,
            options.get("nesterov", False),
            False,
        )
        if step == 0 and options.get("dampening"):  # whose threshold is the dampened one from the first step on, ours
            theirs.copy_(w.detach())
        torch.testing.assert_close(w.detach(), theirs, rtol=1e-12, atol=1e-14)


EXACT = {
    "sgd": lambda p: SGD(p, 0.1),
    "adagrad": lambda p: Adagrad(p, 0.1, lr_decay=0.5),
    "rmsprop": lambda p: RMSprop(p, 0.01, alpha=0.6),
    "rmsprop_centered": lambda p: RMSprop(p, 0.01, alpha=0.6, centered=True),
}


@pytest.mark.parametrize("base", EXACT)
def test_without_momentum_a_unit_of_the_gradient_goes_as_far_as_in_the_base_s_own_step(base):
    """With gradients that change, so that no mean is the gradient itself."""
    w, theirs = (nn.Parameter(torch.full((8,), 5.0, dtype=torch.float64)) for _ in range(2))
    optimizer, alone = Proximal(EXACT[base]([w]), L1(LAM)), EXACT[base]([theirs])
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        before = w.detach().clone()
        g = torch.randn(8, generator=generator, dtype=torch.float64)
        w.grad, theirs.grad = g, g.clone()
        with torch.no_grad():
            theirs.copy_(w)
        optimizer.step()
        alone.step()
        step = (before - theirs.detach()) / g
        torch.testing.assert_close(w.detach(), L1(LAM).prox(theirs.detach(), step), rtol=1e-11, atol=1e-13)


def test_a_step_size_of_the_user_makes_any_optimizer_right():
    x, y = problem()
    w = nn.Parameter(torch.full((8,), 0.5, dtype=torch.float64))

    class Mine(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(2 * group["lr"] * p.grad)

    with pytest.raises(ValueError, match=r"how far Mine steps for a gradient is not known.*give step_size, or use one of SGD"):
        Proximal(Mine([w]), L1(LAM))
    optimizer = Proximal(Mine([w]), L1(LAM), step_size=lambda group, state, p: 2 * group["lr"])
    run(w, optimizer, x, y, 5000)
    assert lasso_residual(x, y, w.detach()) <= 1e-10


# the contract of torch.optim.Optimizer


def net(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def loss_of(model: nn.Module, seed: int = 0) -> torch.Tensor:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
    return (model(x.to(next(model.parameters()))) - x[:, :3].sin()).square().mean()


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def zeros(model) -> int:
    return sum(int((p == 0).sum()) for p in model.parameters())


def test_penalties_by_group():
    model = net()
    groups = param_groups(model, penalties={"0.*": L1(0.5), "2.*": GroupL1(5.0, "columns")})
    optimizer = Proximal(SGD(groups, 0.1))
    assert "penalty" not in optimizer.param_groups[0]
    assert [g["lam"] for g in optimizer.param_groups] == [0.5, 5.0, 0.0]
    before = [p.detach().clone() for p in model.parameters()]
    loss_of(model).backward()
    grads = [p.grad for p in model.parameters()]
    optimizer.step()
    moved = [p - 0.1 * g for p, g in zip(before, grads, strict=True)]
    torch.testing.assert_close(model[0].weight.detach(), L1(0.5).prox(moved[0], 0.1))
    torch.testing.assert_close(model[2].weight.detach(), GroupL1(5.0, "columns").prox(moved[2], 0.1))
    torch.testing.assert_close(model[0].bias.detach(), moved[1])


def test_the_strength_of_the_group_is_in_use():
    model = net()
    optimizer = Proximal(SGD(param_groups(model, lam=0.25), 0.1), L1(99.0))
    assert [penalty.lam for penalty in optimizer.penalties] == [0.25, 0.0]
    optimizer.param_groups[0]["lam"] = 1e6
    train(model, optimizer, [0])
    assert zeros(model) == 48 + 24
    optimizer.param_groups[0]["lam"] = -1.0
    loss_of(model).backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"lam is -1.0; it takes a finite number >= 0"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    optimizer.param_groups[0]["lam"] = torch.tensor(0.0)
    optimizer.step()
    optimizer.param_groups[0]["lam"] = torch.ones(5)
    with pytest.raises(ValueError, match=r"lam has shape \(5,\), which does not broadcast to parameter 0 of group 0"):
        optimizer.step()


def test_schedulers_and_hooks_see_one_optimizer():
    model = net()
    optimizer = Proximal(SGD(model.parameters(), 0.1), L1(0.1))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    seen = []
    optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append(opt.param_groups[0]["lr"]))
    for step in range(3):
        train(model, optimizer, [step])
        schedule.step()
    assert seen == [0.1, 0.05, 0.025]
    assert optimizer.base_optimizer.param_groups is optimizer.param_groups


def test_what_a_hook_makes_of_the_state_dict_is_what_is_saved():
    optimizer = Proximal(Adam(net().parameters(), 0.01), L1(0.1))
    seen = []
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append(opt))
    optimizer.register_state_dict_post_hook(lambda opt, state: {**state, "note": "saved"})
    optimizer.register_state_dict_post_hook(lambda opt, state: seen.append(state["note"]))  # gives none of its own
    state = optimizer.state_dict()
    assert seen == [optimizer, "saved"]
    assert state.keys() == {"state", "param_groups", "note"}


@pytest.mark.parametrize("base", [Adam, Adagrad, RMSprop])
def test_a_compiled_step_shrinks_each_parameter_by_its_own_state(base):
    """Of one shape, so that a step size of another parameter's would not be noticed; the gradients differ by decades."""
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        params = [nn.Parameter(torch.linspace(-0.5, 0.5, 9)) for _ in range(3)]
        optimizer = Proximal(base(params, 0.05), L1(0.01))
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            for decade, p in enumerate(params):
                p.grad = 0.1**decade * torch.randn(9, generator=generator)
            step()
        ends.append(torch.stack([p.detach() for p in params]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)
    assert (ends[0] == 0).any()


def test_closures_are_called_once_and_their_loss_comes_back():
    model = net()
    optimizer = Proximal(Adam(model.parameters(), 0.01), L1(0.1))
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1


def test_parameters_without_a_gradient_are_not_shrunk():
    model = net()
    optimizer = Proximal(Adam(model.parameters(), 0.01), L1(100.0))
    before = model[0].weight.detach().clone()
    model[2].weight.grad = torch.ones_like(model[2].weight)
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert (model[2].weight == 0).all()


@pytest.mark.parametrize("base", ["momentum", "adam", "rmsprop", "adagrad"])
def test_state_dict_goes_on_to_the_bit(base):
    model = net()
    optimizer = Proximal(BASES[base](model.parameters()), L1(0.05))
    train(model, optimizer, range(5))
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = Proximal(BASES[base](twin.parameters()), L1(99.0))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.penalties[0].lam == 0.05
    train(model, optimizer, range(5, 10))
    train(twin, resumed, range(5, 10))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    # a state that the base optimizer saved alone has no strength: ours stays
    resumed.load_state_dict(BASES[base](net().parameters()).state_dict())
    assert resumed.param_groups[0]["lam"] == 0.05


def test_copies_and_pickles_train_alike():
    model = net()
    optimizer = Proximal(Adam(param_groups(model, penalties=GroupL1(0.02, "rows"))))
    train(model, optimizer, range(3))
    for other, twin in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        assert twin.param_groups[0]["params"][0] is other[0].weight
        mine = copy.deepcopy((model, optimizer))
        train(*mine, range(3, 6))
        train(other, twin, range(3, 6))
        assert all(torch.equal(p, q) for p, q in zip(mine[0].parameters(), other.parameters(), strict=True))
    assert "GroupL1(lam=0.02" in repr(optimizer)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "make", [lambda p, fused: SGD(p, 0.1, momentum=0.9, fused=fused), lambda p, fused: Adam(p, fused=fused)]
)
def test_grad_scaler_skips_and_unscales(make, fused):
    scaled, plain = net(), net()
    ours = Proximal(make(scaled.parameters(), fused), L1(0.3))
    theirs = Proximal(make(plain.parameters(), fused), L1(0.3))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(6):
        ours.zero_grad()
        scaler.scale(loss_of(scaled, step)).backward()
        if step == 3:
            scaled[0].weight.grad[0, 0] = torch.inf
            before = [p.detach().clone() for p in scaled.parameters()]
            scaler.step(ours)
            scaler.update()
            assert all(torch.equal(p, q) for p, q in zip(scaled.parameters(), before, strict=True))
            continue
        scaler.step(ours)
        scaler.update()
        train(plain, theirs, [step])
    for p, q in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert zeros(plain) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_parameters(dtype):
    model = net(dtype)
    optimizer = Proximal(SGD(model.parameters(), 0.1), L1(0.2))
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.ones_like(before)
    optimizer.step()
    expected = L1(0.2).prox(before - 0.1 * torch.ones_like(before), 0.1)
    torch.testing.assert_close(model[0].weight.detach(), expected)


def test_groups_are_added_checked_or_not_at_all():
    model = net()
    optimizer = Proximal(SGD([model[0].weight], 0.1), GroupL1(0.1, "rows"))
    with pytest.raises(ValueError, match=r"parameter 0 of group 1 has shape \(8,\); groups='rows' takes 2 dimensions"):
        optimizer.add_param_group({"params": [model[0].bias]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [model[0].bias], "penalty": L1(0.2)})
    optimizer.add_param_group({"params": [model[2].bias], "penalty": None})
    assert [g["lam"] for g in optimizer.param_groups] == [0.1, 0.2, 0.0]
    assert optimizer.penalties[2] is None
    train(model, optimizer, range(2))


def test_what_is_wrong_is_one_sentence_and_changes_nothing():
    model = net()
    base = SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"parameter 1 of group 0 has shape \(8,\); groups='rows' takes 2 dimensions"):
        Proximal(base, GroupL1(0.1, "rows"))
    with pytest.raises(ValueError, match=r"lam has shape \(8, 1\), which does not broadcast to parameter 1 of group 0"):
        Proximal(base, L1(torch.ones(8, 1)))
    assert "lam" not in base.param_groups[0]
    with pytest.raises(ValueError, match=r"base_optimizer is a list; it takes a torch.optim.Optimizer"):
        Proximal([base], L1(0.1))
    with pytest.raises(ValueError, match=r"penalty is 0.1; it takes a sparsenn.penalties.Penalty"):
        Proximal(base, 0.1)
    with pytest.raises(ValueError, match="how far LBFGS steps"):
        Proximal(torch.optim.LBFGS(model.parameters()), L1(0.1))
    model[0].weight.grad = torch.ones(8, 6)
    before = model[0].weight.detach().clone()
    for penalty, lam, match in (
        (GroupL1(0.1, "rows"), torch.ones(8, 1), r"lam has shape \(8, 1\); it takes a number or a tensor with one element"),
        (L1(0.1), -1.0, "lam is -1.0"),
        (L1(0.1), torch.tensor(float("nan")), "lam holds a negative or non-finite number"),
    ):
        optimizer = Proximal(SGD([model[0].weight], 0.1), penalty)
        optimizer.param_groups[0]["lam"] = lam
        with pytest.raises(ValueError, match=match):
            optimizer.step()
        assert torch.equal(model[0].weight, before)
    lam = torch.tensor(0.1)
    optimizer = Proximal(SGD([model[0].weight], 0.1), L1(lam))
    lam.neg_()
    with pytest.raises(ValueError, match="lam holds a negative or non-finite number"):
        optimizer.step()
    assert torch.equal(model[0].weight, before)
    with pytest.raises(ValueError, match=r"group 0 has momentum 1.0; it takes a number below 1"):
        Proximal(SGD(model.parameters(), 0.1, momentum=1.0), L1(0.1))


def test_without_strength_the_base_optimizer_is_all():
    ours, theirs = net(), net()
    train(ours, Proximal(Adam(ours.parameters(), 0.01), L1(0.0)), range(5))
    train(theirs, Adam(theirs.parameters(), 0.01), range(5))
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_works_with_sparsenn_s_own_rooms():
    model = net()
    train(model, Proximal(Adam(model.parameters(), 0.01), L1(0.5)), range(30))
    assert sparsenn.metrics.sparsity(model) > 0.5
