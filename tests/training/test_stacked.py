import copy
import functools
import io

import numpy as np
import pytest
import torch
from stack_cases import RUNS, Residual, alone, data_sets, flat, nets
from torch import nn

from sparsenn.models import fcn
from sparsenn.ops import permutation
from sparsenn.training.stacked import Run, Stack, train

ENGINES = ("torch", "fused")


def stack_of(which=None, *, kind="fcn", dtype=torch.float64, max_epochs=3, **options) -> Stack:
    every = nets(kind)
    which = range(len(RUNS)) if which is None else which
    return Stack(
        [every[i] for i in which], [RUNS[i] for i in which], data_sets(), max_epochs=max_epochs, dtype=dtype, **options
    )


def finish(stack: Stack) -> Stack:
    while stack.active:
        stack.epoch()
    return stack


@functools.cache
def alone_for_1000_steps(index: int, dtype: torch.dtype):
    """100 epochs of ten batches, the last of 6."""
    run = RUNS[index]
    return alone(nets()[index], run, *data_sets(dtype=dtype)[run.data], epochs=100)


@pytest.mark.parametrize(
    ("engine", "which", "dtype", "tolerance"),
    [
        ("fused", (0, 2, 3, 4), torch.float64, 1e-10),
        ("fused", (0, 2, 3, 4), torch.float32, 1e-5),
        ("torch", (0, 4), torch.float64, 1e-10),
        ("torch", (2, 3), torch.float32, 1e-5),
    ],
)
def test_a_run_in_a_stack_is_the_run_alone_after_1000_steps(engine, which, dtype, tolerance):
    stack = finish(stack_of(which, dtype=dtype, max_epochs=100, engine=engine))
    for index, outcome in zip(which, stack.outcomes, strict=True):
        module, history = alone_for_1000_steps(index, dtype)
        expected = flat(module)
        assert (flat(outcome) - expected).norm() <= tolerance * expected.norm(), outcome.run
        assert outcome.data_loss == pytest.approx(history[-1][0], rel=10 * tolerance)
        assert outcome.loss == pytest.approx(history[-1][1], rel=10 * tolerance)
        assert outcome.best_loss == pytest.approx(min(total for _, total in history), rel=10 * tolerance)
        assert (outcome.status, outcome.epochs) == ("finished", 100)


_CLASSIFIER = nn.Sequential(nn.Linear(12, 8), nn.Sigmoid(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("net", "run", "loss", "engine"),
    [
        (nets()[1], Run(seed=3, lr=0.05, momentum=0.0), "mse", "fused"),
        (nets("cnn")[4], RUNS[4], "mse", "fused"),
        (nets("cnn")[2], RUNS[2], "mse", "fused"),
        (_CLASSIFIER, RUNS[0], "cross_entropy", "fused"),
        (_CLASSIFIER, Run(seed=3, lr=0.05, momentum=0.0), "cross_entropy", "torch"),
    ],
    ids=["plain SGD, sigmoid", "convolution, Adam", "convolution, proximal", "classes", "classes, torch"],
)
def test_other_runs_are_the_run_alone_after_1000_steps_too(net, run, loss, engine):
    x, y = data_sets()[0]
    y = torch.arange(len(x)) % 4 if loss == "cross_entropy" else y
    expected, history = alone(net, run, x, y, epochs=100, loss=loss)
    outcome = train([net], [run], [(x, y)], loss=loss, max_epochs=100, dtype=torch.float64, engine=engine)[0]
    assert (flat(outcome) - flat(expected)).norm() <= 1e-10 * flat(expected).norm()
    assert outcome.loss == pytest.approx(history[-1][1], rel=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_convolutions_and_cuda_do_as_the_loop_does(engine, device):
    stack = finish(stack_of(kind="cnn", engine=engine, device=device))
    for outcome, net in zip(stack.outcomes, nets("cnn"), strict=True):
        module, history = alone(net, outcome.run, *data_sets()[outcome.run.data], epochs=3)
        torch.testing.assert_close(flat(outcome).cpu(), flat(module), rtol=1e-9, atol=1e-12)
        assert outcome.loss == pytest.approx(history[-1][1], rel=1e-10)


def test_any_architecture_learns_classes():
    modules = [Residual() for _ in range(3)]
    x, labels = data_sets()[0][0], torch.arange(150) % 4
    runs = [Run(seed=seed, lr=0.05) for seed in range(3)]
    outcomes = train(modules, runs, [(x, labels)], loss="cross_entropy", max_epochs=3, dtype=torch.float64, batch_size=40)
    for module, outcome in zip(modules, outcomes, strict=True):
        expected, history = alone(module, outcome.run, x, labels, 3, size=40, loss="cross_entropy")
        assert {name: tuple(w.shape) for name, w in outcome.weights.items()} == {
            name: tuple(p.shape) for name, p in module.named_parameters()
        }
        torch.testing.assert_close(flat(outcome), flat(expected), rtol=1e-10, atol=1e-12)
        assert outcome.data_loss == outcome.loss == pytest.approx(history[-1][0], rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("label", [7, -100])
def test_a_label_that_no_output_stands_for_is_refused_before_the_first_step(engine, label):
    x, labels = torch.ones(5, 12), torch.arange(5) % 3
    wrong = labels.clone()
    wrong[4] = label
    nets = [nn.Linear(12, 3) for _ in range(2)]
    options = {"loss": "cross_entropy", "max_epochs": 1, "engine": engine}
    with pytest.raises(ValueError, match=f"Stack: run 1 has the label {label} in data set 1; .* labels from 0 to 2"):
        Stack(nets, [Run(), Run(data=1)], [(x, labels), (x, wrong)], **options)
    Stack(nets, [Run(), Run()], [(x, labels), (x, wrong)], **options)  # which no run learns


def test_layers_may_share_a_weight():
    net = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Tanh(), nn.Linear(12, 12, bias=False), nn.Linear(12, 1))
    net[2].weight = net[0].weight
    x, y = data_sets()[0]
    stack = finish(Stack([net], [Run(lr=0.05)], [(x, y)], max_epochs=2, dtype=torch.float64))
    module, _ = alone(net, Run(lr=0.05), x, y, 2)
    torch.testing.assert_close(flat(stack.outcomes[0]), flat(module), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(stack.module(0)(x), module(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["fcn", "cnn"])
def test_company_changes_no_bit_of_a_run(kind):
    together = finish(stack_of(kind=kind, engine="fused", dtype=torch.float32))
    for index in range(len(RUNS)):
        own = finish(stack_of([index], kind=kind, engine="fused", dtype=torch.float32)).outcomes[0]
        assert torch.equal(flat(own), flat(together.outcome(index)))
        assert (own.loss, own.data_loss) == (together.outcome(index).loss, together.outcome(index).data_loss)


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_leave_at_their_own_time_and_the_others_go_on(engine):
    limits = [1, 4, 2, 4, 3, 2, 4, 3, 1, 4, 2]
    stack = stack_of(max_epochs=limits, engine=engine)
    seen = []
    while stack.active:
        seen.append(stack.active)
        stack.epoch()
    assert seen == [[i for i, limit in enumerate(limits) if limit > epoch] for epoch in range(4)]
    for index, (outcome, limit) in enumerate(zip(stack.outcomes, limits, strict=True)):
        expected = finish(stack_of([index], max_epochs=limit, engine=engine)).outcomes[0]
        assert outcome.epochs == limit
        torch.testing.assert_close(flat(outcome), flat(expected), rtol=1e-9, atol=1e-13)


def test_a_run_ends_when_patience_epochs_in_a_row_brought_nothing_better():
    runs = [Run(seed=seed, lr=lr) for seed, lr in enumerate((0.3, 0.1, 0.02, 0.005))]
    modules = [fcn((8,), "tanh") for _ in runs]
    losses = [[] for _ in runs]
    endless = Stack(modules, runs, data_sets(40)[:1], max_epochs=60, dtype=torch.float64)
    while endless.active:
        endless.epoch()
        for own, outcome in zip(losses, endless.outcomes, strict=True):
            own.append(outcome.loss)

    def end(own):
        best, stale = float("inf"), 0
        for epoch, loss in enumerate(own, start=1):
            best, stale = (loss, 0) if loss < best else (best, stale + 1)
            if stale == 4:
                return epoch, best
        return 60, best

    def impatient():
        return Stack(modules, runs, data_sets(40)[:1], max_epochs=60, dtype=torch.float64, patience=4)

    stack = impatient()
    while stack.active:
        stack.epoch()
        again = impatient()
        again.load_state_dict(stack.state_dict())  # patience is a part of the state
        stack = again
    expected = [end(own) for own in losses]
    assert [outcome.epochs for outcome in stack.outcomes] == [epochs for epochs, _ in expected]
    assert [outcome.best_loss for outcome in stack.outcomes] == pytest.approx([best for _, best in expected], rel=1e-9)
    assert len({epochs for epochs, _ in expected}) > 2
    assert min(epochs for epochs, _ in expected) < 60


def test_a_loss_that_stays_the_same_is_no_improvement():
    x, y = torch.zeros(20, 12), torch.ones(20, 1)  # the output is 0 whatever the weights, and nothing moves
    outcome = train([fcn((3,), "tanh")], [Run()], [(x, y)], patience=4, max_epochs=60)[0]
    assert (outcome.epochs, outcome.best_loss) == (5, 1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_diverged_run_is_recorded_and_disturbs_no_other(engine):
    runs = [Run(seed=1), Run(seed=2, lr=1e200), Run(seed=3, optimizer="prox", lam=1e-3)]
    modules = [fcn((6,), "relu", output_activation=False) for _ in runs]
    options = {"max_epochs": 4, "dtype": torch.float64, "engine": engine}
    outcomes = train(modules, runs, data_sets(), **options)
    assert [outcome.status for outcome in outcomes] == ["finished", "diverged", "finished"]
    assert outcomes[1].epochs == 1
    for outcome, expected in zip(
        (outcomes[0], outcomes[2]), train(modules[::2], runs[::2], data_sets(), **options), strict=True
    ):
        torch.testing.assert_close(flat(outcome), flat(expected), rtol=0 if engine == "fused" else 1e-12, atol=0)
        assert outcome.loss == pytest.approx(expected.loss, rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_only_the_last_step_made_infinite_are_divergence(engine):
    x, y = data_sets(10, torch.float32)[0]
    run = Run(lr=3e38)
    outcome = train([nn.Linear(12, 1, bias=False)], [run], [(x, 100 * y)], max_epochs=1, batch_size=10, engine=engine)[0]
    assert outcome.loss < float("inf")
    assert not flat(outcome).isfinite().all()
    assert outcome.status == "diverged"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stops", [(2, 7), (1, 0)], ids=["within an epoch", "between two"])
def test_a_stack_goes_on_from_its_state_with_the_same_bits(engine, stops):
    limits = [1, 3, 2, 3, 3, 3, 2, 3, 2, 3, 1]
    whole = finish(stack_of(max_epochs=limits, engine=engine, dtype=torch.float32))
    first = stack_of(max_epochs=limits, engine=engine, dtype=torch.float32)
    while first.epochs < stops[0]:
        first.epoch()
    for _ in range(stops[1]):
        assert first.advance(1) == 1
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    finish(first)  # what is loaded below shares no memory with it
    second = stack_of(max_epochs=limits, engine=engine, dtype=torch.float32)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert (second.epochs, second.step) == stops
    finish(second)
    for ours, expected in zip(second.outcomes, whole.outcomes, strict=True):
        assert torch.equal(flat(ours), flat(expected))
        assert (ours.loss, ours.best_loss, ours.epochs) == (expected.loss, expected.best_loss, expected.epochs)


def test_the_state_of_another_stack_is_refused_and_changes_nothing():
    stack, other = stack_of([0, 1]), stack_of([0, 2])
    other.epoch()
    before = flat(stack.outcome(0))
    with pytest.raises(ValueError, match=r"the state is that of another stack: runs .* for "):
        stack.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="engine 'fused' for 'torch'"):
        stack_of([0], engine="torch").load_state_dict(stack_of([0], engine="fused").state_dict())
    assert stack.epochs == 0
    assert torch.equal(flat(stack.outcome(0)), before)


@pytest.mark.parametrize("engine", ENGINES)
def test_other_activations_and_other_data_make_another_stack(engine):
    x = torch.ones(4, 3)

    def stack(activation=nn.ReLU, samples=x):
        net = nn.Sequential(nn.Linear(3, 2), activation(), nn.Linear(2, 1))
        return Stack([net], [Run()], [(samples, x[:, :1])], max_epochs=1, engine=engine)

    state = stack().state_dict()
    stack().load_state_dict(state)
    with pytest.raises(ValueError, match="another stack: networks"):
        stack(activation=nn.Tanh).load_state_dict(state)
    with pytest.raises(ValueError, match="another stack: data"):
        stack(samples=2 * x).load_state_dict(state)


def test_a_state_has_plain_values_alone():
    """Settings of NumPy's, as ``np.logspace`` gives them, and data that a graph hangs on, come back from a file."""
    x = torch.ones(4, 3, requires_grad=True)
    run = Run(lr=np.float64(0.01), betas=(np.float64(0.9), 0.99))
    stacks = [Stack([nn.Linear(3, 1)], [run], [(x, x[:, :1])], max_epochs=2) for _ in range(2)]
    stacks[0].epoch()
    file = io.BytesIO()
    torch.save(stacks[0].state_dict(), file)
    file.seek(0)
    stacks[1].load_state_dict(torch.load(file, weights_only=True))
    assert stacks[1].outcome(0).loss == stacks[0].outcome(0).loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: None, "the state is no dict that state_dict gave"),
        (lambda state: {}, "the state lacks about, epochs, step, members, weights, .*; it takes what state_dict gave"),
        (lambda state: {key: state[key] for key in state if key != "losses"}, "the state lacks losses; it takes"),
        (lambda state: {**state, "loss": 1}, "the state has the unknown 'loss'; it takes"),
        (lambda state: {**state, "about": {}}, "the state is that of another stack: runs None for "),
        (lambda state: {**state, "about": 3}, "the state is no dict that"),
        (lambda state: {**state, "epochs": -1}, "the state is damaged: epochs$"),
        (lambda state: {**state, "step": 10, "epochs": 1.0}, "the state is damaged: epochs, step$"),
        (lambda state: {**state, "members": [1]}, "the state is damaged: members$"),
        (lambda state: {**state, "status": torch.full_like(state["status"], 77)}, "the state is damaged: status$"),
        (lambda state: {**state, "status": state["status"][:1]}, "the state is damaged: status$"),
        (lambda state: {**state, "status": torch.ones_like(state["status"])}, "the state is damaged: members, state, losses$"),
        (lambda state: {**state, "members": [1, 0]}, "the state is damaged: members$"),
        (lambda state: {**state, "members": [0, 2]}, "the state is damaged: members$"),
        (lambda state: {**state, "members": None}, "the state is damaged: members$"),
        (lambda state: {**state, "weights": state["weights"].float()}, "the state is damaged: weights$"),
        (lambda state: {**state, "state": state["state"][:, :0]}, "the state is damaged: state$"),
        (lambda state: {**state, "best": state["best"].numpy()}, "the state is damaged: best$"),
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(change, message):
    stack, later = stack_of([0, 1]), stack_of([0, 1])
    later.epoch()
    before = flat(stack.outcome(0))
    with pytest.raises(ValueError, match=f"Stack.load_state_dict: {message}"):
        stack.load_state_dict(change(later.state_dict()))
    assert (stack.epochs, stack.active) == (0, [0, 1])
    assert torch.equal(flat(stack.outcome(0)), before)
    stack.load_state_dict(later.state_dict())
    assert torch.equal(flat(stack.outcome(0)), flat(later.outcome(0)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [-1, 1.5, True, "2"])
def test_a_number_of_steps_that_is_none_moves_nothing(engine, steps):
    stack = stack_of([0], engine=engine)
    before = flat(stack.outcome(0))
    with pytest.raises(ValueError, match=f"Stack.advance: steps is {steps!r}; it takes a whole number, 0 or more"):
        stack.advance(steps)
    assert stack.advance(0) == stack.step == 0
    assert torch.equal(flat(stack.outcome(0)), before)


def test_runs_count_from_the_last_too():
    stack = finish(stack_of([0, 1], max_epochs=2))
    assert torch.equal(flat(stack.outcome(-1)), flat(stack.outcome(1)))
    assert torch.equal(flat(stack.module(-2)), flat(stack.outcome(0)))
    assert torch.equal(flat(stack.outcome(np.int64(1))), flat(stack.outcome(1)))
    for index in (2, -3, 0.5, "1"):
        with pytest.raises(IndexError, match=f"run {index!r} of 2"):
            stack.outcome(index)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cut", [1, 2])
def test_what_the_last_batch_lacks_is_not_what_an_earlier_one_had(engine, cut):
    # A sample of the first batch is next to overflow; the second batch has one sample alone.
    order = permutation(5, 0, 0).tolist()
    x, y = torch.zeros(5, 1), torch.zeros(5, 1)
    x[order[0]], y[order[0]], x[order[1]] = 1.0, -7.0, -3e38
    x[order[4]], y[order[4]] = -1.0, -8.0
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0)
    stack = Stack([net], [Run(lr=1.0, momentum=0.0)], [(x, y)], batch_size=4, max_epochs=1, engine=engine)
    while stack.active:
        stack.advance(cut)
    assert stack.outcome(0).status == "finished"
    assert flat(stack.outcome(0)).tolist() == [3.0, 3.0]


def test_modules_are_read_only_and_come_back_as_copies():
    every = nets()
    before = copy.deepcopy(every)
    stack = Stack(every, RUNS, data_sets(), max_epochs=1)
    assert stack.outcome(0).loss != stack.outcome(0).loss  # no epoch yet: not a number
    finish(stack)
    for net, old in zip(every, before, strict=True):
        assert torch.equal(flat(net), flat(old))
    assert torch.equal(flat(stack.module(3)), flat(stack.outcome(3)))
    assert not torch.equal(flat(stack.module(3)), flat(before[3]))
    assert stack.advance(5) == 0
