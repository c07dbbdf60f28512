"""What is saved comes back to the bit, in few bytes, or is refused in a sentence."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import sparsenn
from sparsenn.runtime import ArtefactError
from sparsenn.runtime.container import read
from sparsenn.runtime.storage import Array, cast, encode


def sparse_(net: nn.Module, compression: float) -> nn.Module:
    """Leaves the largest weights and biases of the whole net."""
    own = list(net.parameters())
    magnitudes = torch.cat([p.detach().abs().flatten() for p in own])
    least = magnitudes.topk(int(magnitudes.numel() / compression)).values[-1]
    with torch.no_grad():
        for p in own:
            p[p.abs() < least] = 0
    return net.eval()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert tensor.shape == right[name].shape, name
        assert torch.equal(bits(tensor), bits(right[name])), name


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5", "resnet-18"])
def test_networks_come_back_to_the_bit_and_compute_the_same(name, tmp_path):
    channels, size = (1, 28) if "lenet" in name else (3, 8)
    net = sparse_(sparsenn.models.build(name, in_channels=channels, image_size=size), 30)
    again = sparsenn.load(sparsenn.save(net, tmp_path / "net"))
    assert_same_bits(net, again)
    x = torch.randn(2, channels, size, size)
    assert torch.equal(again(x), net(x))
    assert not again.training
    assert_same_bits(again, sparsenn.load(sparsenn.save(again, tmp_path / "twice")))


@pytest.mark.parametrize(("compression", "most"), [(100, 16_000), (500, 5_000)])
def test_files_of_lenet_are_small_in_float32(compression, most, tmp_path):
    net = sparse_(sparsenn.models.lenet_300_100(), compression)
    assert sparsenn.save(net, tmp_path / "net").stat().st_size <= most
    for p in net.parameters():  # spread evenly instead of where the largest are
        p.data = torch.where(torch.rand(p.shape) < 1 / compression, torch.randn(p.shape), 0.0)
    assert sparsenn.save(net, tmp_path / "net").stat().st_size <= most


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL"])
@pytest.mark.parametrize("density", [0.0, 1e-3, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (37, 61), (3, 0, 5), (2, 3000), (400, 2, 3, 3)])
def test_every_form_gives_back_every_bit(shape, density, dtype):
    rng = np.random.default_rng(int(density * 1000) + len(shape))
    array = Array("F64", np.where(rng.random(shape) < density, rng.standard_normal(shape), 0.0).reshape(-1))
    if dtype in ("F32", "F16", "BF16"):
        array = cast(array, dtype)
    elif dtype != "F64":
        array = Array(dtype, (array.data * 100).astype({"I64": "<i8", "U8": "u1", "BOOL": "?"}[dtype]))
    stored = encode(array, shape, dtype)
    stored.check("x")
    assert np.array_equal(stored.dense().reshape(-1).view(np.uint8), array.data.view(np.uint8))
    assert stored.nbytes <= array.data.nbytes + 8


def test_each_form_is_taken_where_it_is_the_shortest():
    def how(shape, at):
        data = np.zeros(shape, np.float32)
        data[at] = 1
        return encode(Array("F32", data.reshape(-1)), shape, "F32").how

    assert how((300, 784), np.s_[:]) == "dense"
    assert how((300, 784), np.s_[:, ::3]) == "bitmask"
    assert how((300, 784), np.s_[:, ::80]) == "gaps8"
    assert how((4, 60_000), np.s_[:, ::1200]) == "csr16"
    assert how((4, 600_000), np.s_[:, ::1500]) == "csr32"


def test_infinities_subnormals_and_the_bits_of_nan_come_back(tmp_path):
    net = nn.Linear(40, 3)
    with torch.no_grad():
        net.weight.zero_()
        net.weight[1, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-45])
        net.weight.view(torch.int32)[2, 0] = 0x7FC12345
    again = sparsenn.load(sparsenn.save(net, tmp_path / "net"))
    assert torch.equal(bits(again.get_parameter("0.weight")), bits(net.weight))


@pytest.mark.parametrize("values", [None, "float16", "bfloat16"])
def test_zeros_of_either_sign_take_no_room(values, tmp_path):
    net = nn.Linear(50, 40)
    with torch.no_grad():
        net.weight.mul_(torch.rand_like(net.weight) < 0.05)  # a mask makes −0.0 of negative weights
    path = sparsenn.save(net, tmp_path / "net", values=values)
    stored = read(path).tensors["0.weight"]
    assert stored.nonzeros == int(net.weight.count_nonzero())
    again = sparsenn.load(path).get_parameter("0.weight")
    assert torch.equal(again != 0, net.weight != 0)
    assert torch.equal(again, net.weight) or values


@pytest.mark.parametrize(("values", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_half_values_are_pytorch_s_rounding_of_matrices_alone(values, dtype, tmp_path):
    net = sparse_(nn.Sequential(nn.Linear(50, 40), nn.BatchNorm1d(40)), 2)
    again = sparsenn.load(sparsenn.save(net, tmp_path / "net", values=values))
    assert torch.equal(again.get_parameter("0.weight"), net[0].weight.to(dtype).float())
    assert torch.equal(again.get_parameter("0.bias"), net[0].bias)
    assert torch.equal(again.get_buffer("1.running_var"), net[1].running_var)


def test_rounding_to_bfloat16_is_pytorch_s_for_every_kind_of_number():
    x = torch.randint(-(2**31), 2**31 - 1, (20_000,), dtype=torch.int32)
    x[:6] = torch.tensor([0x7F7FFFFF, 0x7FFFFFFF, 0x7F800000, 0x00008000, 0x00018000, 0x7F800001])
    ours = cast(Array("F32", x.numpy().view(np.float32)), "BF16").data
    theirs = x.view(torch.float32).to(torch.bfloat16)
    nan = theirs.isnan().numpy()
    assert np.array_equal(ours[~nan], theirs.view(torch.int16).numpy().view(np.uint16)[~nan])
    assert torch.from_numpy(ours.view(np.int16)).view(torch.bfloat16).isnan().numpy()[nan].all()


def test_half_values_out_of_range_are_refused(tmp_path):
    net = nn.Linear(2, 2)
    net.weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"0\.weight has values beyond the range of F16"):
        sparsenn.save(net, tmp_path / "net", values="float16")
    assert list(tmp_path.iterdir()) == []


def test_factors_spectra_indices_and_parametrizations_are_multiplied_out(tmp_path):
    def body():
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()

    x = torch.randn(3, 6)
    dead = body()
    dead[0].weight.data[:, 2] = 0
    for net in (
        sparsenn.factorize(body(), 3),
        sparsenn.spectralize(body()),
        nn.utils.parametrizations.weight_norm(body()[0]),
        sparsenn.prune.compact(dead, x),
    ):
        before = copy.deepcopy(net.state_dict())
        again = sparsenn.load(sparsenn.save(net, tmp_path / "net"))
        torch.testing.assert_close(again(x), net(x))
        assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
        assert "factor" not in " ".join(again.state_dict())


@pytest.mark.parametrize(
    ("sample", "layers"),
    [
        ((4,), lambda: (nn.Linear(4, 5), sparsenn.nn.SpectralGate(5, -1), nn.Sigmoid())),
        ((2, 5), lambda: (nn.Conv1d(2, 3, 2), sparsenn.nn.SpectralGate(3), nn.ReLU(), sparsenn.nn.SpectralGate(4, 2))),
        ((2, 5, 6), lambda: (sparsenn.nn.SpectralGate(2), nn.Conv2d(2, 3, 2), nn.ReLU(), sparsenn.nn.SpectralGate(3, -3))),
    ],
)
@pytest.mark.parametrize("factors", [False, True])
def test_gates_come_back_as_gates(sample, layers, factors, tmp_path):
    net, x = nn.Sequential(*layers()).eval(), torch.randn(3, *sample)
    for p in net.parameters():
        p.data.normal_()
    if factors:
        sparsenn.factorize(net, 2)
    path = sparsenn.save(net, tmp_path / "net", example_input=x)
    again, into = sparsenn.load(path), nn.Sequential(*layers()).eval()
    assert_same_bits(again, sparsenn.load(path, into=into))
    with torch.no_grad():
        torch.testing.assert_close(again(x), net(x))
        assert torch.equal(into(x), again(x))


def test_a_model_without_values_takes_none(tmp_path):
    path = sparsenn.save(nn.Sequential(nn.Linear(3, 2)), tmp_path / "net")
    with pytest.raises(ValueError, match="meta device"):
        sparsenn.load(path, into=nn.Sequential(nn.Linear(3, 2, device="meta")))


def test_loading_into_another_model_is_refused_and_leaves_it(tmp_path):
    path = sparsenn.save(nn.Sequential(nn.Linear(3, 2)), tmp_path / "net")
    for other, sentence in (
        (nn.Linear(3, 2), "lacks"),
        (nn.Sequential(nn.Linear(4, 2)), "has shape [2, 3]; the model has [2, 4]"),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ArtefactError) as caught:
            sparsenn.load(path, into=other)
        assert sentence in str(caught.value)
        assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


def test_any_reader_of_safetensors_opens_it(tmp_path):
    net = sparse_(nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 4)), 20)
    net[1].weight.data.fill_(2)
    arrays = load_file(sparsenn.save(net, tmp_path / "net", about={"run": "seven"}))
    assert np.array_equal(arrays["0.weight.values"], net[0].weight[net[0].weight != 0].detach().numpy())
    assert np.array_equal(arrays["1.weight"], net[1].weight.detach().numpy())
    assert read(tmp_path / "net").about == {"sparsenn": sparsenn.__version__, "run": "seven"}


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ArtefactError, match="cannot be written"):
        sparsenn.save(nn.Linear(2, 2), tmp_path / "nowhere" / "net")
    with pytest.raises(ValueError, match="values is 'int8'; it takes None or one of float32, float16, bfloat16"):
        sparsenn.save(nn.Linear(2, 2), tmp_path / "net", values="int8")
    with pytest.raises(ValueError, match=r"weight is torch\.complex64"):
        sparsenn.save(nn.Linear(2, 2, dtype=torch.complex64), tmp_path / "net", architecture=False)
    assert list(tmp_path.iterdir()) == []


def test_the_architecture_is_short(tmp_path):
    contents = read(sparsenn.save(sparsenn.models.lenet5(), tmp_path / "net"))
    assert contents.architecture is not None
    text = json.dumps([op.to_json() for op in contents.architecture])
    assert '["conv2d", "0", {"padding": [2, 2]}]' in text
    assert '["conv2d", "4"]' in text


@pytest.mark.parametrize(
    ("caller", "call"),
    [
        ("save", lambda tensors, path: sparsenn.save(tensors, path)),
        ("save", lambda tensors, path: sparsenn.save(tensors, path, architecture=False)),
        ("to_torch_sparse", lambda tensors, path: sparsenn.artefact.to_torch_sparse(tensors)),
        ("collapse", lambda tensors, path: sparsenn.collapse(tensors)),
        ("sparsity_report", lambda tensors, path: sparsenn.metrics.sparsity_report(tensors)),
    ],
)
def test_a_state_dict_is_no_model(caller, call, tmp_path):
    with pytest.raises(TypeError, match=f"^{caller}: model is OrderedDict; it takes a torch.nn.Module"):
        call(nn.Linear(2, 2).state_dict(), tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (nn.LSTM(3, 3), "'1' (LSTM)"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
        (nn.BatchNorm1d(3, track_running_stats=False), "it keeps no running statistics"),
        (nn.Flatten(0), "'1' (Flatten) is called in a way that is unknown"),
        (nn.Softmax(), "dim=None"),
        (nn.MaxPool2d(2, return_indices=True), "return_indices"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_is_unknown_is_named_and_its_tensors_can_still_be_stored(layer, sentence, tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), layer)
    with pytest.raises(ValueError, match=f"{re.escape(sentence)}.*architecture=False"):
        sparsenn.save(net, tmp_path / "net")
    path = sparsenn.save(net, tmp_path / "net", architecture=False)
    with pytest.raises(ArtefactError, match="it holds tensors and no architecture"):
        sparsenn.load(path)
    again = copy.deepcopy(net)
    for tensor in again.state_dict().values():
        tensor.zero_()
    assert sparsenn.load(path, into=again) is again
    assert_same_bits(net, again)
