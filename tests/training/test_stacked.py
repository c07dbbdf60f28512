import copy
import functools
import io

import numpy as np
import pytest
import torch
from stack_cases import RUNS, alone, data_sets, flat, nets
from torch import nn

from sparsenn.models import baseline_cnn, fcn, split_filter_cnn
from sparsenn.ops import PatchLayer, permutation
from sparsenn.training import ConfigError
from sparsenn.training.stacked import Run, Stack, train
from sparsenn.training.stacked.fused_engine import NotCoveredError, layers_of
from sparsenn.training.stacked.rows import Task

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


class Residual(nn.Module):
    """An architecture that the fused operator does not know."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(x + torch.tanh(self.first(x)))


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
    limits = [1, 4, 2, 4, 3, 2, 4]
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
    limits = [1, 3, 2, 3, 3, 3, 2]
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


class Uncopied(nn.Linear):
    def __init__(self):
        super().__init__(12, 1)

    def __deepcopy__(self, memo):
        raise TypeError("no copy, please\nreally")


class Failing(nn.Linear):
    """Raises in its forward, whatever that is."""

    def __init__(self, error):
        super().__init__(12, 1)
        self.error = error

    def forward(self, x):
        raise self.error


_one_at_a_time = nn.Sequential(nn.Unflatten(0, (1, 1)), nn.Flatten(0, 1), nn.Linear(12, 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runs": []}, "it got 2 modules and 0 runs"),
        ({"modules": [], "runs": []}, "it got 0 modules and 0 runs; it takes one of each for every run, 1 or more"),
        ({"runs": [{}, {}]}, r"runs\[0\] is of type dict; it takes a list of Run objects"),
        ({"runs": [Run(), Run]}, r"runs\[1\] is of type type; it takes a list of Run objects"),
        ({"runs": Run()}, "runs is of type Run; it takes a list of Run objects"),
        ({"runs": {"lr": 0.1, "seed": 1}}, "runs is of type dict"),
        ({"modules": fcn((2,))}, "modules is of type Sequential; it takes a list of networks, a torch.nn.Module for each run"),
        ({"modules": [torch.tanh] * 2}, r"modules\[0\] is of type builtin_function_or_method; it takes a list of networks"),
        ({"modules": iter(())}, "modules is of type tuple_iterator"),
        ({"data": None}, r"data is of type NoneType; it takes a list of pairs \(x, y\) of tensors"),
        ({"data": (torch.ones(3, 12), torch.ones(3, 1))}, r"data\[0\] is a tensor of .*; it takes a list of pairs \(x, y\)"),
        ({"data": [(torch.ones(3, 12),)]}, r"data\[0\] is of type tuple; it takes a list of pairs"),
        ({"data": []}, "run 0 has data 0; there are 0 data sets"),
        ({"data": [(np.ones((3, 12)), np.ones((3, 1)))]}, "x of data set 0 is of type ndarray; it takes a tensor of floating-"),
        ({"data": [(torch.ones(3, 12), [1, 2, 3])]}, "y of data set 0 is of type list; with loss mse it takes a tensor of"),
        ({"data": [(torch.ones(3, 12), torch.ones(()))]}, r"y of data set 0 is a tensor of torch.float32 in shape \(\); "),
        ({"data": [(torch.ones(3, 12, device="meta"), torch.ones(3, 1))]}, r"in shape \(3, 12\) that has no values; it takes"),
        ({"data": [(torch.ones(3, 12).to_sparse(), torch.ones(3, 1))]}, r"in shape \(3, 12\) that is sparse; it takes"),
        ({"batch_size": 0}, "batch_size is 0; it takes a whole number from 1 to 2147483647"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"batch_size": 2**70}, "batch_size is 1180591620717411303424; it takes a whole number from 1 to 2147483647"),
        ({"batch_size": True}, "batch_size is True"),
        ({"patience": 0}, "patience is 0; it takes a whole number from 1 to 2147483647, or None"),
        ({"patience": 2**70}, "patience is 1180591620717411303424"),
        ({"max_epochs": [1]}, r"max_epochs is \[1\]; it takes a whole number from 1 to 2147483647, or a list of 2 of them"),
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"max_epochs": [1, 2**70]}, r"max_epochs is \[1, 1180591620717411303424\]"),
        ({"max_epochs": np.array([3, 3])}, r"max_epochs is array\(\[3, 3\]\)"),
        ({"max_epochs": [1] * 100}, r"max_epochs is \[1, 1, [1, ]*\.\.\.; it takes"),
        ({"dtype": torch.float16}, "dtype is torch.float16; it takes torch.float32 or torch.float64"),
        ({"dtype": "float32"}, "dtype is 'float32'; it takes torch.float32 or torch.float64"),
        ({"device": "gpu"}, "device is 'gpu'; it takes cpu, cuda or cuda:<index>"),
        ({"device": torch.device("meta")}, r"device is device\(type='meta'\); it takes cpu, cuda"),
        ({"device": "cuda:99"}, "device is 'cuda:99', but .*; device cpu works everywhere"),
        ({"device": None}, "device is None; it takes cpu"),
        ({"engine": np.array(["auto", "torch"])}, r"engine is array\(.*; it takes one of auto, fused, torch"),
        ({"loss": "hinge"}, "loss is 'hinge'; it takes one of mse, cross_entropy"),
        ({"engine": "gpu"}, "engine is 'gpu'; it takes one of auto, fused, torch"),
        ({"runs": [Run(), Run(data=1)]}, "run 1 has data 1; there are 1 data sets"),
        ({"data": [(torch.ones(3, 12).int(), torch.ones(3, 1))]}, "x of data set 0 is a tensor of torch.int32"),
        ({"data": [(torch.ones(0, 12), torch.ones(0, 1))]}, "it takes a tensor of floating-point samples"),
        (
            {"data": [(torch.ones(3, 12), torch.ones(2, 1))]},
            r"y of data set 0 .* takes a tensor of floating-point targets \(3, ...\)",
        ),
        (
            {"data": [(torch.ones(3, 12), torch.ones(3, 1))], "loss": "cross_entropy"},
            r"it takes a tensor of int64 classes \(3,\)",
        ),
        ({"data": [(torch.ones(n, 12), torch.ones(n, 1)) for n in (3, 4)]}, "the data sets of a stack have one shape"),
        (
            {"data": [(torch.ones(3, 12), torch.ones(3, dtype=torch.bool))], "loss": "cross_entropy"},
            r"y of data set 0 is a tensor of torch.bool in shape \(3,\); with loss cross_entropy it takes a tensor of int64 ",
        ),
        ({"data": [(torch.ones(3, 12), torch.ones(3))]}, r"the output has shape \(3, 1\), the targets \(3,\)"),
        ({"data": [(torch.ones(3, 5), torch.ones(3, 1))]}, "a step of Sequential fails under torch.func.vmap"),
        ({"modules": [fcn((2,)), fcn((3,))]}, "module 1 has parameters of shapes"),
        ({"modules": [nn.Sequential(nn.Linear(12, 1), nn.Dropout(0.1))] * 2}, r"module 0 has random layers \(1\)"),
        ({"modules": [nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 1))] * 2}, "module 0 has buffers .*running_mean"),
        ({"modules": [nn.Linear(12, 1).requires_grad_(False)] * 2}, r"that do not require grad \(weight, bias\)"),
        ({"modules": [nn.ReLU()] * 2}, "module 0 has no parameters"),
        ({"modules": [fcn((2,)), nn.LazyLinear(1)]}, r"module 1 has parameters without real numbers \(weight, bias\)"),
        ({"modules": [nn.Linear(12, 1, device="meta")] * 2}, "module 0 has parameters without real numbers"),
        ({"modules": [nn.Linear(12, 1, dtype=torch.complex64)] * 2}, "module 0 has parameters without real numbers"),
        ({"modules": [Uncopied()] * 2}, r"module 0 can't be copied by copy.deepcopy: no copy, please$"),
        ({"modules": [nn.LSTM(12, 1)] * 2}, "a step of LSTM fails under torch.func.vmap: the output is of type tuple and no"),
        ({"modules": [Failing(KeyError("key"))] * 2}, "a step of Failing fails under torch.func.vmap: 'key'$"),
        ({"modules": [Failing(AssertionError())] * 2}, "a step of Failing fails under torch.func.vmap: AssertionError$"),
        ({"modules": [_one_at_a_time] * 2}, "a step of Sequential fails under torch.func.vmap: .*unflatten"),
        ({"modules": [Residual()] * 2, "engine": "fused"}, "does not cover a Residual; it covers chains of Linear"),
    ],
)
def test_what_is_no_stack_is_refused_in_a_sentence(given, message):
    arguments = {"modules": [fcn((2,)), fcn((2,))], "runs": [Run(), Run()], "data": [(torch.ones(3, 12), torch.ones(3, 1))]}
    arguments |= {"max_epochs": 1, **given}
    with pytest.raises(ValueError, match=message) as caught:
        Stack(arguments.pop("modules"), arguments.pop("runs"), arguments.pop("data"), **arguments)
    assert str(caught.value).startswith("Stack: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0.0}, "Run: lr is 0.0; it takes a number above 0"),
        ({"lr": [0.1]}, r"lr is \[0.1\]; it takes a number"),
        ({"seed": -1}, "seed is -1"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; it takes one of sgd, prox, factorized, adam"),
        ({"momentum": 1}, "momentum is 1"),
        ({"lam": float("nan"), "penalty": "l1"}, "lam is nan"),
        ({"lam": 0.1}, "lam is 0.1 and has no effect"),
        ({"optimizer": "prox", "penalty": "l1"}, "takes penalty 'none'"),
        ({"optimizer": "factorized", "clipping": 0.1}, "optimizer factorized takes 0"),
        ({"betas": (0.9, 1.0)}, "betas is"),
        ({"depth": 0}, "depth is 0"),
        ({"depth": 10**9}, "depth is 1000000000; it takes a whole number from 1 to 64"),
        ({"data": 1.0}, "data is 1.0; it takes the index of a data set"),
        ({"lr": 10**400}, r"lr is 10+\.\.\.; it takes a number above 0"),
        ({"lam": torch.ones(2, 2)}, r"lam is tensor\(\[\[1\., 1\.\], \[1\., 1\.\]\]\); it takes a number, 0 or more"),
        ({"optimizer": ["sgd"]}, r"optimizer is \['sgd'\]; it takes one of"),
        ({"data": True}, "data is True"),
    ],
)
def test_a_run_with_a_wrong_setting_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Run(**given)


def task(inputs: int, outputs: int) -> Task:
    return Task(torch.ones(1, 4, inputs), torch.ones(1, 4, outputs), 2, "mse")


def test_the_structure_that_the_operator_is_given():
    net = nn.Sequential(nn.Linear(12, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 2, bias=False)), nn.Identity())
    assert layers_of(net, task(12, 2)) == ([PatchLayer(12, 5, bias=True), PatchLayer(5, 2)], "tanh", "identity")
    layers, between, last = layers_of(split_filter_cnn("gelu"), task(12, 1))
    assert layers == [PatchLayer(1, 1, 12, 3, 2), PatchLayer(1, 1, 4, 2, 2), PatchLayer(1, 1, 2, 2, 1)]
    assert (between, last) == ("gelu", "gelu")
    assert layers_of(nn.Linear(12, 1), task(12, 1))[1:] == ("identity", "identity")


_shared = nn.Linear(12, 12)
_hooked = nn.Linear(12, 1)
_hooked.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), "several activations"),
        (nn.Sequential(nn.ReLU(), nn.Linear(12, 1)), "a ReLU in this place"),
        (nn.Sequential(nn.Linear(12, 1), nn.GELU("tanh")), "a GELU in this place"),
        (nn.Sequential(nn.Linear(12, 1), nn.ReLU(), nn.Tanh()), "a Tanh in this place"),
        (nn.Sequential(nn.Linear(12, 1), nn.ELU()), "a ELU"),
        (nn.Sequential(_shared, _shared, nn.Linear(12, 1)), "parameters that layers share"),
        (nn.Linear(11, 1), r"a Linear of 11 inputs on a sample of shape \(12,\)"),
        (nn.Linear(12, 2), "an output of length 2 for targets of length 1"),
        (nn.Sequential(*list(baseline_cnn())[:-1]), "an output that is not a vector"),
        (_hooked, "forward hooks"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(12, 1)), "a ParametrizedLinear"),
    ],
)
def test_what_the_operator_does_not_cover_is_named(net, why):
    with pytest.raises(NotCoveredError, match=why):
        layers_of(net, task(12, 1))


def test_the_stack_says_which_way_it_goes():
    data = [(torch.ones(3, 12), torch.ones(3, 4))]
    assert Stack([Residual()], [Run()], data, max_epochs=1).reason == (
        "through torch.func: the fused operator does not cover a Residual"
    )
    assert Stack([fcn((2,))], [Run()], data_sets()[:1], max_epochs=1, engine="fused").engine == "fused"
    assert "depth 9" in Stack([fcn((2,))], [Run(optimizer="factorized", depth=9)], data_sets()[:1], max_epochs=1).reason
