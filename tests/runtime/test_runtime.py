"""The runtime computes what PyTorch computes in float64, to 1e-5 of the largest output, for every layer and any batch."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

import sparsenn
from sparsenn import runtime
from sparsenn.runtime import ArtefactError
from sparsenn.runtime import costs as machine

pytest.importorskip("sparsenn._native", reason="the NumPy module is not built")
BATCHES = (0, 1, 2, 8, 13, 17, 64, 65, 130)


@pytest.fixture(autouse=True, scope="module")
def _fixed_costs():
    """The same choices on every machine, and no measurement."""
    before = machine._known
    machine._known = machine.Costs(
        row=1e-9,
        nonzero=3e-10,
        weight=(6e-11, 1.5e-10, 1.2e-9),
        panel_row=(1e-9, 2e-9, 2e-9, 3e-9),
        panel_nonzero=((5e-10, 5e-10, 6e-10), (7e-10, 8e-10, 1e-9), (1e-9, 1.2e-9, 1.4e-9), (2e-9, 2.3e-9, 2.7e-9)),
        panel_weight=(4e-10, 6e-10, 1.2e-9),
        alone=6e-8,
        turn=1e-10,
    )
    yield
    machine._known = before


def sparse_(net: nn.Module, density: float = 0.15) -> nn.Module:
    """Random zeros, some whole rows and columns, and normalization that has seen data."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                w = module.weight
                w.mul_(torch.rand_like(w) < density)
                w[:: max(3, len(w) // 4)] = 0
                w[:, 1::5] = 0
                if module.bias is not None:
                    module.bias.normal_()
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.normal_()
                    module.bias.normal_()
    return net.eval()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.before, self.relu = nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x):
        rectified = self.relu(self.before(x))
        return self.relu(self.bn(self.a(rectified)) + x) + rectified


class Skip(nn.Module):
    """What it adds to is read twice, and one column of its weights is 0."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        layer.weight.data[:, 1] = 0

    def forward(self, x):
        return torch.relu(self.layer(x)) + x


def gate(features, dim=1):
    """Of both signs, and one is closed."""
    made = sparsenn.nn.SpectralGate(features, dim, init=nn.init.normal_)
    made.lambda_out.data[1] = 0
    return made


NETS = {
    "linear": ((20,), lambda: nn.Sequential(nn.Linear(20, 7))),
    "wide": ((1200,), lambda: nn.Sequential(nn.Linear(1200, 33, bias=False), nn.ReLU(), nn.Linear(33, 50))),
    "mlp": (
        (1, 9, 9),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(81, 40), nn.ReLU(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 5)),
    ),
    "curves": (
        (6,),
        lambda: nn.Sequential(
            nn.Linear(6, 9),
            nn.Sigmoid(),
            nn.Linear(9, 9),
            nn.GELU(),
            nn.Linear(9, 9),
            nn.GELU("tanh"),
            nn.Linear(9, 4),
            nn.Softmax(-1),
        ),
    ),
    "norms": (
        (11,),
        lambda: nn.Sequential(
            nn.BatchNorm1d(11),
            nn.Linear(11, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(8, 3),
            nn.BatchNorm1d(3, affine=False),
        ),
    ),
    "conv2d": (
        (3, 8, 11),
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, (1, 3), padding=(0, 2)), nn.MaxPool2d(2)),
    ),
    "strides": (
        (2, 13, 9),
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, (3, 5), stride=(2, 3), padding=(1, 2)),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 3, 3, dilation=(2, 1), padding=2),
        ),
    ),
    "groups": (
        (4, 7, 7),
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.Tanh()),
    ),
    "conv1d": (
        (3, 25),
        lambda: nn.Sequential(
            nn.Conv1d(3, 6, 5, stride=2, padding=3),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.AvgPool1d(3, 2, 1),
            nn.Flatten(),
            nn.Linear(42, 4),
        ),
    ),
    "pools": (
        (2, 9, 10),
        lambda: nn.Sequential(
            nn.MaxPool2d(3, 2, 1),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Conv2d(2, 2, 1),
            nn.AdaptiveAvgPool2d((2, 3)),
            nn.AdaptiveMaxPool2d(2),
            nn.AvgPool2d(2, 1, 1, count_include_pad=False),
        ),
    ),
    "gates": (
        (5,),
        lambda: nn.Sequential(
            gate(5),
            nn.Linear(5, 7),
            gate(7, dim=-1),
            nn.ReLU(),
            gate(7),
            nn.Linear(7, 6),
            gate(6),
            nn.BatchNorm1d(6),
        ),
    ),
    "gates of images": (
        (3, 6, 7),
        lambda: nn.Sequential(
            gate(3), nn.Conv2d(3, 4, 3), gate(4), nn.ReLU(), gate(4, dim=-3), nn.MaxPool2d(2), gate(4), nn.Flatten(), gate(16)
        ),
    ),
    "gates of sequences": (
        (3, 8),
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), gate(4, dim=-2), nn.Conv1d(4, 2, 3, groups=2), gate(2), nn.Tanh()),
    ),
    "global": ((3, 6, 5), lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))),
    "softmax": ((3, 4, 4), lambda: nn.Sequential(nn.Conv2d(3, 5, 2), nn.Softmax(1))),
    "residual": ((3, 6, 7), Residual),
    "skip": ((2, 3, 4), lambda: nn.Sequential(nn.Flatten(), Skip(nn.Linear(24, 24)), nn.Linear(24, 3))),
    "skip of flat": ((24,), lambda: nn.Sequential(nn.Flatten(), Skip(nn.Linear(24, 24)))),
    "skip of a pixel": ((8, 1, 1), lambda: nn.Sequential(Skip(nn.Conv2d(8, 8, 1)))),
    "a pixel in its border": ((6, 1, 1), lambda: nn.Sequential(nn.Conv2d(6, 6, 1, stride=3, padding=1))),
    "two pixels in theirs": ((6, 2), lambda: nn.Sequential(nn.Conv1d(6, 6, 1, stride=9, padding=1), nn.Conv1d(6, 3, 1))),
    "ridge": ((40,), lambda: sparsenn.nn.RidgeNet(40, 3, width=4, functional_width=5)),  # its first layer reads few inputs
    "lenet5": ((1, 14, 14), lambda: sparsenn.models.lenet5(image_size=14)),
    "vgg16": ((3, 8, 8), lambda: nn.Sequential(*list(sparsenn.models.vgg16(image_size=8))[:10])),
    "nothing": ((3,), lambda: nn.Sequential(nn.Identity())),
    "flat": ((2, 3), lambda: nn.Sequential(nn.Flatten())),
}


@pytest.mark.parametrize("kernels", ["auto", "sparse", "dense"])
@pytest.mark.parametrize("name", NETS)
def test_every_layer_equals_pytorch_in_float64(name, kernels, tmp_path):
    sample, build = NETS[name]
    net = sparse_(build())
    model = runtime.load(sparsenn.save(net, tmp_path / "net"), kernels=kernels)
    exact = copy.deepcopy(net).double()
    for count in BATCHES:
        x = torch.randn(count, *sample)
        found = model(x.numpy())
        expected = exact(x.double()).detach().numpy()
        assert found.shape == expected.shape
        assert found.dtype == np.float32
        assert np.abs(found - expected).max(initial=0) <= 1e-5 * np.abs(expected).max(initial=0)


@pytest.mark.parametrize("name", ["resnet-18", "wide-resnet-16-8"])
def test_residual_networks_equal_pytorch(name, tmp_path):
    net = sparse_(sparsenn.models.build(name, in_channels=3, image_size=8), 0.02)
    model = runtime.load(sparsenn.save(net, tmp_path / "net"))
    x = torch.randn(3, 3, 8, 8)
    expected = net.double()(x.double()).detach().numpy()
    for part in (slice(0, 1), slice(0, 3)):
        assert np.abs(model(x[part].numpy()) - expected[part]).max() <= 1e-5 * np.abs(expected).max()


def test_any_strides_and_any_shape_with_as_many_features(tmp_path):
    net = sparse_(NETS["mlp"][1]())
    model = runtime.load(sparsenn.save(net, tmp_path / "net"))
    x = np.random.default_rng(0).standard_normal((9, 9, 1, 5)).astype(np.float32)
    for own in (
        x.transpose(3, 2, 0, 1),
        np.ascontiguousarray(x.transpose(3, 2, 0, 1)).reshape(5, 81),
        x.transpose(3, 2, 1, 0)[::-1],
    ):
        expected = net(torch.from_numpy(own.copy())).detach().numpy()
        assert np.allclose(model(own), expected, atol=1e-5)


@pytest.mark.parametrize("kernels", ["sparse", "dense"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_what_is_not_finite_reaches_every_output_of_its_sample_and_no_other(name, bad, kernels, tmp_path):
    sample, build = NETS[name]
    net = sparse_(build())
    model = runtime.load(sparsenn.save(net, tmp_path / "net"), kernels=kernels)
    for count in (1, 2, 70):
        x = np.random.default_rng(0).standard_normal((count, *sample)).astype(np.float32)
        good = model(x)
        x[-1].flat[0] = bad  # which no weight may read
        found = model(x)
        assert np.isnan(found[-1]).all()
        assert np.array_equal(found[:-1], good[:-1]) or np.allclose(found[:-1], good[:-1], rtol=1e-5)
        assert not np.isfinite(net(torch.from_numpy(x)).detach().numpy()[-1]).any() or name == "lenet5"


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh")], ids=str)
def test_a_constant_unit_that_is_nan_stays_it(between, tmp_path):
    net = nn.Sequential(nn.Linear(4, 3), between, nn.Linear(3, 2))
    net[0].weight.data[1] = 0
    net[0].bias.data[1] = torch.nan
    found = runtime.load(sparsenn.save(net, tmp_path / "net"))(np.ones((2, 4), np.float32))
    assert np.isnan(found).all()


def test_relu_and_maxima_keep_nan_of_the_weights(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    net[0].weight.data[1] = torch.nan
    x = torch.randn(3, 1, 4, 4)
    found = runtime.load(sparsenn.save(net, tmp_path / "net"))(x.numpy())
    assert np.array_equal(np.isnan(found), net(x).isnan().numpy())


@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        ([[1.0] * 20], TypeError, "x is list; the runtime takes a NumPy array of float32"),
        (np.zeros((2, 20)), TypeError, "x is an array of float64; the runtime takes float32"),
        (np.zeros(20, np.float32), ValueError, "x has shape (20,); the runtime takes a batch"),
        (
            np.zeros((2, 21), np.float32),
            ValueError,
            "x has shape (N, 21), for which the layer '0' takes 20 features and gets (N, 21)",
        ),
        (np.zeros((2, 4, 5), np.float32), ValueError, "the layer '0' takes 2 dimensions"),
        (np.zeros((2, 1, 1, 4, 5), np.float32), ValueError, "has 5 dimensions with the batch; the runtime takes 2 to 4"),
        (np.zeros((0, 0), np.float32), ValueError, "has 0 numbers a sample"),
        (torch.zeros(2, 20), TypeError, "x is Tensor"),
    ],
    ids=range(8),
)
def test_wrong_inputs_are_sentences(x, error, sentence, tmp_path):
    model = runtime.load(sparsenn.save(nn.Linear(20, 3), tmp_path / "net"))
    for _ in range(2):  # before and after a good call
        with pytest.raises(error) as caught:
            model(x)
        assert sentence in str(caught.value)
        model(np.zeros((1, 20), np.float32))


def misaligned(x: np.ndarray) -> np.ndarray:
    """The same numbers, one byte beside where they should lie."""
    found = np.frombuffer(b"\0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)
    assert not found.flags.aligned
    assert found.flags.c_contiguous
    return found


def test_misaligned_arrays_are_copied(tmp_path):
    from sparsenn import _native

    model = runtime.load(sparsenn.save(nn.Linear(20, 3), tmp_path / "net"))
    x = torch.randn(5, 20).numpy()
    expected = model(x)
    assert np.array_equal(model(misaligned(x)), expected)
    network = _native.Network(20, 1, 1)
    network.product(0, [0, 1], [0], misaligned(np.array([2.0], np.float32)), [1.0], [1, 1, 1, 1, 0, 0, 1, 1], False, [0] * 3)
    network.finish([0, 20], [0, 1], [1.0] * 3, [1.0] * 4, 1)
    assert network.run(misaligned(x)) is None  # which sparsenn.runtime sees to
    assert np.array_equal(network.run(x)[:, 0], 2 * x[:, 0] + 1)
    assert np.array_equal(_native.hadamard_product([misaligned(x), x]), x * x)


def test_a_curve_that_is_none_is_refused():
    from sparsenn import _native

    with pytest.raises(ValueError, match="curve is 'swish'; it takes tanh, sigmoid, gelu or gelu_tanh"):
        _native.Network(20, 1, 1).curve(0, "swish")


def test_wrong_arguments_and_files_are_sentences(tmp_path):
    path = sparsenn.save(nn.Linear(20, 3), tmp_path / "net")
    with pytest.raises(ValueError, match="kernels is 'fast'; it takes one of auto, sparse, dense"):
        runtime.load(path, kernels="fast")
    with pytest.raises(ValueError, match="threads is 0; it takes a whole number from 1"):
        runtime.load(path, threads=0)
    with pytest.raises(ArtefactError, match="it holds tensors and no architecture"):
        runtime.load(sparsenn.save(nn.Linear(20, 3), path, architecture=False))
    net = sparsenn.save(nn.Sequential(nn.Linear(4, 3), nn.Softmax(0)), path)
    with pytest.raises(ArtefactError, match="a softmax over dimension 0"):
        runtime.load(net)(np.zeros((1, 4), np.float32))
    net = sparsenn.save(nn.Sequential(nn.Conv2d(2, 3, 1), gate(5, dim=-1)), path, example_input=torch.ones(1, 2, 4, 5))
    with pytest.raises(ArtefactError, match="'1' is a gate over dimension -1; the runtime takes dimension 1"):
        runtime.load(net)(np.zeros((1, 2, 4, 5), np.float32))
    net = sparsenn.save(nn.Sequential(nn.Linear(4, 4), gate(4)), path)
    with pytest.raises(ValueError, match="takes 4 features"):
        runtime.load(net)(np.zeros((1, 5), np.float32))


def test_closed_gates_leave_no_weights(tmp_path):
    net = nn.Sequential(nn.Linear(6, 8), gate(8), nn.ReLU(), nn.Linear(8, 3))
    net[1].lambda_out.data[2:] = 0
    first, second = runtime.load(sparsenn.save(net, tmp_path / "net")).choices(6)
    assert (first.rows, first.nonzeros, second.columns) == (1, 6, 1)


def test_units_that_are_constant_or_unread_are_not_computed(tmp_path):
    net = sparse_(NETS["mlp"][1]())
    with torch.no_grad():
        net[1].weight[10:] = 0
        net[3].weight[:, 5] = 0
    model = runtime.load(sparsenn.save(net, tmp_path / "net"))
    alive = ((net[1].weight != 0).any(1) & (net[3].weight != 0).any(0)).sum().item()
    first, second, _ = model.choices(1, 9, 9)
    assert first.rows == alive <= 9
    assert second.nonzeros == int((net[3].weight[:, (net[1].weight != 0).any(1)] != 0).any(1).sum()) or second.columns <= alive


def test_the_choice_follows_the_costs_and_is_said(tmp_path):
    net = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 100)).eval()
    net[0].weight.data[torch.rand(200, 300) < 0.99] = 0
    net[0].weight.data[:, 7] = 1  # no neuron is dead
    model = runtime.load(sparsenn.save(net, tmp_path / "net"))
    assert "not run yet" in str(model)
    found = [(c.layer, c.one, c.few, c.batch) for c in model.choices(300)]
    assert found == [("0", "sparse", "sparse", "sparse"), ("2", "dense", "dense", "dense")]
    assert "300" in str(model)
    assert "sparse" in str(model)


def test_threads_of_ours_and_of_python_give_the_same_bits(tmp_path):
    net = sparse_(sparsenn.models.lenet_300_100(), 0.05)
    path = sparsenn.save(net, tmp_path / "net")
    one, three = runtime.load(path), runtime.load(path, threads=3)
    x = np.random.default_rng(0).standard_normal((1000, 784)).astype(np.float32)
    expected = one(x)
    assert np.array_equal(three(x), expected)
    found: list = [None] * 4

    def work(i):
        found[i] = [one(x) for _ in range(5)]

    crew = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert all(np.array_equal(y, expected) for own in found for y in own)


def test_threads_share_the_plans_of_many_shapes(tmp_path):
    net = nn.Sequential(nn.Conv1d(1, 2, 3)).eval()
    model = runtime.load(sparsenn.save(net, tmp_path / "net"))
    inputs = {length: torch.randn(2, 1, length) for length in range(3, 40)}
    expected = {length: net(x).detach().numpy() for length, x in inputs.items()}
    wrong: list[object] = []

    def call(seed):
        try:
            for length in np.random.default_rng(seed).integers(3, 40, 200):
                if not np.allclose(model(inputs[int(length)].numpy()), expected[int(length)], atol=1e-6):
                    wrong.append(length)
                model.choices()
        except Exception as error:
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        crew = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_it_runs_without_torch(tmp_path):
    path = sparsenn.save(sparse_(NETS["lenet5"][1]()), tmp_path / "net")
    code = (
        "import sys; sys.modules['torch'] = None; import numpy as np; from sparsenn import runtime; "
        f"print(runtime.load({str(path)!r})(np.ones((2, 1, 14, 14), np.float32)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=cached(tmp_path))
    assert done.stdout.strip() == "(2, 10)"


def cached(folder) -> dict[str, str]:
    import os

    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}


def test_costs_are_measured_once_and_a_cache_that_fails_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_known", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = machine.costs()
    assert machine._read(machine.cache_file()) == found
    monkeypatch.setattr(machine, "measure", lambda: pytest.fail("measured twice"))
    monkeypatch.setattr(machine, "_known", None)
    assert machine.costs() == found
    for damaged in ("", "[]", "{}", json.dumps({**json.loads(machine.cache_file().read_text()), "turn": -1})):
        machine.cache_file().write_text(damaged)
        assert machine._read(machine.cache_file()) is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(machine, "_known", None)
    monkeypatch.setattr(machine, "measure", lambda: found)
    assert machine.costs() == found
