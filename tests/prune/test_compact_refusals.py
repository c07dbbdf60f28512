"""What compaction refuses, by name, and what it never returns."""

from __future__ import annotations

import pytest
import torch
from small_nets import assert_same_function, generic, zero
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as masks

from sparsenn.prune import apply_masks, compact


def test_normalization_in_training_mode_is_refused_where_a_constant_goes_through_it():
    net = generic(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))).train()
    zero(net[1].weight, 2)
    assert compact(net, torch.randn(1, 2, 7, 7).double())[0].out_channels == 3  # gamma = 0: beta in both modes
    zero(net[0].weight, 1, 2)
    with pytest.raises(
        ValueError, match=r"compact: '1' \(BatchNorm2d\) is in training mode, and constant channels reach it \(1\)"
    ):
        compact(net, torch.randn(1, 2, 7, 7).double())


class Calls(nn.Module):
    """A layer, then a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner(x), x)


def branch(y: Tensor, x: Tensor) -> Tensor:
    return y if y.sum() > 0 else -y


def by_type(y: Tensor, x: Tensor) -> Tensor:
    return y if isinstance(x, Tensor) else -y


def late(y: Tensor, x: Tensor) -> Tensor:
    z = torch.relu_(y)
    return z + y


class Widths(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).unflatten(1, (2, 2)).flatten(1) * torch.ones(self.last.in_features).sum()


REFUSED = {
    "branch": (Calls(branch), "'inside' \\(Calls\\) cannot be traced by torch.fx"),
    "unknown": (Calls(lambda y, x: torch.fft.fft(y).real), "'fft_fft' \\(fft_fft\\) in 'inside' is unknown to compaction"),
    "method": (Calls(lambda y, x: y.lgamma()), "'lgamma' \\(lgamma\\) in 'inside' is unknown to compaction"),
    "in place": (Calls(late), "'relu_' changes 'inside_inner' in place, which is read again later"),
    "random": (Calls(lambda y, x: F.dropout(y)), "'dropout' \\(dropout\\) in 'inside' is random in eval mode too"),
    "module": (nn.CrossMapLRN2d(3), "'inside' \\(CrossMapLRN2d\\) is unknown to compaction"),
    "weight norm": (
        parametrizations.weight_norm(nn.Linear(4, 4)),
        "'inside' \\(ParametrizedLinear\\) carries a parametrization; remove it first with torch.nn.utils.parametrize",
    ),
    "our mask": (
        apply_masks(nn.Linear(4, 4), {"weight": torch.eye(4) > 0}),
        "'inside' \\(ParametrizedLinear\\) carries a parametrization; remove it first with sparsenn.prune.remove",
    ),
    "mask": (masks.random_unstructured(nn.Linear(4, 4), "weight", 0.5), "'inside' \\(Linear\\) carries a forward hook"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_named(name):
    inside, message = REFUSED[name]
    net = nn.Sequential()
    net.add_module("before", nn.Linear(4, 4))
    net.add_module("inside", inside)
    x = torch.randn(2, 4) if name != "module" else torch.randn(1, 4, 4, 4)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=f"^compact: {message}"):
        compact(net.eval(), x)
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in before.items())


class Counts(nn.Module):
    """Reads a width where no trace shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) / self.first.out_features


def test_a_copy_that_computes_something_else_is_never_returned():
    net = generic(Counts())
    assert_same_function(net, compact(net, torch.randn(1, 4).double()), torch.randn(5, 4).double())
    zero(net.first.weight, 2)
    with pytest.raises(ValueError, match="gives another output for example_input; the forward computes with widths"):
        compact(net, torch.randn(1, 4).double())


class Hidden(nn.Module):
    """Changes a tensor in place under another name, which a trace takes for a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = x
        y += 1
        return x * y


def test_a_trace_that_is_not_what_runs_is_noticed():
    with pytest.raises(ValueError, match="give another output for example_input than the model"):
        compact(generic(Hidden()), torch.randn(1, 4).double())


def test_a_hook_of_the_model_itself_is_refused():
    net = generic(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    net.register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(ValueError, match=r"^compact: the model \(Sequential\) carries a forward hook"):
        compact(net, torch.randn(1, 4).double())


class Masked(nn.Module):
    """An argument that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.first(x)
        return x if mask is None else x * mask


def test_an_example_that_does_not_fit_is_named_with_the_place():
    net = Masked().eval()
    with pytest.raises(ValueError, match=r"^compact: 'first' \(Linear\) fails on example_input: .*mat1 and mat2 shapes"):
        compact(net, (torch.randn(1, 3), torch.ones(4)))
    with pytest.raises(ValueError, match=r"^compact: 'mul' \(mul\) fails on example_input: The size of tensor"):
        compact(net, (torch.randn(1, 4), torch.ones(3)))
    with pytest.raises(ValueError, match=r"^compact: the model cannot be traced by torch.fx: .* missing 1 required .* 'x'"):
        compact(net, ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1.0}, r"threshold is -1.0; it takes a number >= 0"),
        ({"threshold": float("nan")}, r"threshold is nan; it takes a number >= 0"),
        ({"round_to": 0}, r"round_to is 0; it takes an int >= 1"),
        ({"round_to": 2.0}, r"round_to is 2.0; it takes an int >= 1"),
    ],
)
def test_settings_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=f"^compact: {message}"):
        compact(nn.Linear(2, 2), torch.randn(1, 2), **options)


def test_a_model_without_values_is_refused():
    with pytest.raises(ValueError, match=r"'0\.weight' is not initialized yet; run one batch"):
        compact(nn.Sequential(nn.LazyLinear(3)), torch.randn(1, 2))
    with pytest.raises(ValueError, match="'weight' is on the meta device"):
        compact(nn.Linear(2, 2, device="meta"), torch.randn(1, 2))


@pytest.mark.parametrize("given", [(), (None,), (True,)], ids=str)
def test_arguments_that_are_no_tensors_are_what_they_are(given):
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, skip=None, *, scale: float | None = None) -> Tensor:
            h = torch.relu(self.first(x))
            if skip is not None:
                h = -h
            return self.last(h if scale is None else scale * h)

    net = generic(Skips())
    zero(net.first.weight, 1, 3)
    x = torch.randn(5, 4).double()
    small = compact(net, (x[:1], *given))
    assert small.first.out_features == 4
    torch.testing.assert_close(small(x, *given), net(x, *given))


def test_a_choice_by_type_is_noticed():
    with pytest.raises(ValueError, match="than the model; its forward does what a trace does not show"):
        compact(generic(Calls(by_type)), torch.randn(1, 4).double())


def test_a_layer_whose_forward_was_replaced_is_named():
    net = generic(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    net[0].forward = lambda x: 2 * nn.Linear.forward(net[0], x)
    with pytest.raises(ValueError, match=r"'0' \(Linear\) cannot be traced by torch.fx: its forward was replaced"):
        compact(net, torch.randn(1, 4).double())
