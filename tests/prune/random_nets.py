"""Networks of many shapes whose units die in all the ways there are."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Softplus, nn.PReLU, nn.Identity)


def activation(rng: random.Random) -> nn.Module:
    return rng.choice(ACTIVATIONS)()


def mlp(rng: random.Random) -> tuple[nn.Module, tuple[Tensor, ...]]:
    widths = [rng.randint(2, 9) for _ in range(rng.randint(2, 5))]
    layers: list[nn.Module] = []
    for i, (rows, columns) in enumerate(zip(widths[1:], widths, strict=False)):
        layers.append(nn.Linear(columns, rows, bias=rng.random() < 0.7))
        if i < len(widths) - 2:
            if rng.random() < 0.3:
                layers.append(nn.BatchNorm1d(rows, affine=rng.random() < 0.8))
            layers += [activation(rng), nn.Dropout(0.5)]
    return nn.Sequential(*layers), (torch.randn(7, widths[0]),)


def tokens(rng: random.Random) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network for sequences of vectors, the units last."""
    net = nn.Sequential(
        nn.Linear(5, 8), activation(rng), nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 9), activation(rng), nn.Linear(9, 4)
    )
    return net, (torch.randn(3, 4, 5),)


def convolution(rng: random.Random, columns: int, rows: int, **settings) -> nn.Conv2d:
    kernel = rng.choice((1, 3))
    settings.setdefault("padding", rng.choice((0, kernel // 2, "same")))
    settings.setdefault("padding_mode", rng.choice(("zeros", "zeros", "circular", "replicate")))
    return nn.Conv2d(columns, rows, kernel, bias=rng.random() < 0.5, **settings)


def conv_chain(rng: random.Random) -> tuple[nn.Module, tuple[Tensor, ...]]:
    width = rng.randint(1, 4)
    layers: list[nn.Module] = []
    x = torch.randn(3, width, 12, 12)
    for _ in range(rng.randint(1, 3)):
        rows = rng.randint(2, 8)
        layers.append(convolution(rng, width, rows))
        width = rows
        if rng.random() < 0.6:
            layers.append(nn.BatchNorm2d(width))
        layers.append(activation(rng))
        pools = (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AvgPool2d(3, 1, padding=1), nn.MaxPool2d(3, 1, padding=1), nn.Identity())
        layers.append(rng.choice(pools))
    layers += [nn.AdaptiveAvgPool2d(rng.choice((1, 2))), nn.Flatten()]
    features = nn.Sequential(*layers).eval()(x).shape[1]
    layers += [nn.Linear(features, rng.randint(1, 9)), activation(rng)]
    layers.append(nn.Linear(layers[-2].out_features, 3))
    return nn.Sequential(*layers), (x,)


class Residual(nn.Module):
    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        a, b, c, d = (rng.randint(2, 8) for _ in range(4))
        self.stem = convolution(rng, 3, a, padding="same")
        self.norm = nn.BatchNorm2d(a)
        self.in1, self.bn1, self.out1 = (
            convolution(rng, a, b, padding="same"),
            nn.BatchNorm2d(b),
            convolution(rng, b, a, padding="same"),
        )
        self.in2, self.out2 = convolution(rng, a, c, padding="same"), convolution(rng, c, a, padding="same")
        self.bn2 = nn.BatchNorm2d(a)
        self.short, self.down = nn.Conv2d(a, d, 1, stride=2), nn.Conv2d(a, d, 3, stride=2, padding=1)
        self.act1, self.act2 = activation(rng), activation(rng)
        self.fc = nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.out1(self.act1(self.bn1(self.in1(x))))
        y = self.bn2(self.out2(self.act2(self.in2(x))))
        y += x
        y = F.relu(y, inplace=True)
        return self.fc((self.short(y) + self.down(y)).relu().mean((2, 3)))


class Branches(nn.Module):
    """Concatenation, gates, groups, tensors of one channel, scalars, flattening by hand."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        a, b, c = rng.randint(2, 6), rng.randint(2, 6), rng.randint(2, 6)
        self.rows = a + b
        self.one, self.two = convolution(rng, 2, a, padding="same"), convolution(rng, 2, b, padding="same")
        self.depthwise = nn.Conv2d(a + b, 2 * (a + b), 3, padding=rng.choice((0, 1)), groups=a + b, bias=rng.random() < 0.5)
        self.point = nn.Conv2d(2 * (a + b), 2 * c, 1)
        self.grouped = nn.Conv2d(2 * c, 6, 3, groups=2, padding=1)
        self.squeeze, self.excite = nn.Linear(6, 3), nn.Linear(3, 6)
        self.mask = nn.Conv2d(6, 1, 1)
        self.act = activation(rng)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hard = rng.random() < 0.5
        self.fc1, self.fc2 = nn.Linear(24, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.act(self.one(x)), self.two(2 * x - 1)], dim=1)
        x = self.grouped(self.act(self.point(F.gelu(self.depthwise(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1).flatten(1)))))
        x = x * gate.view(x.size(0), x.size(1), 1, 1) * torch.sigmoid(self.mask(x))
        x = self.pool(x)
        x = x.view(-1, 24) if self.hard else x.reshape(x.shape[0], -1)
        return self.fc2(torch.tanh(self.fc1(x))), gate.softmax(1)


class Series(nn.Module):
    """One dimension, two inputs."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        a, b = rng.randint(2, 6), rng.randint(2, 6)
        self.left = nn.Conv1d(3, a, 3, padding=1, bias=rng.random() < 0.5)
        self.right = nn.Sequential(nn.Linear(4, 5), activation(rng), nn.Linear(5, a))
        self.norm = nn.BatchNorm1d(a)
        self.act = nn.PReLU(a)
        self.next = nn.Conv1d(a, b, 2, stride=2)
        self.head = nn.Linear(b * 5, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.left(x) + self.right(y)[:, :, None]
        x = F.avg_pool1d(self.act(self.norm(x)), 3, 1, 1)
        return self.head(torch.flatten(torch.relu(self.next(x)), 1))


def residual(rng: random.Random) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Residual(rng), (torch.randn(2, 3, 9, 9),)


def branches(rng: random.Random) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Branches(rng), (torch.randn(3, 2, 8, 8),)


def series(rng: random.Random) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Series(rng), (torch.randn(3, 3, 10), torch.randn(3, 4))


FAMILIES = {net.__name__: net for net in (mlp, tokens, conv_chain, residual, branches, series)}


@torch.no_grad()
def kill(net: nn.Module, rng: random.Random, share: float) -> None:
    """Give all parameters generic values, then let units die: unused, constant, or both; some layers as a whole."""
    for parameter in net.parameters():
        parameter.normal_()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                for unit in range(module.num_features):
                    if rng.random() < share:
                        module.weight[unit] = 0
                        module.bias[unit] *= rng.random() < 0.5
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            own = 1.0 if rng.random() < share / 8 else share
            for row in range(module.weight.shape[0]):
                if rng.random() < own / 2:
                    module.weight[row] = 0
                    if module.bias is not None:
                        module.bias[row] *= rng.random() < 0.5
            for column in range(module.weight.shape[1]):
                if rng.random() < own / 3:
                    module.weight[:, column] = 0


def make(family: str, seed: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with dead units, in eval mode, and inputs; float64."""
    rng = random.Random(f"{family} {seed}")
    torch.manual_seed(rng.randrange(2**31))
    net, inputs = FAMILIES[family](rng)
    kill(net, rng, rng.choice((0.1, 0.4, 0.7, 0.9)))
    return net.double().eval(), tuple(x.double() for x in inputs)
