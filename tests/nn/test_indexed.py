import copy

import pytest
import torch
from torch import nn

from sparsenn.nn import IndexedConv1d, IndexedConv2d, IndexedConv3d, IndexedLinear

READ, WRITTEN = torch.tensor([4, 0, 2]), torch.tensor([1, 5])
FILL = torch.tensor([0.5, 9.0, -1.0, 0.0, 2.0, 9.0])
CASES = {
    IndexedLinear: (nn.Linear, {}, (2, 3, 5), -1),
    IndexedConv1d: (nn.Conv1d, {"kernel_size": 3, "padding": 1}, (2, 5, 7), 1),
    IndexedConv2d: (nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 5, 7, 6), 1),
    IndexedConv3d: (nn.Conv3d, {"kernel_size": 2}, (2, 5, 3, 4, 3), 1),
}


@pytest.fixture(params=CASES, ids=lambda kind: kind.__name__)
def case(request):
    plain, settings, shape, axis = CASES[request.param]
    indices = {"inputs": 5, "input_index": READ, "output_index": WRITTEN, "output_fill": FILL}
    layer = request.param(3, 2, dtype=torch.float64, **settings, **indices)
    return layer, plain, settings, torch.randn(shape, dtype=torch.float64), axis


def test_reads_what_it_is_told_and_fills_in_the_rest(case):
    layer, plain, settings, x, axis = case
    reference = plain(3, 2, dtype=torch.float64, **settings)
    reference.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    computed = reference(x.movedim(axis, 0)[READ].movedim(0, axis))
    y = layer(x)
    assert y.shape[axis] == 6
    for unit, value in enumerate(FILL.tolist()):
        found = y.select(axis, unit)
        place = WRITTEN.tolist().index(unit) if unit in WRITTEN else None
        expected = torch.full_like(found, value) if place is None else computed.select(axis, place)
        torch.testing.assert_close(found, expected)


def test_the_plain_layer_computes_the_same(case):
    layer, plain, _, x, _ = case
    expected = layer(x)
    layer.become_plain()
    assert type(layer) is plain
    assert layer.weight.shape[:2] == (6, 5)
    assert list(layer.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(layer(x), expected)
    assert "inputs" not in repr(layer)


def test_without_a_bias_the_plain_layer_has_one_only_for_constants():
    layer = IndexedLinear(2, 1, bias=False, output_index=torch.tensor([1]), output_fill=torch.zeros(3))
    layer.become_plain()
    assert layer.bias is None
    layer = IndexedLinear(2, 1, bias=False, output_index=torch.tensor([1]), output_fill=torch.tensor([0.0, 5.0, 3.0]))
    layer.become_plain()
    assert layer.bias.tolist() == [0.0, 0.0, 3.0]


def test_unbatched_inputs(case):
    layer, _, _, x, _ = case
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_gradients_are_those_of_the_plain_layer(case):
    layer, _, _, x, _ = case
    plain = copy.deepcopy(layer)
    plain.become_plain()
    x.requires_grad_()
    weight = torch.randn_like(layer(x))
    found = torch.autograd.grad((layer(x) * weight).sum(), [x, layer.weight, layer.bias])
    full = torch.autograd.grad((plain(x) * weight).sum(), [x, plain.weight, plain.bias])
    torch.testing.assert_close(found[0], full[0])
    torch.testing.assert_close(found[1], full[1][WRITTEN][:, READ])
    torch.testing.assert_close(found[2], full[2][WRITTEN])


def test_the_state_holds_the_indices():
    kind = {"inputs": 5, "input_index": READ, "output_index": WRITTEN}
    layer = IndexedLinear(3, 2, **kind, output_fill=FILL)
    other = IndexedLinear(3, 2, inputs=5, input_index=READ.flip(0), output_index=WRITTEN, output_fill=torch.zeros(6))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(other(x), layer(x))
    assert repr(layer) == "IndexedLinear(in_features=3, out_features=2, bias=True, inputs=5, outputs=6)"


def test_autocast_fills_in_its_dtype():
    layer = IndexedLinear(3, 2, inputs=5, input_index=READ, output_index=WRITTEN, output_fill=FILL)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(4, 5))
    assert y.dtype == torch.bfloat16
    assert y[:, 4].tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_index": READ}, "inputs and input_index are given together"),
        ({"inputs": 5}, "inputs and input_index are given together"),
        ({"output_index": WRITTEN}, "output_index and output_fill are given together"),
        ({"inputs": 4, "input_index": READ}, r"input_index is \[4, 0, 2\]; it takes distinct integers from 0 to 3"),
        (
            {"inputs": 5, "input_index": torch.tensor([1, 1, 2])},
            r"input_index is \[1, 1, 2\]; it takes distinct integers from 0 to 4",
        ),
        (
            {"inputs": 5, "input_index": torch.tensor([1, 2])},
            r"input_index .* shape \(2,\); it takes int64, \(3,\)",
        ),
        ({"inputs": 5, "input_index": READ.float()}, "input_index has dtype torch.float32"),
        ({"output_index": WRITTEN - 2, "output_fill": FILL}, "output_index is .* from 0 to 5"),
    ],
)
def test_wrong_indices_are_named(options, message):
    with pytest.raises(ValueError, match=f"^IndexedLinear: {message}"):
        IndexedLinear(3, 2, **options)


def test_groups_are_refused():
    with pytest.raises(ValueError, match=r"^IndexedConv2d: groups is 2; it takes 1"):
        IndexedConv2d(4, 2, 1, groups=2)
