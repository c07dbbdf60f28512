"""What becomes of one network at a time."""

from __future__ import annotations

import copy
import io
from typing import NamedTuple

import pytest
import torch
from small_nets import BOUNDS, assert_same_function, generic, perceptron, zero
from torch import Tensor, nn

import sparsenn
from sparsenn.nn import IndexedConv2d, IndexedLinear, SpectralGate, SpectralLinear
from sparsenn.prune import compact


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in net.named_parameters()}


def test_a_dead_unit_behind_a_sigmoid_is_half_the_weight_that_reads_it():
    net = perceptron(4, 3, 2)
    zero(net[0].weight, 1)
    zero(net[0].bias, 1)
    small = compact(net, torch.randn(1, 4).double())
    assert shapes(small) == {"0.weight": (2, 4), "0.bias": (2,), "2.weight": (2, 2), "2.bias": (2,)}
    torch.testing.assert_close(small[2].bias, net[2].bias + net[2].weight[:, 1] / 2)
    assert_same_function(net, small, torch.randn(50, 4).double())


def test_a_layer_without_bias_gets_one_for_constants():
    net = generic(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2, bias=False)))
    zero(net[0].weight, 0)
    small = compact(net, torch.randn(1, 4).double())
    torch.testing.assert_close(small[2].bias, net[2].weight[:, 0] * net[0].bias[0].sigmoid())
    assert_same_function(net, small, torch.randn(50, 4).double())


def test_a_unit_that_nobody_reads_goes():
    net = perceptron(4, 5, 6, 2)
    zero(net[4].weight, 0, 3, dim=1)
    small = compact(net, torch.randn(1, 4).double())
    assert [small[i].weight.shape for i in (0, 2, 4)] == [(5, 4), (4, 5), (2, 4)]
    assert_same_function(net, small, torch.randn(50, 4).double())


def test_death_spreads_until_nothing_changes():
    net = perceptron(4, 3, 3, 3, 2)
    with torch.no_grad():
        net[2].weight[0] = torch.tensor([1.0, 0, 0])  # reads the dead unit alone: forward
        net[4].weight[0] = torch.tensor([1.0, 0, 0])
        zero(net[6].weight, 1, dim=1)  # and backward
        net[4].weight[[0, 2], 2] = 0
    zero(net[0].weight, 0)
    small = compact(net, torch.randn(1, 4).double())
    assert [small[i].weight.shape for i in (0, 2, 4, 6)] == [(2, 4), (1, 2), (1, 1), (2, 1)]
    assert_same_function(net, small, torch.randn(50, 4).double())


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_a_layer_that_is_dead_as_a_whole_keeps_one_unit(layer):
    net = perceptron(4, 5, 6, 2)
    nn.init.zeros_(net[layer].weight)
    small = compact(net, torch.randn(1, 4).double())
    assert [small[i].weight.shape[0] for i in (0, 2)] == [1, 1]
    x = torch.randn(50, 4).double()
    assert_same_function(net, small, x)
    assert torch.equal(small(x), small(x[:1]).expand(50, -1))


def test_dead_inputs_leave_an_index():
    net = perceptron(6, 4, 2)
    zero(net[0].weight, 0, 2, 3, dim=1)
    small = compact(net, torch.randn(1, 6).double())
    assert isinstance(small[0], IndexedLinear)
    assert small[0].input_index.tolist() == [1, 4, 5]
    assert small[0].weight.shape == (4, 3)
    assert_same_function(net, small, torch.randn(50, 6).double())


def test_a_single_dead_input_goes_too():
    net = perceptron(10, 4, 2)
    zero(net[0].weight, 9, dim=1)
    assert compact(net, torch.randn(1, 10).double())[0].input_index.tolist() == list(range(9))


def test_dead_pixels_and_colours_leave_an_index():
    dense = sparsenn.models.lenet_300_100(image_size=4)
    zero(dense[1].weight, 0, 3, 12, 15, dim=1)
    small = compact(generic_copy(dense), torch.rand(1, 1, 4, 4).double())
    assert small[1].input_index.tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14]
    conv = generic(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()))
    zero(conv[0].weight, 1, dim=1)
    small = compact(conv, torch.rand(1, 3, 5, 5).double())
    assert small[0].input_index.tolist() == [0, 2]
    assert_same_function(conv, small, torch.rand(2, 3, 5, 5).double())


def generic_copy(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).double().eval()


def test_dead_outputs_are_constants_of_the_last_layer():
    net = perceptron(4, 5, 6)
    zero(net[2].weight, 1, 4)
    small = compact(net, torch.randn(1, 4).double())
    assert small[2].weight.shape == (4, 5)
    assert small[2].output_index.tolist() == [0, 2, 3, 5]
    assert_same_function(net, small, torch.randn(50, 4).double())


def test_one_dead_output_of_many_is_not_worth_an_index():
    net = perceptron(4, 5, 6)
    zero(net[2].weight, 1)
    small = compact(net, torch.randn(1, 4).double())
    assert type(small[2]) is nn.Linear
    assert_same_function(net, small, torch.randn(50, 4).double())


def chain(padding: int, mode: str = "zeros") -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Sigmoid(),
        nn.Conv2d(8, 4, 3, padding=padding, padding_mode=mode),
        nn.ReLU(),
    )
    net = generic(net)
    zero(net[1].weight, 1, 2, 5)  # gamma = 0, beta is not
    return net


@pytest.mark.parametrize(("padding", "mode"), [(0, "zeros"), (1, "circular"), (1, "reflect"), (1, "replicate")])
def test_constants_of_a_normalization_become_a_bias(padding, mode):
    net = chain(padding, mode)
    small = compact(net, torch.randn(1, 3, 9, 9).double())
    assert (small[0].out_channels, small[1].num_features, small[3].in_channels) == (5, 5, 5)
    extra = (net[3].weight[:, [1, 2, 5]].sum((2, 3)) * net[1].bias[[1, 2, 5]].sigmoid()).sum(1)
    torch.testing.assert_close(small[3].bias, net[3].bias + extra)
    assert_same_function(net, small, torch.randn(2, 3, 13, 7).double())


def test_constants_before_zeros_of_a_padding_become_one_channel():
    net = chain(1)
    small = compact(net, torch.randn(1, 3, 9, 9).double())
    assert (small[0].out_channels, small[1].num_features, small[3].in_channels) == (6, 6, 6)
    assert torch.equal(small[3].bias, net[3].bias)
    assert_same_function(net, small, torch.randn(2, 3, 13, 7).double())


def test_constants_that_are_zero_need_no_channel_before_a_padding():
    net = chain(1)
    net[2] = nn.ReLU()
    with torch.no_grad():
        net[1].bias[[1, 2, 5]] = -1.0
    small = compact(net, torch.randn(1, 3, 9, 9).double())
    assert (small[0].out_channels, small[1].num_features, small[3].in_channels) == (5, 5, 5)
    assert_same_function(net, small, torch.randn(2, 3, 13, 7).double())


def test_a_normalization_by_the_batch_makes_its_shift_of_a_constant():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Sigmoid(), nn.Conv2d(4, 2, 3))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    net = net.double().eval()
    zero(net[0].weight, 1)
    zero(norm.weight, 3)
    small = compact(net, torch.randn(2, 2, 7, 7).double())
    assert (small[0].out_channels, small[1].num_features) == (2, 2)
    extra = (net[3].weight.sum((2, 3)) * norm.bias.sigmoid())[:, [1, 3]].sum(1)
    torch.testing.assert_close(small[3].bias, net[3].bias + extra)
    assert_same_function(net, small, torch.randn(5, 2, 7, 7).double())


def test_a_gate_that_is_zero_closes_a_channel():
    net = generic(nn.Sequential(nn.Conv2d(2, 4, 3), SpectralGate(4), nn.Sigmoid(), nn.Conv2d(4, 2, 3)))
    zero(net[0].weight, 1)
    zero(net[1].lambda_out, 3)
    small = compact(net, torch.randn(1, 2, 7, 7).double())
    assert (small[0].out_channels, small[1].num_features, small[3].in_channels) == (2, 2, 2)
    assert_same_function(net, small, torch.randn(5, 2, 7, 7).double())


@pytest.mark.parametrize("train_lambda_in", [False, True])
def test_spectral_layers_become_plain_and_lose_the_nodes_without_eigenvalue(train_lambda_in):
    net = sparsenn.spectralize(perceptron(4, 8, 5, 2))
    zero(net[0].lambda_out, 0, 3, 4)
    if train_lambda_in:
        net[0] = generic(SpectralLinear(4, 8, train_lambda_in=True))
        zero(net[0].phi, 0, 3, 4)
    small = compact(net, torch.randn(1, 4).double())
    assert type(small[0]) is nn.Linear
    assert [small[i].weight.shape for i in (0, 2, 4)] == [(5, 4), (5, 5), (2, 5)]
    assert isinstance(net[0], SpectralLinear)
    assert_same_function(net, small, torch.randn(50, 4).double())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.back = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.back(torch.relu(self.inner(x)))))


def test_a_stream_keeps_what_is_alive_in_any_branch_and_a_branch_computes_only_its_own():
    net = generic(Block())
    zero(net.stem.weight, 0, 1, 2, 3)
    zero(net.back.weight, 0, 4, 5, 6, 7)
    for bias in (net.stem.bias, net.back.bias):
        nn.init.zeros_(bias)
    small = compact(net, torch.randn(1, 2, 5, 5).double())
    assert shapes(small)["stem.weight"] == (4, 2, 1, 1)
    assert shapes(small)["inner.weight"] == (6, 4, 3, 3)
    assert shapes(small)["back.weight"] == (3, 6, 3, 3)
    assert shapes(small)["head.weight"] == (3, 7, 1, 1)  # channel 0 is dead in both
    assert isinstance(small.stem, IndexedConv2d)
    assert small.stem.outputs == small.back.outputs == small.inner.inputs == 7
    assert type(small.head) is nn.Conv2d
    assert_same_function(net, small, torch.randn(2, 2, 9, 4).double())


def test_a_group_goes_when_nothing_of_it_is_left():
    net = generic(nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 9, 3, padding=1, groups=3), nn.Conv2d(9, 2, 1)))
    zero(net[0].weight, 0, 1, 2)
    zero(net[0].bias, 0, 1, 2)  # the first group, and half of the second
    small = compact(net, torch.randn(1, 2, 5, 5).double())
    assert (small[2].groups, small[2].in_channels, small[2].out_channels) == (2, 4, 6)
    assert_same_function(net, small, torch.randn(2, 2, 5, 5).double())


def test_a_channel_of_a_depthwise_convolution_goes():
    net = generic(nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 5, 3, groups=5), nn.Conv2d(5, 2, 1)))
    zero(net[0].weight, 4)
    zero(net[3].weight, 1, dim=1)
    small = compact(net, torch.randn(1, 2, 5, 5).double())
    assert (small[0].out_channels, small[2].groups, small[3].in_channels) == (3, 3, 3)
    assert_same_function(net, small, torch.randn(2, 2, 5, 5).double())


def test_weights_up_to_the_threshold_are_zero():
    net = perceptron(4, 3, 2)
    with torch.no_grad():
        net[0].weight[1] = torch.tensor([1e-3, -1e-3, 5e-4, 0], dtype=torch.float64)
    x = torch.randn(1, 4).double()
    assert compact(net, x, threshold=9e-4)[0].out_features == 3
    small = compact(net, x, threshold=1e-3)
    assert small[0].out_features == 2
    assert net[0].weight[1, 0] == 1e-3
    assert_same_function(sparsenn.collapse(copy.deepcopy(net), 1e-3), small, torch.randn(50, 4).double())


@pytest.mark.parametrize(("round_to", "widths"), [(1, (3, 5)), (2, (4, 6)), (4, (4, 8)), (8, (8, 8)), (64, (10, 8))])
def test_widths_are_rounded_up_but_not_beyond_what_there_was(round_to, widths):
    net = perceptron(64, 10, 8, 64)
    zero(net[0].weight, 0, 1, 2, 3, 4, 8, 9)
    zero(net[4].weight, 1, 2, 6, dim=1)
    small = compact(net, torch.randn(1, 64).double(), round_to=round_to)
    assert (small[0].out_features, small[2].out_features) == widths
    assert (small[2].in_features, small[4].in_features) == widths
    if round_to == 64:  # what stays for the width's sake is zero
        assert not small[2].weight[[1, 2, 6]].any()
        assert not small[2].bias[[1, 2, 6]].any()
        assert not small[4].weight[:, [1, 2, 6]].any()
    assert_same_function(net, small, torch.randn(50, 64).double())


def test_factors_are_multiplied_out_first():
    net = perceptron(4, 3, 2)
    zero(net[0].weight, 1)
    factorized = sparsenn.factorize(copy.deepcopy(net), depth=3, factor_init="root")
    small = compact(factorized, torch.randn(1, 4).double())
    assert type(small[0]) is nn.Linear
    assert small[0].out_features == 2
    assert_same_function(factorized, small, torch.randn(50, 4).double())
    assert len(list(factorized.parameters())) == 12


def test_a_compacted_network_can_be_factorized_and_compacted_again():
    net = perceptron(6, 8, 4)
    zero(net[0].weight, 0, 1, dim=1)
    zero(net[2].weight, 0, 1)
    once = compact(net, torch.randn(1, 6).double())
    factorized = sparsenn.factorize(once, depth=2, factor_init="root")
    zero(factorized[0].parametrizations.weight.original0, 5)
    again = compact(factorized, torch.randn(1, 6).double())
    assert type(again[0]) is type(again[2]) is IndexedLinear
    assert (again[0].weight.shape, again[2].weight.shape) == ((7, 4), (2, 7))
    assert_same_function(factorized, again, torch.randn(50, 6).double())


@pytest.mark.parametrize("dtype", BOUNDS)
def test_every_dtype(dtype, device):
    torch.manual_seed(1)
    net = chain(1).to(device, dtype)
    x = torch.randn(2, 3, 9, 9).to(device, dtype)
    small = compact(net, x)
    assert small[0].out_channels == 6
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert_same_function(net, small, x)


def test_no_sample_and_no_width():
    net = perceptron(4, 3, 2)
    zero(net[0].weight, 1)
    small = compact(net, torch.randn(0, 4).double())
    assert small[0].out_features == 2
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Sequential(nn.Linear(3, 0), nn.ReLU(), nn.Linear(0, 2)).double().eval()
    assert_same_function(empty, compact(empty, torch.randn(1, 3).double()), torch.randn(5, 3).double())


def test_unbatched_inputs():
    net = generic(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 3, 3), nn.Flatten(0), nn.Linear(27, 2)))
    zero(net[0].weight, 1)
    small = compact(net, torch.randn(2, 7, 7).double())
    assert small[0].out_channels == 3
    assert_same_function(net, small, torch.randn(2, 7, 7).double())


def test_a_lone_layer():
    layer = generic(nn.Linear(6, 4))
    zero(layer.weight, 0, 5, dim=1)
    small = compact(layer, torch.randn(1, 6).double())
    assert small.input_index.tolist() == [1, 2, 3, 4]
    assert_same_function(layer, small, torch.randn(5, 6).double())


def test_names_order_modes_and_gradients_stay():
    net = perceptron(4, 3, 2)
    zero(net[0].weight, 1)
    net[0].bias.requires_grad_(False)
    net.train()
    net[2].eval()
    small = compact(net, torch.randn(1, 4).double())
    assert list(small.state_dict()) == list(net.state_dict())
    assert [m.training for m in small.modules()] == [m.training for m in net.modules()]
    assert all(m.training for m in (net, net[0], net[1]))
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in net.parameters()]


def test_memory_formats_stay():
    net = chain(0).to(memory_format=torch.channels_last)
    small = compact(net, torch.randn(1, 3, 9, 9).double())
    assert small[3].weight.shape == (4, 5, 3, 3)
    assert small[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_copy_can_be_trained_and_saved():
    net = perceptron(6, 4, 8)
    zero(net[0].weight, 0, 3, dim=1)
    zero(net[2].weight, 0, 1, 2)
    small = compact(net, torch.randn(1, 6).double())
    x = torch.randn(5, 6).double()
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(x), small(x))
    expected = torch.autograd.grad(net(x).square().sum(), [net[0].weight, net[2].weight])
    found = torch.autograd.grad(small(x).square().sum(), [small[0].weight, small[2].weight])
    torch.testing.assert_close(found[0], expected[0][:, [1, 2, 4, 5]])
    torch.testing.assert_close(found[1], expected[1][3:])


class Remembers(nn.Module):
    """Holds its weights a second time, counts its calls, and makes a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.weights = [self.first.weight, self.last.weight]
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.last(torch.sigmoid(self.first(x))) * torch.tensor([1.0, 2.0])


def test_the_model_stays_whatever_its_forward_does_and_shares_nothing():
    net = generic(Remembers())
    zero(net.first.weight, 1, 3)
    small = compact(net, torch.randn(1, 4).double())
    assert small.first.out_features == 4
    assert net.calls == small.calls == 0
    assert vars(small).keys() == vars(net).keys()
    own = {tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    assert not own & {tensor.data_ptr() for tensor in (*small.weights, *small.parameters(), *small.buffers())}
    assert_same_function(net, small, torch.randn(9, 4).double())


def test_inside_inference_mode_too():
    net = perceptron(4, 3, 2)
    zero(net[0].weight, 1)
    with torch.inference_mode():
        small = compact(net, torch.randn(1, 4).double())
    assert small[0].out_features == 2
    small(torch.randn(5, 4).double()).sum().backward()
    assert small[0].weight.grad is not None
    assert_same_function(net, small, torch.randn(5, 4).double())


class Pair(NamedTuple):
    y: Tensor
    hidden: Tensor


class Several(nn.Module):
    """Outputs of several kinds, an argument with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, scale: float = 2.0) -> dict[str, object]:
        y = self.last(torch.relu(self.first(x)) * scale)
        return {"y": y, "pair": (y.argmax(1), y > 0), "named": Pair(y, x), "name": "y"}


def test_outputs_of_several_kinds():
    net = generic(Several())
    zero(net.first.weight, 1, 3)
    small = compact(net, torch.randn(1, 4).double())
    x = torch.randn(9, 4).double()
    old, new = net(x), small(x)
    assert small.first.out_features == 4
    assert torch.equal(old["pair"][0], new["pair"][0])
    assert torch.equal(old["pair"][1], new["pair"][1])
    torch.testing.assert_close(new["y"], old["y"], rtol=1e-12, atol=1e-12)
    assert new["name"] == "y"
    assert torch.equal(new["named"].hidden, x)
    assert torch.equal(new["named"].y, new["y"])
