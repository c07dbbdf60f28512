"""Where a tensor must keep its width, and where it need not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from small_nets import assert_same_function, generic, zero
from torch import Tensor, nn
from torch.nn import functional as F

from sparsenn.nn import IndexedConv2d
from sparsenn.prune import compact


class Mixed(nn.Module):
    """Between two layers something that needs every unit."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 8), middle, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(torch.relu(self.first(x))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Chunks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return torch.cat([right, left], -1) / x.shape[-1]


@pytest.mark.parametrize(
    "middle",
    [nn.Softmax(-1), nn.LayerNorm(8), Attention(), Recurrent(), Chunks(), nn.GroupNorm(1, 5)],
    ids=lambda middle: type(middle).__name__,
)
def test_what_mixes_units_gets_all_of_them(middle):
    net = generic(Mixed(middle))
    zero(net.first.weight, 0, 1, 2, 5)
    small = compact(net, torch.randn(1, 5, 4).double())
    assert small.first.weight.shape == (4, 4)  # computed; the others are filled in
    assert small.first.outputs == 8
    assert_same_function(net, small, torch.randn(3, 5, 4).double())


class Hardcoded(nn.Module):
    """A width as a number in the code, one that is read from a tensor, and one that is left open."""

    def __init__(self, sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.conv, self.fc = nn.Conv2d(2, 6, 3), nn.Linear(54, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x))
        return self.fc(x.reshape(self.sizes(x)))


@pytest.mark.parametrize(
    ("sizes", "width"),
    [
        (lambda x: (-1, 54), 6),
        (lambda x: (x.size(0), 54), 6),
        (lambda x: (x.shape[0], x.shape[1] * 9), 6),
        (lambda x: (x.shape[0], x.size(1) * x.size(2) * x.size(3)), 6),
        (lambda x: (x.shape[0], -1), 4),
        (lambda x: (x.size(0), -1), 4),
    ],
)
def test_a_width_in_the_code_stays_and_the_layers_beside_it_are_indexed(sizes, width):
    net = generic(Hardcoded(sizes))
    zero(net.conv.weight, 0, 3)
    small = compact(net, torch.randn(1, 2, 5, 5).double())
    assert small.conv.weight.shape[0] == 4
    assert small.fc.weight.shape == (2, 36)
    assert getattr(small.conv, "outputs", 4) == width
    assert_same_function(net, small, torch.randn(4, 2, 5, 5).double())


@pytest.mark.parametrize("width", [lambda x: x.shape[1], lambda x: x.size(-1), lambda x: x.size()[1], lambda x: x.numel()])
def test_a_number_of_units_that_is_read_stays(width):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.last(x) * width(x)

    net = generic(Scaled())
    zero(net.first.weight, 0, 3)
    small = compact(net, torch.randn(1, 4).double())
    assert small.first.weight.shape == (4, 4)
    assert_same_function(net, small, torch.randn(5, 4).double())


class Sized(nn.Module):
    """Computes with a size of its input."""

    def __init__(self, middle: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 8), middle, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(torch.sigmoid(self.first(x)), x))


@pytest.mark.parametrize(
    "middle",
    [
        lambda h, x: h * x.shape[0],
        lambda h, x: h + x.size(0),
        lambda h, x: x.shape[1] - h,
        lambda h, x: h / math.sqrt(x.shape[1]),
        lambda h, x: h.clamp(max=0.1 * x.size(0)),
        lambda h, x: h / x.numel(),
    ],
    ids=["times", "plus", "minus", "root", "clamp", "numel"],
)
def test_numbers_made_of_the_example_s_sizes_are_no_constants(middle):
    net = generic(Sized(middle))
    zero(net.first.weight, 1, 3)
    small = compact(net, torch.randn(2, 5, 4).double())
    for shape in ((2, 5, 4), (3, 5, 4), (2, 9, 4), (1, 1, 4)):
        assert_same_function(net, small, torch.randn(shape).double())


class Unpacked(nn.Module):
    """Takes a shape apart, and needs some of it."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        self.conv, self.fc = nn.Conv2d(2, 6, 3), nn.Linear(54, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x))
        samples, channels, _, _ = x.shape
        return self.fc(x.reshape(samples, -1)) * (channels if self.reads else 1)


@pytest.mark.parametrize("reads", [False, True])
def test_a_width_that_is_unpacked_stays_only_where_it_is_read(reads):
    net = generic(Unpacked(reads))
    zero(net.conv.weight, 0, 3)
    small = compact(net, torch.randn(1, 2, 5, 5).double())
    assert type(small.conv) is (IndexedConv2d if reads else nn.Conv2d)
    assert_same_function(net, small, torch.randn(4, 2, 5, 5).double())


class Linked(nn.Module):
    """Two layers, a call of both their outputs, a third."""

    def __init__(self, call) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(torch.sigmoid(self.left(x)), torch.sigmoid(self.right(x))))


CALLS = {
    "add other": (lambda x, y: torch.add(x, other=y), 4),
    "add alpha": (lambda x, y: torch.add(x, y, alpha=2), 6),
    "cat axis": (lambda x, y: torch.cat([x[:, None], y[:, None]], axis=1).mean(axis=1, keepdims=False), 6),
    "largest": (lambda x, y: x.unsqueeze(1).max(1)[0] + y, 6),
    "pooling with indices": (lambda x, y: F.max_pool1d((x + y)[:, None], 1, return_indices=True)[0].flatten(1), 6),
    "to integers": (lambda x, y: (4 * (x + y)).to(torch.int32).to(x.dtype), 6),
    "long names": (lambda x, y: torch.true_divide(x.multiply(2).subtract(y), 3).divide_(2), 4),
    "in place": (lambda x, y: F.relu_(x + y), 4),
    "to float": (lambda x, y: (x + y).float().double(), 4),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_in_every_spelling(name):
    call, width = CALLS[name]
    torch.manual_seed(0)
    net = generic(Linked(call))
    for layer in (net.left, net.right):
        zero(layer.weight, 1, 4)
    small = compact(net, torch.randn(1, 4).double())
    assert small.last.weight.shape == (2, width)
    assert_same_function(net, small, torch.randn(9, 4).double())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.again(torch.relu(self.again(torch.relu(self.first(x)))))))


def test_a_layer_that_is_called_twice_stays_as_it_is():
    net = generic(Twice())
    for layer in (net.first, net.again, net.last):
        zero(layer.weight, 0, 1, 2)
    small = compact(net, torch.randn(1, 4).double())
    assert small.first.weight.shape == (5, 4)
    assert small.again.weight.shape == (8, 8)
    assert_same_function(net, small, torch.randn(9, 4).double())


def test_tied_layers_stay_tied():
    net = generic(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    net[2].weight = net[0].weight
    zero(net[0].weight, 0)
    small = compact(net, torch.randn(1, 4).double())
    assert small[0].weight is small[2].weight
    assert_same_function(net, small, torch.randn(9, 4).double())


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(4, 6), nn.Linear(4, 6, bias=False), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sigmoid(self.left(x)) * self.right(x))


def test_a_factor_that_is_zero_kills_the_other():
    net = generic(Product())
    zero(net.right.weight, 1, 4)
    zero(net.left.weight, 0)  # a constant, but not zero: it scales the other
    small = compact(net, torch.randn(1, 4).double())
    assert (small.right.weight.shape[0], small.last.weight.shape[1]) == (4, 4)
    assert small.left.weight.shape[0] == 3
    assert_same_function(net, small, torch.randn(9, 4).double())
