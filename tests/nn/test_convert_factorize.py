"""factorize: the same function and the chain rule, for every kind of module; nothing half done."""

import copy
import io
from unittest import mock

import pytest
import torch
from factorized_models import (
    Raw,
    assert_same_training_signal,
    assert_untouched,
    batch,
    build_pair,
    copy_products,
    factorized,
    fingerprint,
    net,
    run,
    with_names,
    zoo,
)
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel

import sparsenn
from sparsenn.nn import HadamardLinear
from sparsenn.nn.parametrizations import factors_of


@zoo
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_function_and_gradients_are_those_of_the_plain_model(build, inputs, depth):
    model, plain = build_pair(build, depth)
    assert factorized(model).keys() == dict(plain.named_parameters()).keys()
    assert_same_training_signal(model, plain, inputs())


@zoo
def test_a_step_a_deepcopy_and_a_move_are_seen_by_the_next_forward(build, inputs):
    model, plain = build_pair(build)
    assert_same_training_signal(model, plain, inputs())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    copy_products(model, plain)
    assert_same_training_signal(model, plain, inputs())
    twin = copy.deepcopy(model)
    assert_same_training_signal(twin, plain, inputs())
    twin.float().double()
    copy_products(twin, plain)
    assert_same_training_signal(twin, plain, inputs())
    with parametrize.cached():
        assert_same_training_signal(twin, plain, inputs())
    copy_products(model, plain)
    assert_same_training_signal(model, plain, inputs())


@zoo
def test_eval_without_gradients(build, inputs):
    model, plain = build_pair(build)
    with torch.no_grad():
        torch.testing.assert_close(run(model.eval(), inputs()), run(plain.eval(), inputs()), rtol=1e-10, atol=1e-12)


def test_attention_takes_its_fast_path_on_products():
    model, plain = build_pair(lambda: nn.MultiheadAttention(8, 2, batch_first=True))
    x = batch(3, 5, 8)
    original = torch._native_multi_head_attention
    with torch.no_grad(), mock.patch.object(torch, "_native_multi_head_attention", side_effect=original) as fast:
        ours, theirs = run(model.eval(), (x, x, x)), run(plain.eval(), (x, x, x))
    assert fast.call_count == 2
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_padding_row_of_an_embedding_gets_no_gradient():
    model, _ = build_pair(lambda: nn.Embedding(5, 3, padding_idx=2), factor_init="preserve")
    model(torch.tensor([1, 2])).sum().backward()
    for factor in model.parameters():
        assert torch.equal(factor.grad.ne(0).any(1), torch.tensor([False, True, False, False, False]))


def test_running_statistics_are_those_of_the_plain_net():
    model, plain = build_pair(net)
    model(batch(5, 8))
    plain(batch(5, 8))
    torch.testing.assert_close(model[1].running_var, plain[1].running_var)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_nets_keep_dtype_and_weights(dtype):
    torch.manual_seed(0)
    plain = nn.Linear(20, 10).to(dtype)
    model = sparsenn.factorize(copy.deepcopy(plain), 3)
    assert {p.dtype for p in model.parameters()} == {dtype}
    big = plain.weight.abs() > 1e-3
    torch.testing.assert_close(model.weight[big], plain.weight[big], rtol=3 * torch.finfo(dtype).eps, atol=0)
    assert sparsenn.collapse(model).weight.dtype == dtype


def test_after_a_drawing_init_the_net_computes_with_the_product_of_the_draw():
    model, plain = build_pair(net, 3, "dwf")
    assert not torch.allclose(model(batch(5, 8)), plain(batch(5, 8)))
    for parametrization in factorized(model).values():
        factors = torch.stack([f.detach() for f in factors_of(parametrization)])
        assert factors.abs().min() > 3e-3
        assert factors.abs().max() < 1
    copy_products(model, plain)
    assert_same_training_signal(model, plain, (batch(5, 8),))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}),
        ({"exclude": "*.bias"}, {"0.weight", "1.weight", "3.weight"}),
        ({"exclude": ("bias", "norm")}, {"0.weight", "3.weight"}),
        ({"include": "norm"}, {"1.weight", "1.bias"}),
        ({"exclude": ["embedding", "1.*"]}, {"0.weight", "0.bias", "3.weight", "3.bias"}),
        ({"exclude": nn.BatchNorm1d}, {"0.weight", "0.bias", "3.weight", "3.bias"}),
        ({"exclude": [nn.BatchNorm1d, "*.bias"]}, {"0.weight", "3.weight"}),
        ({"include": nn.Linear}, {"0.weight", "0.bias", "3.weight", "3.bias"}),
        ({"include": (nn.Linear, "1.weight"), "exclude": "0.*"}, {"3.weight", "3.bias", "1.weight"}),
        ({"include": "3.weight"}, {"3.weight"}),
        ({"include": nn.Sequential, "exclude": "?.weight"}, {"0.bias", "1.bias", "3.bias"}),
    ],
)
def test_include_and_exclude(rules, expected):
    model, plain = build_pair(net, **rules)
    assert factorized(model).keys() == expected
    kept = {name for name, _ in model.named_parameters() if "parametrizations" not in name}
    assert kept == dict(plain.named_parameters()).keys() - expected


def test_a_pattern_with_a_dot_reaches_the_root_and_a_type_all_that_lies_in_it():
    assert factorized(sparsenn.factorize(nn.Linear(3, 2), 2, exclude="*.bias")).keys() == {"weight"}
    attention = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    assert factorized(sparsenn.factorize(attention, 2, exclude=nn.MultiheadAttention)).keys() == {"1.weight", "1.bias"}


def test_a_shared_module_is_known_by_all_its_names():
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"first": shared, "second": shared, "other": nn.Linear(3, 3)})
    sparsenn.factorize(model, 2, include="second.*")
    assert factorized(model).keys() == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert len(list(shared.parameters())) == 4


def test_frozen_parameters_are_left_unless_included_and_stay_frozen():
    def frozen():
        model = net()
        model[0].requires_grad_(False)
        return model

    assert not any(name.startswith("0.") for name in factorized(build_pair(frozen)[0]))
    model, plain = build_pair(frozen, include="0.*")
    assert factorized(model).keys() == {"0.weight", "0.bias"}
    assert not any(p.requires_grad for p in model[0].parameters())
    copy_products(model, plain)
    sparsenn.collapse(model, 0)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True, True]
    assert isinstance(model[0].weight, nn.Parameter)
    assert torch.equal(model[0].weight, plain[0].weight)


def test_only_floating_parameters_change():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.index = nn.Parameter(torch.arange(3), requires_grad=False)
            self.wave = nn.Parameter(torch.ones(2, dtype=torch.complex64))
            self.weight = nn.Parameter(torch.ones(2))

    model = sparsenn.factorize(Mixed(), 2, include="*")
    assert factorized(model).keys() == {"weight"}
    model.wave.data.mul_(1e-9)
    assert sparsenn.collapse(model).wave[0] != 0
    assert torch.equal(model.index, torch.arange(3))


def test_a_model_without_parameters_is_returned_as_it_is():
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3, affine=False))
    before = fingerprint(model)
    assert sparsenn.collapse(sparsenn.factorize(model, 2)) is model
    assert_untouched(model, before)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(5, 4)
        self.decoder = nn.Linear(4, 5)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.encoder(x).sin())


def test_tied_parameters_stay_tied_from_factorize_to_collapse():
    model, plain = build_pair(Tied)
    x = torch.tensor([0, 3, 3])
    assert len(list(model.parameters())) == 6
    assert_same_training_signal(model, plain, (x,))
    for m in (model, copy.deepcopy(model), AveragedModel(model).module, copy.deepcopy(model).float().double()):
        m.decoder.weight = torch.full((5, 4), 2.0).double()
        assert torch.equal(m.encoder.weight, m.decoder.weight)
        torch.testing.assert_close(m.encoder.weight.detach(), torch.full((5, 4), 2.0).double())
        state = {name: p.clone() for name, p in m.state_dict().items()}
        m.load_state_dict(state, assign=True)
        sparsenn.collapse(m)
        assert m.encoder.weight is m.decoder.weight
        assert len(list(m.parameters())) == 2


def test_tied_gradients_add_up_through_functional_call():
    model, plain = build_pair(Tied, 2)
    x = torch.tensor([0, 3, 3])
    values = {name: p.detach() for name, p in model.named_parameters()}
    gradients = grad(lambda v: functional_call(model, v, (x,), tie_weights=False).sin().sum())(values)
    assert all(torch.equal(p, values[name]) for name, p in copy.deepcopy(model).named_parameters())  # it is as before
    plain(x).sin().sum().backward()
    _, second = factors_of(model.encoder.parametrizations.weight)
    found = gradients["encoder.parametrizations.weight.original0"]
    torch.testing.assert_close(found, plain.encoder.weight.grad * second, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rules", [{"include": nn.Linear}, {"exclude": "encoder.*"}, {"exclude": nn.Linear}])
def test_half_of_a_tie_is_refused_with_both_names(rules):
    model = Tied()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"(?=.*'encoder.weight')(?=.*'decoder.weight').* one tied parameter"):
        sparsenn.factorize(model, 2, **rules)
    assert_untouched(model, before)


def test_an_excluded_tie_stays_a_plain_tie():
    model = sparsenn.factorize(Tied(), 2, exclude="*.weight")
    assert model.encoder.weight is model.decoder.weight
    assert factorized(model).keys() == {"decoder.bias"}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sparsenn.factorize(net(), 3, include="3.weight"), r"'3.weight' is already factorized \(depth 3\); collapse"),
        (lambda: HadamardLinear(3, 2), r"'weight' is already factorized \(depth 2\)"),
        (
            lambda: nn.Sequential(net(), parametrizations.weight_norm(nn.Linear(3, 2))),
            "'1.weight' carries the parametrization _WeightNorm",
        ),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2)), "'1.weight' is not initialized yet; run one batch"),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), nn.Embedding(3, 2, sparse=True)),
            "'1.weight' belongs to an embedding with sparse",
        ),
        (lambda: nn.EmbeddingBag(3, 2, max_norm=1.0), "'weight' belongs to an embedding with sparse or max_norm"),
        (lambda: with_names(weight=torch.ones(2), keys=torch.ones(2)), "'keys' has the name of an attribute"),
        (
            lambda: with_names(weight=torch.ones(2).to(torch.float8_e4m3fn)),
            "'weight' has dtype torch.float8_e4m3fn; convert it",
        ),
        (lambda: torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), "'weight' belongs to a scripted module"),
    ],
)
def test_what_cannot_be_factorized_is_named_with_a_cure(build, message):
    model = build()
    before = [(name, id(p)) for name, p in model.named_parameters()], [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=f"factorize: {message}.*leave it out with exclude="):
        sparsenn.factorize(model, 2)
    assert ([(name, id(p)) for name, p in model.named_parameters()], [type(m) for m in model.modules()]) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth is 0; it takes an int >= 1"),
        ({"depth": 2.0}, "depth is 2.0"),
        ({"depth": 2, "factor_init": "none"}, "factor_init is 'none'; it takes one of 'preserve'"),
        ({"depth": 2, "include": 3}, "include has 3; it takes kinds"),
        ({"depth": 2, "exclude": [int]}, "exclude has <class 'int'>"),
        *(
            (
                {"depth": 2, where: ("bias", "fc1.*")},
                rf"factorize: {where} has 'fc1.\*', which is no kind \(bias, norm, embedding\) and the name of no parameter;"
                r" there are 0.weight, 0.bias, 1.weight",
            )
            for where in ("include", "exclude")
        ),
        (
            {"depth": 2, "include": nn.Conv2d},
            r"include=<class '.*Conv2d'> with exclude=\(\) selects no parameter; the model has 0.weight",
        ),
        ({"depth": 2, "include": [nn.Linear], "exclude": ["*.bias", "*.weight"]}, "selects no parameter"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    model = net()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        sparsenn.factorize(model, **arguments)
    assert_untouched(model, before)


def test_an_error_in_the_middle_puts_every_parameter_back():
    model = nn.Sequential(nn.Linear(3, 2), nn.LSTM(2, 2), Tied(), nn.Linear(2, 2))
    with torch.no_grad():
        model[3].bias[1] = float("nan")
    x = torch.randn(4, 2, 3)
    expected = model[:2](x)[0]
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"factorize: '3.bias' cannot be split: .*not finite"):
        sparsenn.factorize(model, 2)
    assert_untouched(model, before)
    assert torch.equal(model[:2](x)[0], expected)
    assert model[2].encoder.weight is model[2].decoder.weight
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in copy.deepcopy(model).modules()]
    assert not any("sparsenn" in name for m in model.modules() for name in vars(m))


def test_copies_share_nothing_that_factorize_or_collapse_change():
    model, _ = build_pair(net, include="*.weight")
    x = batch(5, 8)
    expected = model.eval()(x)
    twin = copy.deepcopy(model)
    sparsenn.factorize(twin, 4, "root", include="*.bias")
    torch.testing.assert_close(twin(x), expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(model(x), expected)
    sparsenn.collapse(twin, 1e9)
    assert torch.count_nonzero(twin(x)) == 0
    assert torch.equal(model(x), expected)
    assert {name for name, _ in model[0].named_parameters()} == {
        "bias",
        *(f"parametrizations.weight.original{d}" for d in range(3)),
    }


def test_the_order_of_parameters_survives_two_rounds():
    model = net()
    order = [name for name, _ in model.named_parameters()]
    sparsenn.factorize(model, 2, include="*.weight")
    sparsenn.factorize(model, 3, include="*.bias")
    assert {len(factors_of(p)) for p in factorized(model).values()} == {2, 3}
    sparsenn.collapse(model)
    assert [name for name, _ in model.named_parameters()] == order
    assert factorized(sparsenn.factorize(model, 2)).keys() == set(order)


@zoo
def test_the_state_loads_strictly_and_bit_for_bit(build, inputs):
    model, _ = build_pair(build)
    other, _ = build_pair(build, 3, "dwf")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(run(other.eval(), inputs()), run(model.eval(), inputs()))


def test_per_sample_gradients_equal_a_loop():
    model, _ = build_pair(lambda: nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)), 4, "preserve")
    x = batch(5, 8)
    values = {name: p.detach() for name, p in model.named_parameters()}
    batched = vmap(grad(lambda v, s: functional_call(model, v, (s[None],)).sin().sum()), in_dims=(None, 0))(values, x)
    for i, sample in enumerate(x):
        model.zero_grad()
        model(sample[None]).sin().sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(batched[name][i], p.grad, rtol=1e-10, atol=1e-12)


def test_a_factorized_net_compiles_to_one_graph():
    model, plain = build_pair(Raw)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = batch(3, 8)
    out = compiled(x)
    torch.testing.assert_close(out, plain(x), rtol=1e-10, atol=1e-12)
    out.sin().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    assert_same_training_signal(model, plain, (x,))
    for a, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-10, atol=1e-12)


@zoo
def test_functional_call_computes_with_the_factors_it_is_given(build, inputs):
    model, _ = build_pair(build)
    run(model, inputs())
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.1)
    given = {name: p.detach() * 1.1 for name, p in model.named_parameters()}
    out = functional_call(model.eval(), given, inputs())
    torch.testing.assert_close(out[0] if isinstance(out, tuple) else out, run(twin, inputs()), rtol=1e-10, atol=1e-12)
