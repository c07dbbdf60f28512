"""spectralize and the way back: the same function, all or nothing, and what the threshold of collapse leaves alone."""

import copy

import pytest
import torch
from factorized_models import ZOO, assert_untouched, fingerprint, run
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as masks

import sparsenn
from sparsenn.nn import SpectralConv1d, SpectralConv2d, SpectralGate, SpectralLinear
from sparsenn.nn.spectral import SpectralLayer


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


X = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def names(model):
    return [name for name, _ in model.named_parameters()]


def test_the_function_and_the_loss_gradient_stay(backend):
    plain = net()
    model = sparsenn.spectralize(copy.deepcopy(plain))
    assert [type(m) for m in model][::3] == [SpectralConv2d, SpectralLinear]
    torch.testing.assert_close(model(X), plain(X))
    model(X).sin().sum().backward()
    plain(X).sin().sum().backward()
    for ours, theirs in zip(model, plain, strict=True):
        if isinstance(ours, SpectralLayer):
            assert torch.equal(ours.weight, theirs.weight)
            torch.testing.assert_close(ours.phi.grad, -theirs.weight.grad)
            torch.testing.assert_close(ours.lambda_out.grad, (theirs.weight.grad * theirs.weight).flatten(1).sum(1))
            torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize("name", ["linear", "conv2d", "transformer", "net", "raw", "lstm"])
def test_any_model_keeps_its_function_there_and_back(name):
    build, inputs = ZOO[name]
    torch.manual_seed(0)
    plain = build().double()
    model = copy.deepcopy(plain)
    expected = run(copy.deepcopy(plain).eval(), inputs())
    assert sparsenn.spectralize(model) is model
    torch.testing.assert_close(run(copy.deepcopy(model).eval(), inputs()), expected)
    sparsenn.collapse(model, 0.0)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert names(model) == names(plain)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(model.modules(), plain.modules(), strict=True):
        assert vars(a).keys() == vars(b).keys()


def test_what_is_selected():
    class Own(nn.Linear):
        pass

    def build():
        return nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(nn.Conv1d(2, 2, 1), nn.Linear(2, 2)), "c": Own(2, 2)})

    def spectral(**rules):
        model = sparsenn.spectralize(build(), **rules)
        return [path for path, m in model.named_modules() if isinstance(m, SpectralLayer)]

    assert spectral() == ["a", "b.0", "b.1"]
    assert spectral(include="b.*") == ["b.0", "b.1"]
    assert spectral(include=nn.Conv1d) == ["b.0"]
    assert spectral(include=nn.Sequential, exclude="*.1") == ["b.0"]
    assert spectral(exclude=[nn.Conv1d, "a"]) == ["b.1"]
    with pytest.raises(ValueError, match=r"spectralize: include=.*selects no layer; the model has a, b.0, b.1$"):
        spectral(include=nn.Conv2d)
    for where in ("include", "exclude"):
        for name in ("nothing", "b", "c"):  # nowhere; what has layers, which "b.*" means; what has a forward of its own
            with pytest.raises(
                ValueError, match=f"{where} has '{name}', which is the name of no layer to change; there are a, b.0, b.1$"
            ):
                spectral(**{where: ["a", name]})
        with pytest.raises(ValueError, match=f"spectralize: {where} has 3; it takes name patterns and module types"):
            spectral(**{where: 3})


def test_a_lone_layer_and_one_under_two_names():
    assert type(sparsenn.spectralize(nn.Linear(2, 2))) is SpectralLinear
    shared = nn.Linear(3, 3)
    model = sparsenn.spectralize(nn.Sequential(shared, shared))
    assert model[0] is model[1] is shared
    assert names(model) == ["0.phi", "0.lambda_out", "0.bias"]


def test_frozen_weights_are_taken_only_by_name_and_stay_frozen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    sparsenn.spectralize(model)
    assert type(model[0]) is nn.Linear
    sparsenn.spectralize(model, include="0")
    assert not model[0].phi.requires_grad
    assert model[0].lambda_out.requires_grad


def test_hooks_mode_dtype_and_format_stay():
    layer = nn.Conv2d(2, 3, 3).to(torch.float16, memory_format=torch.channels_last).eval()
    calls = []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    sparsenn.spectralize(layer)
    assert not layer.training
    assert layer.phi.dtype == layer.lambda_out.dtype == torch.float16
    assert layer.phi.is_contiguous(memory_format=torch.channels_last)
    layer(torch.ones(1, 2, 4, 4, dtype=torch.float16))
    assert calls == [1]


def test_what_else_a_layer_holds_stays():
    layer = nn.Linear(3, 2)
    layer.register_parameter("scale", nn.Parameter(torch.full((1,), 3.0)))
    layer.register_buffer("seen", torch.ones(2))
    scale = layer.scale
    sparsenn.spectralize(layer)
    assert names(layer) == ["phi", "lambda_out", "bias", "scale"]
    assert sparsenn.collapse(layer).scale is scale
    assert names(layer) == ["weight", "bias", "scale"]
    assert layer.seen.tolist() == [1.0, 1.0]


def tied():
    model = nn.ModuleDict({"table": nn.Embedding(4, 3), "head": nn.Linear(3, 4)})
    model["head"].weight = model["table"].weight
    return model


REFUSALS = {
    "tied": (tied, r"the weight of 'head' is tied to another parameter.*exclude='head'"),
    "factorized": (lambda: sparsenn.factorize(nn.Sequential(nn.Linear(2, 2)), 2), "parametrized; collapse"),
    "normalized": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))), "parametrized"),
    "masked": (
        lambda: nn.Sequential(masks.random_unstructured(nn.Linear(2, 2), "weight", 0.5)),
        "made by a hook, such as a mask",
    ),
    "masked bias": (lambda: nn.Sequential(masks.random_unstructured(nn.Linear(2, 2), "bias", 0.5)), "made by a hook"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(2)), "not initialized yet"),
    "complex": (lambda: nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)), "has dtype torch.complex64"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_leave_the_model_as_it_was(case):
    build, message = REFUSALS[case]
    model = nn.ModuleDict({"first": nn.Linear(2, 2), **dict(build().named_children())})
    before = fingerprint(model)
    with pytest.raises(ValueError, match=f"spectralize: .*{message}"):
        sparsenn.spectralize(model)
    assert_untouched(model, before)
    assert "phi" not in names(model)


def tiny(layer):
    with torch.no_grad():
        layer.phi.fill_(1e-5)
        layer.lambda_out.fill_(1e-5)
        layer.bias.fill_(1e-9)
    return layer


def test_collapse_touches_neither_the_spectrum_nor_what_is_composed_of_it():
    model = nn.Sequential(tiny(SpectralLinear(3, 2)), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.fill_(1e-9)
    expected = model[0].weight.detach()
    sparsenn.collapse(model)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, expected)
    assert model[0].weight.count_nonzero() == 6
    assert model[0].bias.count_nonzero() == 2
    assert model[1].weight.count_nonzero() == 0
    assert model[0].weight.requires_grad


def test_collapse_zeroes_what_was_factorized_on_top():
    model = nn.Sequential(tiny(SpectralLinear(3, 2)), tiny(SpectralLinear(3, 2)))
    sparsenn.factorize(model, 2, "root", include=["0.phi", "1.bias"])
    sparsenn.collapse(model)
    assert [type(m) for m in model] == [nn.Linear, nn.Linear]
    assert [m.weight.count_nonzero().item() for m in model] == [0, 6]
    assert [m.bias.count_nonzero().item() for m in model] == [2, 0]
    assert names(model) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_collapse_keeps_what_is_frozen_and_a_gate():
    layer = SpectralLinear(3, 2, train_lambda_out=False, train_phi=False)
    gate = SpectralGate(2, init=1e-9)
    sparsenn.collapse(nn.Sequential(layer, gate))
    assert not layer.weight.requires_grad
    assert type(gate) is SpectralGate
    assert gate.lambda_out.count_nonzero() == 2


def test_a_subclass_keeps_its_own_code_and_its_spectrum():
    class Scaled(SpectralConv1d):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = Scaled(3, 2, 1)
    x = torch.randn(4, 3, 5)
    before = layer(x)
    assert type(sparsenn.collapse(layer)) is Scaled
    assert torch.equal(layer(x), before)


def test_training_a_factorized_spectral_layer_works():
    layer = sparsenn.factorize(SpectralLinear(4, 3), 2, "root")
    x = torch.randn(5, 4)
    before = layer(x)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    torch.testing.assert_close(sparsenn.collapse(layer, 0.0)(x), before)


def test_reports_count_the_composed_weight():
    layer = SpectralLinear(3, 2, bias=False, train_lambda_in=True)
    with torch.no_grad():
        layer.phi.fill_(1.0)
        layer.lambda_in.copy_(torch.tensor([1.0, 0.0, 1e-9]))
        layer.lambda_out.copy_(torch.tensor([1.0, 0.0]))
    model = nn.Sequential(layer)
    (row,) = sparsenn.metrics.sparsity_report(model).layers
    assert (row.name, row.shape, row.numel, row.zeros, row.below) == ("0.weight", (2, 3), 6, 2, 3)
    sparsenn.factorize(model, 2, "root")
    (row,) = sparsenn.metrics.sparsity_report(model).layers
    assert (row.name, row.numel, row.below) == ("0.weight", 6, 3)
