"""A zoo of modules, and what a factorized one must share with its plain twin."""

import copy
import functools

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.nn.parametrizations import factors_of, hadamard_parametrizations_of


class Raw(nn.Module):
    """Parameters of every kind of owner: the module itself, a list, a dictionary, a child."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(()))
        self.empty = nn.Parameter(torch.randn(0, 3))
        self.rows = nn.ParameterList([torch.randn(8) for _ in range(3)])
        self.table = nn.ParameterDict({"a": torch.randn(8), "b": torch.randn(8)})
        self.child = nn.Linear(8, 4)
        self.register_buffer("shift", torch.full((8,), 1e-9))

    def forward(self, x):
        x = x * self.rows[-1] + sum(row.sin() for row in self.rows[:2]) + self.empty.sum() + self.shift
        return self.child(self.scale * x + sum(value.cos() for value in self.table.values()))


def net():
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def batch(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()


ZOO = {
    "linear": (lambda: nn.Linear(8, 5), lambda: (batch(3, 8),)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: (batch(2, 4, 6, 6),)),
    "conv_transpose": (lambda: nn.ConvTranspose1d(4, 6, 3), lambda: (batch(2, 4, 6),)),
    "batch_norm": (lambda: nn.BatchNorm2d(4), lambda: (batch(3, 4, 5, 5),)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), lambda: (batch(3, 4, 5),)),
    "layer_norm": (lambda: nn.LayerNorm(8), lambda: (batch(3, 8),)),
    "rms_norm": (lambda: nn.RMSNorm(8), lambda: (batch(3, 8),)),
    "prelu": (lambda: nn.PReLU(4), lambda: (batch(3, 4),)),
    "bilinear": (lambda: nn.Bilinear(3, 4, 2), lambda: (batch(5, 3), batch(5, 4))),
    "embedding": (lambda: nn.Embedding(7, 4, padding_idx=0), lambda: (torch.tensor([[0, 2], [6, 2]]),)),
    "embedding_bag": (lambda: nn.EmbeddingBag(7, 4), lambda: (torch.tensor([[0, 2], [6, 2]]),)),
    "lstm": (lambda: nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True), lambda: (batch(3, 6, 5),)),
    "lstm_proj": (lambda: nn.LSTM(5, 4, proj_size=2), lambda: (batch(6, 3, 5),)),
    "gru": (lambda: nn.GRU(5, 4, 2, bias=False), lambda: (batch(6, 3, 5),)),
    "rnn": (lambda: nn.RNN(5, 4, nonlinearity="relu"), lambda: (batch(6, 3, 5),)),
    "lstm_cell": (lambda: nn.LSTMCell(5, 4), lambda: (batch(3, 5),)),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), lambda: (batch(3, 5, 8),) * 3),
    "attention_kv": (
        lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True, kdim=6, vdim=4),
        lambda: (batch(5, 3, 8), batch(4, 3, 6), batch(4, 3, 4)),
    ),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True), lambda: (batch(3, 5, 8),)),
    "raw": (Raw, lambda: (batch(3, 8),)),
    "net": (net, lambda: (batch(5, 8),)),
}
zoo = pytest.mark.parametrize(("build", "inputs"), ZOO.values(), ids=ZOO)


def build_pair(build, depth=3, factor_init="root", **kwargs):
    torch.manual_seed(0)
    plain = build().double()
    return sparsenn.factorize(copy.deepcopy(plain), depth, factor_init, **kwargs), plain


def run(model, inputs):
    out = model(*inputs)
    return out[0] if isinstance(out, tuple) else out


def factorized(model):
    """Qualified name of each factorized tensor -> its parametrization list, by every path."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parametrization in hadamard_parametrizations_of(module):
            found[f"{path}.{name}" if path else name] = parametrization
    return found


def copy_products(model, plain):
    with torch.no_grad():
        for name, parametrization in factorized(model).items():
            plain.get_parameter(name).copy_(functools.reduce(torch.mul, factors_of(parametrization)))


def assert_same_training_signal(model, plain, inputs):
    """Equal outputs, and for every factor the chain rule from the plain model's gradient."""
    model.zero_grad()
    plain.zero_grad()
    ours, theirs = run(model, inputs), run(plain, inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    ours.sin().sum().backward()
    theirs.sin().sum().backward()
    for name, parametrization in factorized(model).items():
        wanted = plain.get_parameter(name).grad
        factors = factors_of(parametrization)
        for d, factor in enumerate(factors):
            others = functools.reduce(torch.mul, factors[:d] + factors[d + 1 :], torch.ones_like(factor))
            torch.testing.assert_close(factor.grad, wanted * others, rtol=1e-9, atol=1e-12)


def fingerprint(model):
    """Everything that an error must leave alone: classes, which parameters, their order, their values."""
    classes = [type(module) for module in model.modules()]
    parameters = [
        (name, id(p), p.detach().clone() if not nn.parameter.is_lazy(p) else None) for name, p in model.named_parameters()
    ]
    return classes, parameters


def assert_untouched(model, before):
    classes, parameters = fingerprint(model)
    assert classes == before[0]
    assert [p[:2] for p in parameters] == [p[:2] for p in before[1]]
    for (_, _, a), (_, _, b) in zip(parameters, before[1], strict=True):
        assert a is None or torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def with_names(**parameters):
    module = nn.Module()
    for name, value in parameters.items():
        module.register_parameter(name, nn.Parameter(value))
    return module
