"""PyTorch's own transformers: the neurons of a block go, all else stays, on the fast path and beside it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from sparsenn.prune import compact

ENCODER, DECODER = nn.TransformerEncoderLayer, nn.TransformerDecoderLayer
HOW = {"batch_first": True, "dim_feedforward": 20}


class Pair(nn.Module):
    """Source and target from one input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x.flip(1))


def blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (ENCODER, DECODER))]


@torch.no_grad()
def maimed(model: nn.Module, constants: bool = True) -> nn.Module:
    """12 of 20 neurons of a block are constants, 3 are not read, and some weights beside them are zero rows and columns."""
    for block in blocks(model):
        block.linear1.weight[:12] = 0
        if block.linear1.bias is not None:
            block.linear1.bias.uniform_(-1, 1) if constants else block.linear1.bias.zero_()
        block.linear2.weight[:, 17:] = 0
        block.linear1.weight[:, 1:6] = 0
        block.linear2.weight[:5] = 0
    return model.eval()


MODELS = {
    "block": lambda: ENCODER(8, 2, **HOW),
    "gelu first": lambda: ENCODER(8, 2, activation="gelu", norm_first=True, **HOW),
    "module": lambda: ENCODER(8, 2, activation=nn.SiLU(), **HOW),
    "no biases": lambda: ENCODER(8, 2, bias=False, activation=F.sigmoid, **HOW),
    "encoder": lambda: nn.TransformerEncoder(ENCODER(8, 2, **HOW), 2),
    "decoder": lambda: Pair(nn.TransformerDecoder(DECODER(8, 2, **HOW), 2)),
    "transformer": lambda: Pair(nn.Transformer(8, 2, 1, 2, **HOW)),
    "in a net": lambda: nn.Sequential(nn.Linear(3, 8), ENCODER(8, 2, **HOW), nn.Flatten(1), nn.Linear(32, 2)),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_block_loses_its_constant_and_unread_neurons_and_stays_the_same_function(build):
    torch.manual_seed(0)
    model = maimed(build())
    width = 3 if isinstance(model, nn.Sequential) else 8
    small = compact(model, torch.randn(1, 4, width))
    assert [type(layer) for block in blocks(small) for layer in (block.linear1, block.linear2)] == 2 * len(blocks(small)) * [
        nn.Linear
    ]
    assert [(block.linear1.out_features, block.linear2.in_features) for block in blocks(small)] == [(5, 5)] * len(blocks(model))
    x = torch.randn(6, 4, width)
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode:
            torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_block_that_is_called_twice_loses_its_neurons_once():
    block = maimed(ENCODER(8, 2, **HOW))
    model = nn.Sequential(block, nn.Tanh(), block).eval()
    small = compact(model, torch.randn(1, 4, 8))
    assert small[0] is small[2]
    assert small[0].linear1.out_features == 5
    x = torch.randn(6, 4, 8)
    torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)


def _shared(model: nn.Module) -> None:
    first, second = blocks(model)
    second.linear1.weight = first.linear1.weight


def _unknown(model: nn.Module) -> None:
    for block in blocks(model):
        block.activation = lambda x: x.relu().cumsum(-1)


def _parametrized(model: nn.Module) -> None:
    for block in blocks(model):
        parametrize.register_parametrization(block.linear1, "weight", nn.Identity())


@pytest.mark.parametrize("change", [_shared, _unknown, _parametrized])
def test_blocks_of_which_too_little_is_known_stay(change):
    model = maimed(nn.TransformerEncoder(ENCODER(8, 2, **HOW), 2, enable_nested_tensor=False), constants=False)
    change(model)
    small = compact(model, torch.randn(1, 4, 8))
    assert [block.linear1.weight.shape for block in blocks(small)] == [(20, 8)] * 2
    x = torch.randn(6, 4, 8)
    torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)


def test_widths_are_multiples_where_that_is_wanted():
    small = compact(maimed(ENCODER(8, 2, **HOW)), torch.randn(1, 4, 8), round_to=4)
    assert small.linear1.out_features == 8
