"""HadamardLinear and HadamardConv: the plain layer with its weight and bias replaced by products."""

import copy
import functools
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparsenn
from sparsenn.nn import HadamardConv1d, HadamardConv2d, HadamardLinear
from sparsenn.nn.parametrizations import factors_of

PLAIN = {HadamardLinear: nn.Linear, HadamardConv1d: nn.Conv1d, HadamardConv2d: nn.Conv2d}
LAYERS = {
    "linear": (HadamardLinear, (6, 4), {}, (5, 6)),
    "linear-no-bias": (HadamardLinear, (6, 4, False), {}, (2, 5, 6)),
    "conv1d": (HadamardConv1d, (4, 6, 3), {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}, (2, 4, 12)),
    "conv1d-same": (HadamardConv1d, (2, 3, 3, 1, "same", 1, 1, False, "circular"), {}, (2, 2, 9)),
    "conv2d": (HadamardConv2d, (3, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "groups": 3}, (2, 3, 8, 7)),
    "conv2d-reflect": (HadamardConv2d, (3, 4, 3, 1, 1, 1, 1, True, "reflect"), {}, (2, 3, 6, 6)),
}
cases = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)


def make(case, depth=3, factor_init="root", dtype=torch.float64, seed=0, plain=False, **kwargs):
    cls, args, options, shape = case
    torch.manual_seed(seed)
    own = {} if plain else {"depth": depth, "factor_init": factor_init}
    layer = (PLAIN[cls] if plain else cls)(*args, **options, **own, dtype=dtype, **kwargs)
    return layer, torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def products(layer):
    return {name: getattr(layer, name).detach() for name in layer.parametrizations}


@cases
@pytest.mark.parametrize("factor_init", ["root", "preserve"])
def test_a_new_layer_holds_the_values_of_the_plain_layer_of_the_same_seed(case, factor_init):
    (ours, x), (plain, _) = make(case, factor_init=factor_init), make(case, plain=True)
    for name, value in plain.named_parameters():
        floor = value.detach().sign() * value.detach().abs().clamp(min=1e-4 if factor_init == "preserve" else 0)
        torch.testing.assert_close(getattr(ours, name).detach(), floor, rtol=1e-13, atol=0)
    if factor_init == "root":
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-12, atol=1e-13)


@cases
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_factor_gradients_obey_the_chain_rule_from_the_plain_gradient(case, depth):
    (ours, x), (plain, _) = make(case, depth, "preserve"), make(case, plain=True)
    plain.load_state_dict(products(ours))
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0)
    ours(x).sin().sum().backward()
    plain(x).sin().sum().backward()
    for name, parameter in plain.named_parameters():
        factors = factors_of(ours.parametrizations[name])
        for d, factor in enumerate(factors):
            others = functools.reduce(torch.mul, factors[:d] + factors[d + 1 :], torch.ones_like(factor))
            torch.testing.assert_close(factor.grad, parameter.grad * others, rtol=1e-12, atol=1e-14)


def test_signatures_are_those_of_torch_with_depth_and_init_added():
    for ours, plain in PLAIN.items():
        theirs = inspect.signature(plain).parameters
        names = list(inspect.signature(ours).parameters)
        assert names == [n for n in theirs if n not in ("device", "dtype")] + ["depth", "factor_init", "device", "dtype"]
        for name, parameter in inspect.signature(ours).parameters.items():
            assert name in ("depth", "factor_init") or parameter.default == theirs[name].default


@cases
@pytest.mark.parametrize("factor_init", ["preserve", "dwf"])
def test_reset_parameters_draws_as_a_new_layer_does_into_the_same_memory(case, factor_init):
    layer, _ = make(case, factor_init=factor_init, seed=1)
    fresh, _ = make(case, factor_init=factor_init, seed=2)
    memory = [(id(p), p.data_ptr()) for p in layer.parameters()]
    torch.manual_seed(2)
    layer.reset_parameters()
    assert [(id(p), p.data_ptr()) for p in layer.parameters()] == memory
    for a, b in zip(layer.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


@cases
def test_skip_init_and_meta_wait_for_reset_parameters(case):
    cls, args, options, _ = case
    fresh, _ = make(case, 2, "preserve")
    options = dict(options, dtype=torch.float64)
    meta = cls(*args, **options, device="meta")
    assert all(p.is_meta for p in meta.parameters())
    for layer in (nn.utils.skip_init(cls, *args, **options), meta.to_empty(device="cpu")):
        torch.manual_seed(0)
        layer.reset_parameters()
        for a, b in zip(layer.parameters(), fresh.parameters(), strict=True):
            assert torch.equal(a, b)


def test_channels_last_weights_keep_their_format_through_reset():
    layer = HadamardConv2d(3, 4, 3, depth=2).to(memory_format=torch.channels_last)
    layer.reset_parameters()
    tensors = [layer.weight, *factors_of(layer.parametrizations.weight)]
    assert all(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in tensors)


def test_repr_shows_depth_and_init():
    assert "in_features=6, out_features=4, bias=True, depth=3, factor_init='root'" in repr(
        HadamardLinear(6, 4, depth=3, factor_init="root")
    )
    assert "3, 4, kernel_size=(5,), stride=(1,), depth=2, factor_init='preserve'" in repr(HadamardConv1d(3, 4, 5))


@cases
def test_compiles_to_one_graph_with_the_same_values_and_gradients(case):
    layer, x = make(case, factor_init="preserve")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for function in (layer, compiled):
        layer.zero_grad()
        out = function(x)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@cases
def test_autocast_casts_the_product_as_it_casts_a_plain_weight(case):
    (ours, x), (plain, _) = make(case, 2, dtype=torch.float32), make(case, dtype=torch.float32, plain=True)
    plain.load_state_dict(products(ours))
    with torch.autocast("cpu", torch.bfloat16):
        a, b = ours(x), plain(x)
        assert ours.weight.dtype == torch.float32
    assert a.dtype == b.dtype == torch.bfloat16
    assert torch.equal(a, b)
    a.sum().backward()
    b.sum().backward()
    first, second = factors_of(ours.parametrizations.weight)
    assert first.grad.dtype == torch.float32
    torch.testing.assert_close(first.grad, plain.weight.grad * second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_layers_hold_half_factors_and_round_the_product_once(dtype):
    layer, x = make(LAYERS["linear"], 3, "preserve", dtype)
    factors = [f.double() for f in factors_of(layer.parametrizations.weight)]
    exact = (factors[0] * factors[1] * factors[2]).detach()
    assert layer(x).dtype == dtype
    assert (layer.weight.double() - exact).abs().le(exact.abs() * torch.finfo(dtype).eps * 0.51).all()


@cases
def test_a_deepcopy_is_independent(case):
    layer, x = make(case)
    twin, before = copy.deepcopy(layer), layer(x)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2)
    torch.testing.assert_close(twin.weight, layer.weight * 8)
    assert torch.equal(layer(x), before)
    sparsenn.collapse(twin)
    assert torch.equal(layer(x), before)
    assert isinstance(layer, case[0])


@cases
def test_the_state_moves_into_another_layer_bit_for_bit(case):
    (layer, x), (other, _) = make(case, factor_init="preserve", seed=1), make(case, factor_init="preserve", seed=2)
    x = x * 3
    assert not torch.equal(layer(x), other(x))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert other.load_state_dict(torch.load(file, weights_only=True), strict=True) == ([], [])
    assert torch.equal(layer(x), other(x))
    state = pickle.loads(pickle.dumps(layer.state_dict()))
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())


def test_an_averaged_model_averages_the_factors():
    layer, _ = make(LAYERS["linear"])
    average = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    average.update_parameters(layer)
    start = [p.detach().clone() for p in layer.parameters()]
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(1)
    average.update_parameters(layer)
    for value, old in zip(average.module.parameters(), start, strict=True):
        torch.testing.assert_close(value.detach(), old + 0.25)


@cases
def test_per_sample_gradients_equal_a_loop(case):
    layer, x = make(case, factor_init="preserve")
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(values, sample):
        return functional_call(layer, values, (sample[None],)).sin().sum()

    batched = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        layer(sample[None]).sin().sum().backward()
        for name, p in layer.named_parameters():
            torch.testing.assert_close(batched[name][i], p.grad, rtol=1e-11, atol=1e-13)


def test_a_subclass_keeps_its_own_code_after_collapse():
    class Scaled(HadamardLinear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = Scaled(3, 2)
    x = torch.randn(4, 3)
    before = layer(x)
    assert type(sparsenn.collapse(layer)) is Scaled
    assert torch.equal(layer(x), before)
    assert dict(layer.named_parameters()).keys() == {"weight", "bias"}
    assert "depth" not in repr(layer)
    layer.reset_parameters()
    assert not torch.equal(layer(x), before)


@pytest.mark.parametrize("cls", PLAIN)
def test_bad_arguments_are_refused(cls):
    args = (3, 2) if cls is HadamardLinear else (3, 2, 1)
    with pytest.raises(ValueError, match="depth is 0"):
        cls(*args, depth=0)
    with pytest.raises(ValueError, match="factor_init is 'none'"):
        cls(*args, factor_init="none")
