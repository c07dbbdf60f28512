"""Options of the optimizers: numbers from anywhere, and values that are written into groups between steps."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from small_training import MAKERS
from torch import nn

import sparsenn
from sparsenn.optim import FactorizedAdam, FactorizedSGD, Proximal, TargetSparsity, lambda_path, places
from sparsenn.penalties import L1, MCP, SCAD, ElasticNet, GroupL1, Heads

SCALARS = {"lr": 0.1, "lam": 0.25, "weight_decay": 0.5}
WRITTEN = [(name, value) for name in SCALARS for value in (-5.0, math.nan, math.inf, "1", True, None)]
WRITTEN += [("lr", torch.tensor(-1.0)), ("lam", torch.tensor(math.nan)), ("lam", np.float32(-1))]


def weights() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))


def step(w, optimizer, count: int = 1) -> None:
    for k in range(count):
        w.grad = (w.detach() + k).sin()
        optimizer.step()


def refused(maker: str, name: str, value, match: str) -> None:
    """After a first step and before it, the value is named and nothing moves."""
    for steps in (0, 2):
        w = weights()
        optimizer = MAKERS[maker]([w])
        step(w, optimizer, steps)
        kept, before = optimizer.param_groups[0][name], w.detach().clone()
        optimizer.param_groups[0][name] = value
        w.grad = torch.ones_like(w)
        for _ in range(2):
            with pytest.raises(ValueError, match=match):
                optimizer.step()
        assert torch.equal(w.detach(), before)
        optimizer.param_groups[0][name] = kept
        step(w, optimizer)
        assert w.isfinite().all()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("name", "value"), WRITTEN, ids=str)
def test_a_value_written_into_a_group_is_checked_at_the_step(maker, name, value):
    refused(maker, name, value, f"{maker}: {name} is ")


@pytest.mark.parametrize(
    ("maker", "name", "value"),
    [
        ("FactorizedAdam", "eps", 0.0),
        ("FactorizedAdam", "betas", (0.9, 1.0)),
        ("FactorizedAdam", "betas", 0.9),
        ("FactorizedSGD", "momentum", -0.1),
        ("FactorizedSGD", "balanced", "often"),
        ("FactorizedSGD", "balance_tolerance", math.nan),
        ("FactorizedSGD", "depth", 2.5),
        ("FactorizedSGD", "factor_init", "none"),
        ("FactorizedAdam", "depth", 0),
    ],
    ids=str,
)
def test_options_of_one_optimizer_are_checked_too(maker, name, value):
    refused(maker, name, value, f"{maker}: {name} is ")


FLAGS = [("FactorizedSGD", "nesterov"), ("ProxSGD", "nesterov"), ("FactorizedAdam", "amsgrad"), ("FactorizedAdam", "decoupled")]
FLAGS += [(maker, "maximize") for maker in MAKERS]


@pytest.mark.parametrize("value", ["no", None, 2, 1.0, torch.tensor(True), [True]], ids=repr)
@pytest.mark.parametrize(("maker", "name"), FLAGS)
def test_a_flag_is_a_bool(maker, name, value):
    match = rf"{maker}: {name} is .*; it takes True or False"
    refused(maker, name, value, match)
    w = weights()
    before = w.detach().clone()
    with pytest.raises(ValueError, match=match):
        MAKERS[maker]([w], **{name: value})
    assert torch.equal(w.detach(), before)


@pytest.mark.parametrize("value", [True, np.True_, 1, np.int64(1), np.array(True)], ids=repr)
@pytest.mark.parametrize(("maker", "name"), FLAGS)
def test_a_flag_may_be_numpy_s_or_a_number_as_in_torch(maker, name, value):
    ends = []
    for given in (True, value, False):
        torch.manual_seed(0)  # of the factors
        w = weights()
        optimizer = MAKERS[maker]([w], **{name: given})
        for k in range(3):  # with gradients that fall, as AMSGrad is for
            w.grad = 0.1**k * (w.detach() + k).sin()
            optimizer.step()
        assert optimizer.param_groups[0][name] is bool(given)
        ends.append(w.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", ["lr", "lam"])
def test_a_tensor_that_is_changed_in_place_is_checked_again(maker, name):
    w, value = weights(), torch.tensor(0.1)
    optimizer = MAKERS[maker]([w], **{name: value})
    step(w, optimizer)
    before = w.detach().clone()
    value.fill_(0.05)
    step(w, optimizer)
    assert not torch.equal(w.detach(), before)
    value.neg_()
    before = w.detach().clone()
    with pytest.raises(ValueError, match=f"{name} is tensor"):
        optimizer.step()
    assert torch.equal(w.detach(), before)


KINDS = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "array": lambda x: np.array(x, dtype=np.float32)}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_scalars_train_as_their_values_and_are_saved_as_numbers(maker, kind):
    given = {name: KINDS[kind](value) for name, value in SCALARS.items()}
    mine, theirs = weights(), weights()
    optimizer = MAKERS[maker]([mine], **given)
    plain = MAKERS[maker]([theirs], **{name: float(value) for name, value in given.items()})
    for w, o in ((mine, optimizer), (theirs, plain)):
        if isinstance(o, FactorizedSGD | FactorizedAdam):
            o.param_groups[0]["seed"] = 1
            w.data.fill_(0.5)
            o.resync()
        step(w, o, 2)
    optimizer.param_groups[0]["lr"] = KINDS[kind](0.05)
    plain.param_groups[0]["lr"] = float(KINDS[kind](0.05))
    step(mine, optimizer)
    step(theirs, plain)
    assert torch.equal(mine, theirs)
    loaded = saved_and_loaded(optimizer.state_dict())
    assert all(type(loaded["param_groups"][0][name]) is float for name in SCALARS)
    MAKERS[maker]([weights()]).load_state_dict(loaded)


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_numpy_betas_depth_and_tolerance_are_saved_as_numbers():
    betas = [np.float32(0.5), np.float64(0.75)]
    adam = FactorizedAdam([weights()], 0.1, betas=betas, eps=np.float32(1e-6), depth=np.int64(3))
    sgd = FactorizedSGD([weights()], 0.1, depth=np.int8(2), balance_tolerance=np.float32(0.5))
    group = saved_and_loaded(adam.state_dict())["param_groups"][0]
    assert (group["betas"], group["depth"]) == ((0.5, 0.75), 3)
    assert len(adam.factors(adam.param_groups[0]["params"][0])) == 3
    group = saved_and_loaded(sgd.state_dict())["param_groups"][0]
    assert (group["depth"], group["balance_tolerance"]) == (2, 0.5)


def test_numpy_scalars_in_proximal_are_saved_as_numbers():
    w = weights()
    groups = [{"params": [w], "lam": np.float32(0.25)}]
    optimizer = Proximal(torch.optim.SGD(groups, 0.1), L1(np.float32(0.5)))
    assert saved_and_loaded(optimizer.state_dict())["param_groups"][0]["lam"] == 0.25
    optimizer.param_groups[0]["lam"] = np.float32(0.125)
    step(w, optimizer)
    assert saved_and_loaded(optimizer.state_dict())["param_groups"][0]["lam"] == 0.125


def test_penalties_take_numpy_scalars():
    w = torch.linspace(-3, 3, 12).view(3, 4)
    pairs = [
        (L1(np.float32(0.5)), L1(0.5)),
        (ElasticNet(np.int64(1), np.float32(0.25)), ElasticNet(1, 0.25)),
        (MCP(np.float16(0.5), np.int32(2)), MCP(0.5, 2)),
        (SCAD(np.float64(0.5), np.float32(2.5)), SCAD(0.5, 2.5)),
        (GroupL1(np.float32(0.5), Heads(np.int64(2), np.int64(2), "columns")), GroupL1(0.5, Heads(2, 2, "columns"))),
    ]
    for mine, theirs in pairs:
        assert repr(mine) == repr(theirs)
        assert torch.equal(mine.prox(w, np.float32(0.25)), theirs.prox(w, 0.25))
    assert torch.equal(sparsenn.ops.soft_threshold(w, np.float32(0.5)), sparsenn.ops.soft_threshold(w, 0.5))


def test_numpy_scalars_elsewhere():
    w = weights()
    control = TargetSparsity(MAKERS["ProxSGD"]([w]), np.float32(0.5), updates=np.int64(3), gain=np.float32(0.25))
    assert control.target == 0.5
    control.step()
    assert lambda_path(1.0, n=np.int64(3), eps=0.01) == lambda_path(1.0, n=3, eps=0.01)
    assert len(sparsenn.factorize(nn.Linear(3, 2), np.arange(2, 4)[1]).parametrizations.weight) == 1
    for compression in (np.float32(2), np.int64(2), torch.tensor(2.0), 2):
        assert sparsenn.prune.magnitude(nn.Linear(4, 4), compression=compression).kept == 10
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    report = sparsenn.prune.synflow(net, compression=np.float64(3), input_shape=(4,), iterations=np.int64(3))
    assert report.kept == 16
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    smaller = sparsenn.prune.compact(net, torch.ones(1, 4), round_to=np.int64(4))
    assert smaller[0].out_features % 4 == 0


@pytest.mark.parametrize("flag", [True, np.True_, torch.tensor(True)], ids=repr)
def test_bools_are_no_numbers(flag):
    for make in MAKERS.values():
        with pytest.raises(ValueError, match=r"lr is "):
            make([weights()], lr=flag)
    for refused_call in (
        lambda: L1(flag),
        lambda: MCP(0.1, flag),
        lambda: ElasticNet(0.1, flag),
        lambda: L1(0.1).prox(torch.ones(2), flag) if not isinstance(flag, torch.Tensor) else L1(flag),
        lambda: TargetSparsity(MAKERS["ProxSGD"]([weights()]), 0.5, updates=flag),
        lambda: sparsenn.factorize(nn.Linear(3, 2), flag),
        lambda: sparsenn.prune.magnitude(nn.Linear(4, 4), compression=flag),
    ):
        with pytest.raises(ValueError, match="it takes"):
            refused_call()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_parameter_that_was_converted_is_named_before_anything_moves(maker, dtypes, steps):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(dtypes[0])
    optimizer = MAKERS[maker]([{"params": model[0].parameters()}, {"params": model[1].parameters()}])
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    model[1].to(dtypes[1])
    for grads_anew in (False, True):
        before = [p.detach().clone() for p in model.parameters()]
        if grads_anew:
            for p in model.parameters():
                p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError) as caught:
            optimizer.step()
        text = str(caught.value)
        assert text.startswith(f"{maker}: parameter 2 (shape (2, 3)) is {dtypes[1]}, and its state {dtypes[0]}")
        assert text.endswith("Make the optimizer after converting the model")
        assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_parameter_may_become_one_whose_state_is_the_same(maker):
    """Half types keep float32 states: their weights are those of a float32 twin, rounded."""
    mine, twin = weights(), weights()
    twin.data.copy_(mine)
    torch.manual_seed(0)  # of the factors
    optimizer = MAKERS[maker]([mine])
    torch.manual_seed(0)
    theirs = MAKERS[maker]([twin])
    step(mine, optimizer)
    step(twin, theirs)
    for w, o, dtype in ((mine, optimizer, torch.bfloat16), (twin, theirs, torch.float32)):
        w.data = w.data.to(dtype)
        w.grad = None
        w.grad = torch.ones_like(w)
        o.step()
    torch.testing.assert_close(mine.float(), twin, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("maker", ["FactorizedSGD", "FactorizedAdam"])
def test_parameters_are_looked_up_in_one_table(maker, monkeypatch):
    """Once for a construction and once for what comes after, however many there are."""
    calls = []
    table = places._places
    monkeypatch.setattr(places, "_places", lambda groups: calls.append(1) or table(groups))
    params = [nn.Parameter(torch.ones(2)) for _ in range(40)]
    optimizer = MAKERS[maker]([{"params": params[:15], "depth": 2}, {"params": params[15:], "depth": 3}])
    optimizer.resync()
    assert len(calls) <= 2
    assert [optimizer._position(p) for p in params] == list(range(40))
    assert [len(optimizer.factors(p)) for p in params] == [2] * 15 + [3] * 25
    added = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [added]})
    optimizer.param_groups[0]["params"].reverse()
    assert optimizer._position(params[0]) == 14
    assert optimizer._position(added) == 40
    with pytest.raises(ValueError, match="the tensor is no parameter of this optimizer"):
        optimizer._group_of(torch.ones(2))


ROUNDED = {**MAKERS, "Proximal": lambda p, **options: Proximal(torch.optim.SGD(p, **{"lr": 0.1, **options}), L1(1e-3))}


@pytest.mark.parametrize("maker", ROUNDED)
def test_a_schedule_may_end_below_zero_by_a_rounding(maker):
    """Torch's LinearLR goes from 1/3 to 0 in ten steps, and stays at -3e-18."""
    w = weights()
    optimizer = ROUNDED[maker]([w])
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 3, 0.0, 10)
    for _ in range(10):
        step(w, optimizer)
        scheduler.step()
    assert -1e-12 < optimizer.param_groups[0]["lr"] < 0
    before = w.detach().clone()
    step(w, optimizer, 2)
    assert torch.equal(w, before)
    optimizer.param_groups[0]["lr"] = -1e-9
    with pytest.raises(ValueError, match="lr is -1e-09; it takes a finite number >= 0"):
        step(w, optimizer)
    assert torch.equal(w, before)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_rate_below_zero_by_a_rounding_is_zero_in_the_caller_s_tensor(maker):
    w, lr, lam = weights(), torch.tensor(-1e-13), torch.tensor(-1e-13)
    optimizer = MAKERS[maker]([w], lr=lr)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr == 0
    before = w.detach().clone()
    lr.fill_(-1e-13)
    step(w, optimizer)
    assert lr == 0
    assert torch.equal(w.detach(), before)
    for given in (lam, -1e-13):
        with pytest.raises(ValueError, match="lam is"):
            MAKERS[maker]([weights()], lam=given)
    assert lam != 0


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("maker", MAKERS)
def test_a_parameter_stands_once_in_a_group(maker):
    w = weights()
    with pytest.raises(ValueError, match=f"{maker}: a parameter stands twice in a group; it takes each once"):
        MAKERS[maker]([w, w])
    optimizer = MAKERS[maker]([w])
    with pytest.raises(ValueError, match="stands twice"):
        optimizer.add_param_group({"params": [other := weights(), other]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("maker", [FactorizedSGD, FactorizedAdam])
def test_a_generator_is_one_of_torch(maker):
    with pytest.raises(ValueError, match=r"generator is 3; it takes a torch\.Generator"):
        maker([weights()], lr=0.1, generator=3)
