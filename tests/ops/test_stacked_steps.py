"""Many small networks in one call: against loops of torch's own modules and optimizers, and against itself in other company."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

import sparsenn
from sparsenn.ops import PatchLayer, RunSettings, permutation, stacked_steps_, stacked_tables
from sparsenn.ops import backend as use_backend

MLP = [PatchLayer(12, 40, bias=True), PatchLayer(40, 17), PatchLayer(17, 3, bias=True)]  # 1271 parameters: samples in the lanes
CONV = [PatchLayer(1, 4, 12, 3), PatchLayer(4, 4, 4, 2, 2, True), PatchLayer(4, 1, 2, 2)]
ODD = [PatchLayer(2, 3, 7, 2, 2, True), PatchLayer(9, 5, bias=True), PatchLayer(5, 3)]
DEEP = [PatchLayer(6, 70), PatchLayer(70, 33, bias=True), PatchLayer(33, 20), PatchLayer(20, 2)]
WIDE = [PatchLayer(12, 301, bias=True), PatchLayer(301, 19), PatchLayer(19, 2)]  # rows longer than a block of gradients
STRUCTURES = {"mlp": MLP, "conv": CONV, "odd": ODD, "deep": DEEP, "wide": WIDE}
ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}
KINDS = [
    {"optimizer": "sgd", "activation": "relu", "last": "relu"},
    {"optimizer": "sgd", "activation": "tanh", "last": "tanh", "penalty": "l1", "clipping": 0.02},
    {"optimizer": "sgd", "activation": "sigmoid", "last": "identity", "penalty": "l2", "momentum": 0.0},
    {"optimizer": "prox", "activation": "gelu", "last": "identity"},
    {"optimizer": "prox", "activation": "relu", "last": "sigmoid", "momentum": 0.5},
    {"optimizer": "factorized", "activation": "tanh", "last": "identity", "depth": 2},
    {"optimizer": "factorized", "activation": "relu", "last": "gelu", "depth": 4},
    {"optimizer": "factorized", "activation": "gelu", "last": "tanh", "depth": 1, "momentum": 0.0},
    {"optimizer": "adam", "activation": "tanh", "last": "identity", "beta2": 0.99},
    {"optimizer": "adam", "activation": "sigmoid", "last": "relu", "penalty": "l1", "eps": 1e-3},
    {"optimizer": "sgd", "activation": "tanh", "last": "identity", "penalty": "l1", "weight_decay": 0.02},
    {"optimizer": "prox", "activation": "tanh", "last": "tanh", "weight_decay": 0.01},
    {"optimizer": "factorized", "activation": "sigmoid", "last": "identity", "depth": 3, "weight_decay": 0.02},
    {"optimizer": "adam", "activation": "gelu", "last": "identity", "penalty": "l2", "weight_decay": 0.03},
]
RUNS = [RunSettings(seed=n, data=n % 2, lr=0.02, lam=2e-3, **kind) for n, kind in enumerate(KINDS)]
# FactorizedSGD takes no weights that were clipped behind its back.
CLIPPED = RunSettings(seed=50, lr=0.02, lam=2e-3, optimizer="factorized", depth=3, clipping=0.05)


class Stack:
    """The tensors of a call, drawn from a seed."""

    def __init__(self, layers, runs, dtype, *, samples=53, labels=False, seed=0, device="cpu"):
        self.layers, self.runs = layers, list(runs)
        draw = torch.Generator().manual_seed(seed)
        size = sum(layer.parameters for layer in layers)
        self.x = torch.randn(2, samples, layers[0].inputs, generator=draw, dtype=torch.float64).to(device, dtype)
        y = torch.randn(2, samples, layers[-1].outputs, generator=draw, dtype=torch.float64)
        self.y = y.argmax(2).to(device) if labels else y.to(device, dtype)
        rows = max((run.state_rows for run in self.runs), default=1)
        weights = torch.zeros(len(self.runs), size, dtype=torch.float64)
        state = torch.zeros(len(self.runs), rows, size, dtype=torch.float64)
        for n, run in enumerate(self.runs):  # a run's own numbers, whatever its place
            own = torch.Generator().manual_seed(1000 + run.seed)
            weights[n] = torch.randn(size, generator=own, dtype=torch.float64) * 0.3
            if run.optimizer == "factorized":
                state[n, : run.depth] = weights[n].abs() ** (1 / run.depth)
                state[n, 0] *= weights[n].sign()
        self.weights, self.state = weights.to(device, dtype), state.to(device, dtype)
        for n, run in enumerate(self.runs):
            if run.optimizer == "factorized":
                self.weights[n] = sparsenn.ops.hadamard_product(list(self.state[n, : run.depth]))
        self.losses = torch.zeros(len(self.runs), 2, dtype=torch.float64, device=device)

    def train(self, epochs=2, batch_size=16, cut=None, active=None):
        batches = -(-self.x.shape[1] // batch_size)
        for epoch in range(epochs):
            for first in range(0, batches, cut or max(batches, 1)):
                stacked_steps_(
                    self.weights, self.state, self.losses, self.x, self.y, *stacked_tables(self.runs), self.layers,
                    batch_size=batch_size, epoch=epoch, first=first, steps=min(cut or batches, batches - first), active=active,
                )  # fmt: skip
        return self

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weights, self.state, self.losses


class Patches(nn.Module):
    """A layer by torch's own linear map of each patch."""

    def __init__(self, layer: PatchLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(torch.empty(layer.filters, layer.out_channels, layer.in_channels, layer.kernel, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(layer.filters, layer.out_channels, dtype=dtype)) if layer.bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, self.layer.in_channels, self.layer.length)
        found = []
        for p in range(self.layer.length // self.layer.kernel):
            patch = x[..., p * self.layer.kernel : (p + 1) * self.layer.kernel].flatten(1)
            f = p % self.layer.filters
            found.append(nn.functional.linear(patch, self.weight[f].flatten(1), None if self.bias is None else self.bias[f]))
        return torch.stack(found, 2).flatten(1)


def ordinary_loop(stack: Stack, n: int, epochs: int, batch_size: int) -> tuple[Tensor, list[float]]:
    """Run n alone, by autograd and an optimizer of torch or of sparsenn."""
    run, dtype = stack.runs[n], stack.weights.dtype
    modules = []
    for k, layer in enumerate(stack.layers):
        kind = run.last if k == len(stack.layers) - 1 else run.activation
        modules += [Patches(layer, dtype), ACTIVATIONS[kind]()]
    net = nn.Sequential(*modules)
    nn.utils.vector_to_parameters(stack.weights[n], net.parameters())
    lam, options = run.lam, {"lr": run.lr, "weight_decay": run.weight_decay}
    if run.optimizer == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), momentum=run.momentum, **options)
    elif run.optimizer == "prox":
        optimizer = sparsenn.optim.ProxSGD(net.parameters(), momentum=run.momentum, lam=lam, **options)
    elif run.optimizer == "adam":
        optimizer = torch.optim.Adam(net.parameters(), betas=(run.beta1, run.beta2), eps=run.eps, **options)
    else:
        optimizer = sparsenn.optim.FactorizedSGD(net.parameters(), momentum=run.momentum, lam=lam, depth=run.depth, **options)
        optimizer = started_from(optimizer, net, stack.state[n, : run.depth])
    total = [0.0, 0.0]
    for epoch in range(epochs):
        for batch in permutation(stack.x.shape[1], run.seed, epoch).split(batch_size):
            optimizer.zero_grad()
            output, target = net(stack.x[run.data, batch]), stack.y[run.data, batch]
            labels = target.dtype == torch.int64
            loss = nn.functional.cross_entropy(output, target) if labels else nn.functional.mse_loss(output, target)
            penalty = penalty_of(run, net, optimizer)
            total[0] += loss.item()
            total[1] += penalty.item()
            (loss + penalty if run.penalty != "none" else loss).backward()
            optimizer.step()
            if run.clipping:
                with torch.no_grad():
                    for p in net.parameters():
                        p[p.abs() < run.clipping] = 0
    return nn.utils.parameters_to_vector(net.parameters()).detach(), total


def started_from(optimizer, net: nn.Module, factors: Tensor):
    with torch.no_grad():
        start = 0
        for p in net.parameters():
            for d, factor in enumerate(optimizer.factors(p)):
                factor.copy_(factors[d, start : start + p.numel()].view_as(p))
            p.copy_(sparsenn.ops.hadamard_product(optimizer.factors(p)))
            start += p.numel()
    return optimizer


def penalty_of(run: RunSettings, net: nn.Module, optimizer) -> Tensor:
    parameters = list(net.parameters())
    if run.optimizer == "factorized":
        return run.lam / run.depth * sum(f.detach().square().sum() for p in parameters for f in optimizer.factors(p))
    if run.optimizer == "prox" or run.penalty == "l1":
        return run.lam * sum(p.abs().sum() for p in parameters)
    return run.lam * sum(p.square().sum() for p in parameters) if run.penalty == "l2" else torch.zeros(())


def close(a: Tensor, b: Tensor, relative: float) -> bool:
    """Within a share of each run's largest number."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return bool(((a - b).abs().amax(1) <= relative * b.abs().amax(1).clamp(min=1e-3)).all())


@pytest.mark.parametrize(("name", "labels"), [("mlp", False), ("mlp", True), ("conv", False), ("odd", True)])
def test_a_run_is_what_the_ordinary_loop_makes_of_it(backend, name, labels):
    start = Stack(STRUCTURES[name], RUNS, torch.float64, labels=labels, samples=45)
    done = copy.deepcopy(start).train(epochs=3)
    for n in range(len(RUNS)):
        weights, losses = ordinary_loop(start, n, 3, 16)
        assert close(done.weights[None, n], weights[None], 1e-10), RUNS[n]
        assert done.losses[n].tolist() == pytest.approx(losses, rel=1e-10, abs=1e-12), RUNS[n]


LONG = {
    "l1": RunSettings(seed=3, activation="tanh", last="tanh", penalty="l1", lam=1e-4),
    "prox": RunSettings(seed=4, activation="relu", last="identity", optimizer="prox", lam=1e-4),
    "adam": RunSettings(seed=5, activation="tanh", last="identity", optimizer="adam", lr=1e-3, beta1=0.99, beta2=0.99999),
}


@pytest.mark.parametrize(("name", "dtype", "run", "relative"), [
    ("mlp", torch.float64, "l1", 1e-10), ("mlp", torch.float32, "prox", 1e-5), ("conv", torch.float64, "prox", 1e-10),
    ("conv", torch.float32, "l1", 1e-5), ("mlp", torch.float32, "adam", 1e-5), ("conv", torch.float32, "adam", 1e-5),
])  # fmt: skip
def test_after_a_thousand_steps_a_run_is_where_the_ordinary_loop_is(kernels, name, dtype, run, relative):
    start = Stack(STRUCTURES[name], [LONG[run]], dtype, samples=320)
    done = copy.deepcopy(start).train(epochs=50)
    weights, losses = ordinary_loop(start, 0, 50, 16)
    assert close(done.weights, weights[None], relative)
    assert done.losses[0].tolist() == pytest.approx(losses, rel=relative)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "samples", "batch_size", "labels"), [
    ("mlp", 50, 16, False), ("mlp", 13, 5, True), ("deep", 90, 40, False), ("conv", 70, 33, False), ("odd", 9, 16, True),
    ("odd", 20, 1, False), ("wide", 50, 24, False),
])  # fmt: skip
def test_kernels_equal_the_definition(kernels, device, name, samples, batch_size, labels, dtype):
    found = []
    for which in ("reference", "compiled"):
        with use_backend(which):
            stack = Stack(STRUCTURES[name], [*RUNS, CLIPPED], dtype, samples=samples, labels=labels, device=device)
            found.append(stack.train(1, batch_size).results())
    for expected, got in zip(*found, strict=True):
        assert close(got, expected, 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_bits_of_a_run_do_not_depend_on_its_company(kernels, device, name, dtype):
    layers = STRUCTURES[name]
    many = [run._replace(seed=100 * k + n) for k in range(4) for n, run in enumerate(RUNS)]
    together = Stack(layers, many, dtype, device=device).train()
    for n in (0, 11, 23, 36, 38):
        alone = Stack(layers, [many[n]], dtype, device=device).train(cut=3)
        assert torch.equal(alone.weights[0], together.weights[n]), many[n]
        assert torch.equal(alone.losses[0], together.losses[n]), many[n]
        rows = many[n].state_rows
        assert torch.equal(alone.state[0, :rows], together.state[n, :rows]), many[n]
    order = torch.randperm(len(many))
    shuffled = Stack(layers, [many[n] for n in order], dtype, device=device).train()
    assert torch.equal(shuffled.weights, together.weights[order.to(device)])


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_threads_do_not_change_bits(kernels, name):
    many = [run._replace(seed=100 * k + n) for k in range(4) for n, run in enumerate(RUNS)]
    one = Stack(STRUCTURES[name], many, torch.float32).train(1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        four = Stack(STRUCTURES[name], many, torch.float32).train(1)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one.results(), four.results(), strict=True))


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_loss_of_a_large_batch_is_as_exact_as_that_of_a_small_one(kernels, device, name):
    runs = [RunSettings(seed=n, lr=0.0, last="identity") for n in range(3)]
    found = [Stack(STRUCTURES[name], runs, dtype, samples=150_001, device=device) for dtype in (torch.float64, torch.float32)]
    exact, rounded = (stack.train(1, batch_size=150_001).losses[:, 0] for stack in found)
    assert torch.allclose(rounded, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_only_active_runs_move_and_a_diverged_one_disturbs_none(backend, name):
    runs = [RunSettings(seed=n, activation="relu", last="identity") for n in range(4)]
    runs[2] = runs[2]._replace(lr=1e30)
    stack = Stack(STRUCTURES[name], runs, torch.float32)
    before = copy.deepcopy(stack)
    stack.train(active=torch.tensor([3, 0, 2]))
    assert not stack.losses[2].isfinite().all()
    for kept, start in zip(stack.results(), before.results(), strict=True):
        assert torch.equal(kept[1], start[1])
    for n in (0, 3):
        alone = Stack(STRUCTURES[name], [runs[n]], torch.float32).train()
        assert torch.equal(stack.weights[n], alone.weights[0])
        assert stack.losses[n].isfinite().all()


def test_nothing_to_do_changes_nothing(backend):
    stack = Stack(CONV, RUNS[:2], torch.float32)
    before = copy.deepcopy(stack)
    tables = stacked_tables(stack.runs)
    given = (stack.weights, stack.state, stack.losses, stack.x, stack.y, *tables, CONV)
    stacked_steps_(*given, batch_size=16, epoch=0, first=2, steps=0)
    stacked_steps_(*given, batch_size=16, epoch=0, active=torch.empty(0, dtype=torch.int64))
    Stack(CONV, [], torch.float32).train()
    Stack(CONV, RUNS[:2], torch.float32, samples=0).train()
    for kept, start in zip(stack.results(), before.results(), strict=True):
        assert torch.equal(kept, start)


def test_exact_zeros_of_the_proximal_step_stay(backend):
    stack = Stack(CONV, [RunSettings(optimizer="prox", lam=0.5, lr=0.05, activation="tanh", last="tanh")], torch.float32)
    stack.train(epochs=8)
    assert (stack.weights == 0).all()


def broken(**changes):
    """The arguments of a call, with some of them wrong."""
    stack = Stack(CONV, RUNS[:2], torch.float32)
    names = ("weights", "state", "losses", "x", "y", "codes", "rates", "layers")
    given = dict(zip(names, (*stack.results(), stack.x, stack.y, *stacked_tables(stack.runs), CONV), strict=True))
    return {**given, "batch_size": 16, "epoch": 0, **changes}


@pytest.mark.parametrize(("changes", "message"), [
    ({"weights": torch.zeros(2, 55, dtype=torch.float16)}, r"weights have dtype torch.float16; they take float32 or float64"),
    ({"weights": torch.zeros(2, 9)}, r"weights is \(2, 9\), torch.float32; it takes \(2, "),
    ({"losses": torch.zeros(2, 2)}, r"losses is \(2, 2\), torch.float32; it takes \(2, 2\), torch.float64"),
    ({"y": torch.full((2, 53), 1)}, r"y has labels 1 to 1; it takes 0 to 0"),
    ({"layers": [PatchLayer(12, 4), PatchLayer(5, 1)]}, r"layer 1 takes 5 numbers, but layer 0 gives 4"),
    ({"layers": []}, r"layers is empty"),
    ({"layers": [PatchLayer(12, 0)]}, r"layer 0 is .*; its sizes are 1 or more"),
    ({"batch_size": 0}, r"batch_size is 0; it takes 1 or more"),
    ({"epoch": -1}, r"epoch is -1"),
    ({"first": 3, "steps": 2}, r"first is 3 and steps 2; the epoch has 4 steps"),
    ({"active": torch.tensor([0, 0])}, r"active is \[0, 0\]; it takes runs from 0 to 1, none twice"),
    ({"active": torch.tensor([2])}, r"active is \[2\]"),
    ({"active": torch.arange(2).repeat(2)[::2]}, "it takes numbers of runs, int64, contiguous"),
    ({"codes": torch.zeros(2, 6, dtype=torch.int64)}, r"codes is \(2, 6\)"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(backend, changes, message):
    given = broken(**changes)
    before = {name: given[name].clone() for name in ("weights", "state", "losses")}
    with pytest.raises(ValueError, match=message):
        stacked_steps_(**given)
    assert all(torch.equal(given[name], value) for name, value in before.items())


def test_an_operator_needs_its_rows_and_its_data():
    with pytest.raises(ValueError, match="state has 1 rows for a run; an optimizer here keeps 2"):
        stacked_steps_(**broken(codes=stacked_tables([RunSettings(optimizer="adam")] * 2)[0]))
    with pytest.raises(ValueError, match="a run learns data set 2; x has 2"):
        stacked_steps_(**broken(codes=stacked_tables([RunSettings(data=2)] * 2)[0]))


@pytest.mark.parametrize(("settings", "message"), [
    ({"activation": "swish"}, "run 1: activation is 'swish'; it takes 'identity', 'relu', 'tanh', 'sigmoid', 'gelu'"),
    ({"optimizer": "lion"}, "run 1: optimizer is 'lion'"),
    ({"momentum": 1.0}, "run 1: momentum is 1.0; it takes 0 <= momentum < 1"),
    ({"lam": float("nan")}, "run 1: lam is nan"),
    ({"weight_decay": float("inf")}, "run 1: weight_decay is inf; it takes a finite number, 0 or more"),
    ({"depth": 9}, "run 1: depth is 9; it takes 1 to 8"),
    ({"optimizer": "prox", "penalty": "l1"}, "run 1: penalty is 'l1'; it takes 'none' with optimizer 'prox'"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        stacked_tables([RunSettings(), RunSettings(**settings)])


def test_the_operator_itself_refuses_what_it_could_not_survive(kernels):
    given = list(broken().values())[:7]
    flat = [n for layer in CONV for n in (layer[0], layer[2], layer[1], *layer[3:])]
    codes = given[5].clone()
    active = torch.arange(2)
    for column, value in itertools.product(range(1, 6), (-1, 99)):
        wrong = codes.clone()
        wrong[1, column] = value
        with pytest.raises(RuntimeError, match="stacked_steps_"):
            torch.ops.sparsenn.stacked_steps_(*given[:5], wrong, given[6], active, flat, 16, 0, 0, 1)
    for wrong_flat, first in ((flat[:-1], 0), ([*flat[:3], 13, *flat[4:]], 0), (flat, 4)):
        with pytest.raises(RuntimeError, match="stacked_steps_"):
            torch.ops.sparsenn.stacked_steps_(*given[:7], active, wrong_flat, 16, 0, first, 1)
    for batch, first, steps in ((2**62, 4, 1), (16, 2**63 - 1, 1), (16, 3, 2)):  # also where a product is beyond int64
        epoch = f"first is {first} and steps {steps}; the epoch has {-(-53 // batch)} steps"
        with pytest.raises(RuntimeError, match=epoch):
            torch.ops.sparsenn.stacked_steps_(*given[:7], active, flat, batch, 0, first, steps)
    for at, wrong, message in (
        (1, given[1].double(), r"state is float64 \(2, .*\); it takes a contiguous float32 \(2, \*, "),
        (5, codes.t().contiguous().t(), r"codes is a strided int64 \(2, 7\); it takes a contiguous int64 \(2, 7\) on the CPU"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.sparsenn.stacked_steps_(*given[:at], wrong, *given[at + 1 : 7], active, flat, 16, 0, 0, 1)
