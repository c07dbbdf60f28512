import pytest
import torch
from torch import nn
from torch.nn import functional

from sparsenn.nn import PatchConv1d

SIZES = [(1, 1, 3, 12), (4, 4, 2, 4), (4, 1, 2, 2), (3, 5, 4, 19), (2, 3, 1, 7)]


def by_windows(layer: PatchConv1d, x: torch.Tensor) -> torch.Tensor:
    """Every patch convolved by itself with the filter that is its own."""
    k = layer.kernel_size
    columns = []
    for p in range(x.shape[-1] // k):
        f = p % layer.filters
        bias = None if layer.bias is None else layer.bias[f]
        columns.append(functional.conv1d(x[..., p * k : (p + 1) * k], layer.weight[f], bias))
    return torch.cat(columns, dim=-1)


@pytest.mark.parametrize(("channels", "out", "k", "length"), SIZES)
@pytest.mark.parametrize("filters", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_each_patch_meets_its_filter(channels, out, k, length, filters, bias):
    layer = PatchConv1d(channels, out, k, bias, filters=filters, dtype=torch.float64)
    x = torch.randn(5, channels, length, dtype=torch.float64, requires_grad=True)
    expected = by_windows(layer, x)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer(x[0]), y[0])
    assert layer(x[:0]).shape == (0, out, length // k)
    upstream = torch.randn_like(y)
    leaves = [x, *layer.parameters()]
    for found, wanted in zip(
        torch.autograd.grad(y, leaves, upstream, allow_unused=True),
        torch.autograd.grad(expected, leaves, upstream, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_one_filter_is_a_convolution_of_that_stride_with_the_same_start():
    torch.manual_seed(3)
    plain = nn.Conv1d(4, 3, 2, stride=2)
    torch.manual_seed(3)
    layer = PatchConv1d(4, 3, 2)
    assert torch.equal(layer.weight[0], plain.weight)
    assert torch.equal(layer.bias[0], plain.bias)
    x = torch.randn(6, 4, 9)
    torch.testing.assert_close(layer(x), plain(x))


def test_gradients_by_sample():
    layer = PatchConv1d(2, 3, 2, filters=2, dtype=torch.float64)
    x = torch.randn(4, 2, 8, dtype=torch.float64)

    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample,)).square().sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        alone = torch.autograd.grad(layer(sample).square().sum(), list(layer.parameters()))
        torch.testing.assert_close([grads["weight"][i], grads["bias"][i]], list(alone))


@pytest.mark.parametrize("size", ["in_channels", "out_channels", "kernel_size", "filters"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_wrong_size_is_named(size, value):
    with pytest.raises(ValueError, match=f"{size} is {value!r}; it takes an int, 1 or more"):
        PatchConv1d(**{"in_channels": 1, "out_channels": 1, "kernel_size": 1, size: value})


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4, 5), (5, 3, 8), (5, 2, 1)])
def test_an_input_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="the input has shape"):
        PatchConv1d(2, 1, 2)(torch.zeros(shape))
