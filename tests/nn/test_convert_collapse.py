"""collapse: plain modules, the same function, exact zeros where the threshold says so."""

import copy
import io

import pytest
import torch
from factorized_models import (
    assert_untouched,
    build_pair,
    copy_products,
    fingerprint,
    net,
    run,
    with_names,
    zoo,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

import sparsenn
from sparsenn.nn import HadamardConv1d, HadamardConv2d, HadamardLinear, HadamardProduct

EPS = torch.finfo(torch.float32).eps


@zoo
def test_collapse_gives_back_the_classes_the_names_the_order_and_the_function(build, inputs):
    recurrent = any("_hh_" in name for name, _ in build().named_parameters())
    model, plain = build_pair(build, exclude=["bias", "*_hh_*"] if recurrent else "bias")
    run(plain, inputs())
    run(model, inputs()).sum().backward()
    copy_products(model, plain)
    assert sparsenn.collapse(model, 0.0) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert vars(model).keys() == vars(plain).keys()
    torch.testing.assert_close(
        run(copy.deepcopy(model).eval(), inputs()), run(copy.deepcopy(plain).eval(), inputs()), rtol=0, atol=0
    )
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())


@given(
    values=st.lists(st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, EPS, -EPS, 0.5])), min_size=1, max_size=12),
    threshold=st.sampled_from([0.0, EPS, 0.5, 1e30, float("inf")]),
)
@settings(max_examples=150, deadline=None)
def test_the_threshold_law(values, threshold):
    start = torch.tensor(values, dtype=torch.float32)
    wanted = [0.0 if abs(v) <= threshold else v for v in start.tolist()]
    plain = with_names(weight=start.clone())
    factors = parametrize.register_parametrization(with_names(weight=torch.ones_like(start)), "weight", HadamardProduct(2))
    with torch.no_grad():
        factors.parametrizations.weight.original0.copy_(start)
        factors.parametrizations.weight.original1.fill_(1)
    for model in (plain, factors):
        weight = sparsenn.collapse(model, threshold).weight.detach()
        torch.testing.assert_close(weight, torch.tensor(wanted), rtol=0, atol=0, equal_nan=True)
        assert not weight[weight == 0].signbit().any()


def test_the_default_threshold_is_the_epsilon_of_float32_on_the_product():
    layer = HadamardLinear(4, 1, bias=False, depth=2)
    first, second = layer.parameters()
    with torch.no_grad():
        first.copy_(torch.tensor([[2.0**-12, 2.0**-12, 2.0**-11, -(2.0**-12)]]))
        second.copy_(torch.tensor([[2.0**-12, 2.0**-11, 2.0**-11, 2.0**-11]]))
    assert sparsenn.collapse(layer).weight.tolist() == [[0.0, 0.0, 2.0**-22, 0.0]]


@pytest.mark.parametrize(
    ("cls", "plain"), [(HadamardLinear, nn.Linear), (HadamardConv1d, nn.Conv1d), (HadamardConv2d, nn.Conv2d)]
)
def test_hadamard_layers_become_plain_ones_in_place(cls, plain):
    args = (3, 2) if plain is nn.Linear else (3, 2, 1)
    x = torch.randn(4, 3, *[5] * (len(args) - 2 + (plain is nn.Conv2d)))
    layer = cls(*args, depth=3)
    model = nn.Sequential(layer)
    expected = model(x)
    sparsenn.collapse(model, 0)
    assert model[0] is layer
    assert type(layer) is plain
    assert vars(layer).keys() == vars(plain(*args)).keys()
    assert repr(layer) == repr(plain(*args))
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert torch.equal(model(x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)


@pytest.mark.parametrize("name", ["phi", "lambda_out"])
def test_a_spectral_layer_under_a_mask_is_refused(name):
    net = nn.Sequential(sparsenn.nn.SpectralLinear(3, 3))
    torch_prune.l1_unstructured(net[0], name, 0.5)
    with pytest.raises(ValueError, match=f"collapse: '0.{name}' is made by a hook, such as a mask"):
        sparsenn.collapse(net)
    torch_prune.remove(net[0], name)
    assert isinstance(sparsenn.collapse(net)[0], nn.Linear)


def test_a_plain_net_is_thresholded_in_place_but_for_its_buffers():
    model = net()
    with torch.no_grad():
        model[0].weight[0, :3] = torch.tensor([1e-8, -1e-8, 2.0**-20])
        model[1].running_mean.fill_(2.0**-30)
    ids = [id(p) for p in model.parameters()]
    sparsenn.collapse(model)
    assert [id(p) for p in model.parameters()] == ids
    assert model[0].weight[0, :3].tolist() == [0.0, 0.0, 2.0**-20]
    assert model[1].running_mean.tolist() == [2.0**-30] * 6


def test_other_parametrizations_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), parametrizations.orthogonal(nn.Linear(3, 3)))
    with torch.no_grad():
        model[0].parametrizations.weight.original1.mul_(1e-10)
        model[0].bias[0] = 1e-9
    sparsenn.factorize(model, 2, include="*.bias")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".weight." in name}
    sparsenn.collapse(model)
    after = dict(model.named_parameters())
    assert before.keys() | {"0.bias", "1.bias"} == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert parametrize.is_parametrized(model[0], "weight")
    assert not parametrize.is_parametrized(model[0], "bias")


def test_a_parametrization_on_top_of_factors_is_refused_before_anything_changes():
    model = nn.Sequential(HadamardLinear(3, 2), HadamardLinear(2, 2))
    parametrize.register_parametrization(model[1], "weight", nn.Tanh())
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"collapse: '1.weight' carries Tanh on top of its factors; remove it first"):
        sparsenn.collapse(model)
    assert_untouched(model, before)


@pytest.mark.parametrize("threshold", [-1e-9, float("nan")])
def test_a_bad_threshold_is_refused(threshold):
    model = nn.Sequential(HadamardLinear(3, 2))
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"threshold is .*; it takes a number >= 0"):
        sparsenn.collapse(model, threshold)
    assert_untouched(model, before)


def test_a_lazy_module_passes_through_collapse():
    assert nn.parameter.is_lazy(sparsenn.collapse(nn.Sequential(nn.LazyLinear(2)))[0].weight)
