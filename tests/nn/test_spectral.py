"""Spectral layers, against the plain layers of torch and against convolutions written out as matrices."""

import copy
import inspect
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import sparsenn
from sparsenn.nn import SpectralConv1d, SpectralConv2d, SpectralGate, SpectralLinear

PLAIN = {SpectralLinear: nn.Linear, SpectralConv1d: nn.Conv1d, SpectralConv2d: nn.Conv2d}
BOTH = {"train_lambda_in": True, "lambda_in_init": nn.init.normal_, "lambda_out_init": nn.init.normal_}
LAYERS = {
    "linear": (SpectralLinear, (6, 4), {}, (5, 6)),
    "linear-no-bias": (SpectralLinear, (6, 4, False), BOTH, (2, 5, 6)),
    "conv1d": (SpectralConv1d, (4, 6, 3), {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, **BOTH}, (2, 4, 12)),
    "conv1d-same": (SpectralConv1d, (2, 3, 3, 1, "same", 1, 1, False, "circular"), {}, (2, 2, 9)),
    "conv2d": (SpectralConv2d, (3, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "groups": 3, **BOTH}, (2, 3, 8, 7)),
    "conv2d-reflect": (SpectralConv2d, (3, 4, 3, 1, 1, 1, 1, True, "reflect"), BOTH, (2, 3, 6, 6)),
}
cases = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)


def make(case, seed=0, dtype=torch.float64, **kwargs):
    cls, args, options, shape = case
    torch.manual_seed(seed)
    layer = cls(*args, **options, dtype=dtype, **kwargs)
    return layer, torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def twin(case, layer):
    """The plain layer with the composed weight."""
    cls, args, options, _ = case
    plain = PLAIN[cls](*args, **{k: v for k, v in options.items() if k not in BOTH}, dtype=layer.phi.dtype)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain


@cases
def test_a_layer_computes_as_the_plain_layer_with_its_weight_and_obeys_the_chain_rule(backend, case):
    layer, x = make(case)
    plain = twin(case, layer)
    torch.testing.assert_close(layer(x), plain(x))
    layer(x).sin().sum().backward()
    plain(x).sin().sum().backward()
    g, ones = plain.weight.grad, (1,) * (layer.phi.dim() - 2)
    start = 0 if layer.lambda_in is None else layer.lambda_in.view(1, -1, *ones)
    end = layer.lambda_out.view(-1, 1, *ones)
    torch.testing.assert_close(layer.phi.grad, g * (start - end))
    torch.testing.assert_close(layer.lambda_out.grad, -(g * layer.phi).flatten(1).sum(1))
    if layer.lambda_in is not None:
        torch.testing.assert_close(layer.lambda_in.grad, (g * layer.phi).transpose(0, 1).flatten(1).sum(1))
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


def toeplitz(weight, size, stride, padding, dilation, groups):
    """The matrix of a convolution in one dimension or two, entry by entry: from flat inputs to flat outputs."""
    out_channels, per_group, *kernel = weight.shape
    in_channels = per_group * groups
    outputs = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    matrix = torch.zeros(out_channels * math.prod(outputs), in_channels * math.prod(size), dtype=weight.dtype)
    grids = [torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(size)).tolist() for shape in (outputs, kernel)]
    for o in range(out_channels):
        first = o // (out_channels // groups) * per_group
        for row, at in enumerate(grids[0]):
            for i in range(per_group):
                for tap in grids[1]:
                    place = [a * s - p + t * d for a, s, p, t, d in zip(at, stride, padding, tap, dilation, strict=True)]
                    if all(0 <= c < n for c, n in zip(place, size, strict=True)):
                        column = 0
                        for c, n in zip(place, size, strict=True):
                            column = column * n + c
                        matrix[o * math.prod(outputs) + row, (first + i) * math.prod(size) + column] += weight[o, i][tuple(tap)]
    return matrix


CONVOLUTIONS = {
    "plain": ((2, 3, (3,)), {}, (8,)),
    "stride": ((2, 4, (3,)), {"stride": (2,)}, (9,)),
    "padding": ((1, 2, (3,)), {"padding": (2,)}, (5,)),
    "dilation": ((2, 2, (2,)), {"dilation": (3,)}, (7,)),
    "groups": ((4, 6, (2,)), {"groups": 2}, (5,)),
    "2-d": ((2, 2, (2, 3)), {}, (4, 5)),
    "2-d all": ((4, 2, (3, 2)), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}, (5, 4)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_a_linear_layer_whose_spectrum_repeats(backend, name):
    (inputs, outputs, kernel), options, size = CONVOLUTIONS[name]
    cls = SpectralConv1d if len(size) == 1 else SpectralConv2d
    layer = cls(inputs, outputs, kernel, **options, **BOTH, bias=False, dtype=torch.float64)
    x = torch.randn(inputs, *size, dtype=torch.float64)
    ones = (1,) * len(size)
    settings = {"stride": ones, "padding": (0,) * len(size), "dilation": ones, "groups": 1, **options}
    matrix = lambda weight: toeplitz(weight.detach(), size, **settings)  # noqa: E731
    found = layer(x[None])[0]
    torch.testing.assert_close(found.flatten(), matrix(layer.weight) @ x.flatten())
    # and the same from the Toeplitz matrix of phi: one eigenvalue for each channel, repeated along it
    groups = settings["groups"]
    lambda_in = layer.lambda_in.detach().repeat(groups).repeat_interleave(math.prod(size))
    lambda_out = layer.lambda_out.detach().repeat_interleave(found[0].numel())
    composed = sparsenn.ops.spectral_linear(x.flatten(), matrix(layer.phi), lambda_in, lambda_out)
    torch.testing.assert_close(found.flatten(), composed)


@pytest.mark.parametrize("cls", PLAIN)
def test_a_new_layer_starts_as_the_paper_says(cls):
    args = (30, 20) if cls is SpectralLinear else (30, 20, 3)
    layer = cls(*args)
    assert layer.lambda_in is None
    assert layer.lambda_out.tolist() == [1.0] * 20
    assert torch.equal(layer.weight, -layer.phi)
    receptive = layer.phi[0, 0].numel()
    bound = math.sqrt(6 / (receptive * 50))
    assert layer.phi.abs().max() <= bound
    assert layer.phi.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert layer.bias.abs().max() <= 1 / math.sqrt(30 * receptive)
    assert [name for name, _ in layer.named_parameters()] == ["phi", "lambda_out", "bias"]


def test_what_is_trained_and_what_is_left_out():
    layer = SpectralLinear(3, 2, train_lambda_in=True, train_lambda_out=False, train_phi=False)
    assert {name: p.requires_grad for name, p in layer.named_parameters()} == {
        "phi": False,
        "lambda_in": True,
        "lambda_out": False,
        "bias": True,
    }
    layer = SpectralLinear(3, 2, train_lambda_out=False, lambda_in_init=0.5)
    assert layer.lambda_in.tolist() == [0.5] * 3
    assert not layer.lambda_in.requires_grad
    layer = SpectralLinear(3, 2, train_lambda_in=True, train_lambda_out=False, lambda_out_init=0)
    assert layer.lambda_out is None
    with pytest.raises(ValueError, match=r"SpectralLinear: .*both 0.0 and untrained"):
        SpectralLinear(3, 2, train_lambda_out=False, lambda_out_init=0)
    with pytest.raises(ValueError, match=r"both 1\.0 and untrained"):
        SpectralLinear(3, 2, train_lambda_out=False, lambda_in_init=1.0)


def test_an_init_is_a_number_or_a_function():
    assert SpectralLinear(3, 2, lambda_out_init=np.float32(0.5)).lambda_out.tolist() == [0.5, 0.5]
    assert SpectralLinear(3, 2, lambda_in_init=np.float64(0)).lambda_in is None
    with pytest.raises(ValueError, match=r"SpectralLinear: lambda_out_init is 'ones'; it takes a number or a function"):
        SpectralLinear(3, 2, lambda_out_init="ones")
    with pytest.raises(ValueError, match=r"SpectralConv1d: phi_init is None; it takes"):
        SpectralConv1d(3, 2, 1, phi_init=None)
    with pytest.raises(ValueError, match=r"SpectralGate: init is tensor\(1\.\); it takes"):
        SpectralGate(3, init=torch.tensor(1.0))


def test_a_layer_of_another_dtype_is_refused_before_it_computes():
    with pytest.raises(ValueError, match=r"SpectralConv2d: dtype is torch.complex64; it takes float64"):
        SpectralConv2d(3, 2, 1, dtype=torch.complex64)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_inputs_or_outputs_is_a_layer(backend, sizes):
    layer = SpectralLinear(*sizes)
    out = layer(torch.randn(4, sizes[0]))
    assert torch.equal(out, layer.bias.expand(4, sizes[1]))
    out.sum().backward()
    assert layer.bias.grad.tolist() == [4.0] * sizes[1]


def test_frozen_parts_get_no_gradient():
    layer = SpectralLinear(3, 2, train_phi=False, lambda_in_init=0.5)
    layer(torch.randn(4, 3)).sum().backward()
    assert layer.phi.grad is None
    assert layer.lambda_in.grad is None
    assert layer.lambda_out.grad is not None


def test_signatures_are_those_of_torch_with_the_spectrum_added():
    own = ["train_lambda_in", "train_lambda_out", "train_phi", "lambda_in_init", "lambda_out_init", "phi_init"]
    for ours, plain in PLAIN.items():
        theirs = inspect.signature(plain).parameters
        names = list(inspect.signature(ours).parameters)
        assert names == [n for n in theirs if n not in ("device", "dtype")] + [*own, "device", "dtype"]
        for name, parameter in inspect.signature(ours).parameters.items():
            assert name in own or parameter.default == theirs[name].default


@cases
def test_reset_parameters_draws_as_a_new_layer_does_into_the_same_memory(case):
    layer, _ = make(case)
    memory = [(id(p), p.data_ptr()) for p in layer.parameters()]
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(7)
    torch.manual_seed(2)
    layer.reset_parameters()
    assert [(id(p), p.data_ptr()) for p in layer.parameters()] == memory
    first = [p.detach().clone() for p in layer.parameters()]
    assert all((p != 7).all() for p in first)
    torch.manual_seed(2)
    layer.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(first, layer.parameters(), strict=True))


@cases
def test_skip_init_and_meta_wait_for_reset_parameters(case):
    cls, args, options, _ = case
    meta = cls(*args, **options, device="meta")
    assert all(p.is_meta for p in meta.parameters())
    found = []
    for layer in (nn.utils.skip_init(cls, *args, **options), meta.to_empty(device="cpu")):
        torch.manual_seed(0)
        layer.reset_parameters()
        found.append([p.detach() for p in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_channels_last_weights_keep_their_format(backend):
    layer = SpectralConv2d(3, 4, 3).to(memory_format=torch.channels_last)
    layer.reset_parameters()
    layer(torch.randn(2, 3, 6, 6)).sum().backward()
    for t in (layer.phi, layer.weight, layer.phi.grad):
        assert t.is_contiguous(memory_format=torch.channels_last)
        assert not t.is_contiguous()


def test_repr_shows_what_is_trained():
    text = "in_features=6, out_features=4, bias=True, train_lambda_in=False, train_lambda_out=True, train_phi=True"
    assert text in repr(SpectralLinear(6, 4))
    assert "kernel_size=(5,), stride=(1,), train_lambda_in=True" in repr(SpectralConv1d(3, 4, 5, train_lambda_in=True))


@cases
def test_compiles_to_one_graph_with_the_same_values_and_gradients(case):
    layer, x = make(case)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for function in (layer, compiled):
        layer.zero_grad()
        out = function(x)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in layer.parameters() if p.requires_grad)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@cases
def test_autocast_casts_the_weight_as_it_casts_a_plain_one(case):
    layer, x = make(case, dtype=torch.float32)
    plain = twin(case, layer)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = layer(x), plain(x)
    assert a.dtype == torch.bfloat16
    assert torch.equal(a, b)


@cases
def test_a_deepcopy_is_independent_and_the_state_moves(case):
    layer, x = make(case, seed=1)
    twin_layer, before = copy.deepcopy(layer), layer(x)
    with torch.no_grad():
        for p in twin_layer.parameters():
            p.mul_(2)
    assert torch.equal(layer(x), before)
    assert not torch.equal(twin_layer(x), before)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert twin_layer.load_state_dict(torch.load(file, weights_only=True)) == ([], [])
    assert torch.equal(twin_layer(x), before)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), before)


@cases
def test_per_sample_gradients_equal_a_loop(case):
    layer, x = make(case)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(values, sample):
        return functional_call(layer, values, (sample[None],)).sin().sum()

    batched = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        layer(sample[None]).sin().sum().backward()
        for name, p in layer.named_parameters():
            if p.requires_grad:
                torch.testing.assert_close(batched[name][i], p.grad)


@pytest.mark.parametrize(("shape", "dim"), [((5, 3), 1), ((5, 3, 4), 1), ((2, 3, 4, 4), 1), ((2, 5, 3), -1), ((3, 4, 5), 0)])
def test_a_gate_scales_channels(shape, dim):
    gate = SpectralGate(3, dim, init=nn.init.normal_)
    x = torch.randn(shape)
    moved = gate(x).movedim(dim, -1)
    for c in range(3):
        torch.testing.assert_close(moved[..., c], x.movedim(dim, -1)[..., c] * gate.lambda_out[c])


def test_a_gate_behind_a_layer_without_bias_is_a_spectral_layer():
    spectral = SpectralConv2d(2, 3, 3, bias=False, lambda_out_init=nn.init.normal_)
    plain, gate = nn.Conv2d(2, 3, 3, bias=False), SpectralGate(3)
    with torch.no_grad():
        plain.weight.copy_(-spectral.phi)
        gate.lambda_out.copy_(spectral.lambda_out)
    x = torch.randn(2, 2, 6, 6)
    torch.testing.assert_close(gate(plain(x)), spectral(x))


def test_the_eigenvalues_of_filters_are_the_scales_of_network_slimming():
    convolution, norm = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    spectral = SpectralConv2d(2, 3, 3)
    with torch.no_grad():
        spectral.phi.copy_(convolution.weight)
        spectral.lambda_out.copy_(-scale)
        spectral.bias.copy_(norm.bias - scale * norm.running_mean)
    x = torch.randn(2, 2, 6, 6)
    torch.testing.assert_close(spectral(x), norm(convolution(x)))


@pytest.mark.parametrize("shape", [(3,), (5, 4), (5, 4, 3)])
def test_a_gate_refuses_other_channels(shape):
    with pytest.raises(ValueError, match=r"SpectralGate: input has shape .*; it takes 3 channels along dimension 1"):
        SpectralGate(3)(torch.ones(shape))
