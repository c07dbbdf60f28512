"""The runs of the paper: what names one, which λ, learning rates and compressions the items ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from sparsenn import models
from sparsenn.prune import compression_limit
from sparsenn.training.config import TrainConfig, configure
from sparsenn.training.errors import ConfigError
from sparsenn.training.presets import FACTOR_INITS, PRUNERS
from sparsenn.training.table import Row

# What a net is trained with, by the names of ``TrainConfig``.
_TRAINED = ("dataset", "model", "method", "depth", "lam", "lr", "factor_init", "schedule", "epochs", "batch_size")
KEY = (*_TRAINED, "prune_to", "after_epochs", "after_lr", "seed")
SEEDS = 3
SPARSITIES = (90.0, 95.0, 98.0, 99.0, 99.5, 99.75, 99.875, 99.9)  # percent: the columns of Table 2
TOLERANCES = (5, 10)  # points of accuracy below the dense net: the rows of Table 1
COMPRESSIONS = tuple(round(100 / (100 - s), 6) for s in SPARSITIES)
POINTS = 13  # λ of a curve
# Smallest and largest λ of a curve at each depth, as multiples of ``onset``: from a dense net to one that is hardly left.
# The paper has 1e-6 to 1e-1, of which most leave everything or nothing.
LAMS = {2: (0.8, 48.0), 3: (0.8, 24.0), 4: (0.5, 12.0)}


class Images(NamedTuple):
    """What is known of a data set before it is read: training and test images, channels, height and width, classes."""

    examples: int
    test_examples: int
    channels: int
    size: int
    classes: int


IMAGES = {
    "digits": Images(1442, 355, 1, 8, 10),
    **dict.fromkeys(("mnist", "fashion-mnist", "kuzushiji-mnist"), Images(60_000, 10_000, 1, 28, 10)),
    "cifar-10": Images(50_000, 10_000, 3, 32, 10),
    "cifar-100": Images(50_000, 10_000, 3, 32, 100),
    "tiny-imagenet": Images(100_000, 10_000, 3, 64, 200),
}
# Learning rates of LeNet-300-100 by depth, where they are not the paper's 0.15. With weights that keep their start
# ("preserve") twice that is better at depth 2; on Fashion-MNIST half of it at depth 4 is better by half a point at compression
# 1300, at the cost of as much at moderate ones.
LENET_LRS = {"mnist": {2: 0.3}, "fashion-mnist": {2: 0.3, 4: 0.08}}
LENET_LAMS = {"mnist": {4: (0.7, 16.0)}}  # in the place of ``LAMS`` at these rates: 12 ends before a compression of 1000


@dataclass(frozen=True)
class Given:
    """What a user may set for all runs of an item; None leaves it to the item or the preset.

    Attributes:
        dataset: a name of ``sparsenn.data.names()``.
        model: a name of ``sparsenn.models.names()``.
        epochs: passes over the training set.
        seeds: runs of each kind, counted from 0.
        lams: smallest and largest λ of a curve.
        points: how many λ, log-spaced.
        lr: initial learning rate of factorized nets.
        factor_init: how factors start.
        batch_size: images a step.
    """

    dataset: str
    model: str
    epochs: int | None = None
    seeds: int = SEEDS
    lams: tuple[float, float] | None = None
    points: int = POINTS
    lr: float | None = None
    factor_init: str | None = None
    batch_size: int | None = None

    def check(self) -> None:
        """Refuse settings out of range.

        Raises:
            ConfigError: with the setting's name.
        """
        if self.lams is not None and not 0 < self.lams[0] <= self.lams[1]:
            raise ConfigError(f"lams is {self.lams[0]:g} {self.lams[1]:g}; it takes 0 < smallest λ <= largest λ")
        for name in ("points", "seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it takes 1 or more")

    def key(self, method: str, seed: int = 0, **changes: object) -> Row:
        """A run's name; ``changes`` are written over what its method takes by default.

        Raises:
            ConfigError: for a setting that training does not take.
        """
        if method == "magnitude":  # what is pruned is a dense net, which is trained on for as long
            dense = self._config("dense", {})
            after = {"method": method, "prune_to": None, "after_epochs": dense.epochs, "after_lr": dense.lr}
            return {**_trained(dense), **after, **changes, "seed": seed}
        config = self._config(method, changes)
        return {**_trained(config), "prune_to": None, "after_epochs": 0, "after_lr": None, **changes, "seed": seed}

    def _config(self, method: str, changes: Mapping[str, Any]) -> TrainConfig:
        """What a net is trained with where ``changes`` are written over the defaults; they may name more than that."""
        given: dict[str, Any] = {"dataset": self.dataset, "model": self.model, "method": method}
        given |= {"epochs": self.epochs, "batch_size": self.batch_size}
        if method == "dwf":
            depth = changes.get("depth", 2)
            given |= {"depth": depth, "lr": self._factor_lr(depth), "factor_init": self.factor_init}
        elif method in PRUNERS:
            given |= {"compression": changes["prune_to"], "prune_biases": method != "random"}
        given |= {name: value for name, value in changes.items() if name in _TRAINED}
        return configure(**{name: value for name, value in given.items() if value is not None})

    def _factor_lr(self, depth: Any) -> float | None:
        if self.lr is not None:
            return self.lr
        return LENET_LRS.get(self.dataset, {}).get(depth) if self.model == "lenet-300-100" else None

    def sweep(self, depth: int, seeds: Iterable[int] | None = None, **changes: object) -> list[Row]:
        """A curve over λ at a depth, around the onset of sparsity at the learning rate of its nets."""
        nets = [self.key("dwf", seed, depth=depth, **changes) for seed in self._seeds(seeds)]
        return [{**net, "lam": lam} for net in nets for lam in log_spaced(*(self.lams or self._lams(net)), self.points)]

    def tuned(self, depth: int, factor_init: str, seeds: Iterable[int] | None = None) -> list[Row]:
        """A curve over λ at a depth of nets that begin as a trained dense one, for ``tuning_epochs``.

        All depths have the rate of depth 2: the smaller ones of deeper nets want a λ, in so few epochs, that costs accuracy.
        """
        factorized = self.key("dwf", depth=2, factor_init=factor_init)
        epochs = tuning_epochs(factorized["epochs"])
        how = {"depth": depth, "factor_init": factor_init, "after_epochs": epochs, "after_lr": factorized["lr"]}
        lams = log_spaced(*(self.lams or self._lams({**factorized, "depth": depth, "epochs": epochs})), self.points)
        return [{**self.key("dense", s), "method": "dwf", "lam": lam, **how} for s in self._seeds(seeds) for lam in lams]

    def _lams(self, net: Row) -> tuple[float, float]:
        begin = onset(net["lr"], net["epochs"] * -(-IMAGES[self.dataset].examples // net["batch_size"]))
        depth = net["depth"]
        low, high = LAMS.get(depth, LAMS[4])
        if self.model == "lenet-300-100" and self.lr is None and net["lr"] == self.key("dwf", depth=depth)["lr"]:
            low, high = LENET_LAMS.get(self.dataset, {}).get(depth, (low, high))
        return low * begin, high * begin

    def l1_sweep(self, method: str) -> list[Row]:
        """A curve over λ of ``l1-subgradient`` or ``prox``: the λ of depth 2, whose objective they have."""
        lams = log_spaced(*(self.lams or self._lams(self.key("dwf", depth=2))), self.points)
        return [self.key(method, seed, lam=lam) for seed in self._seeds() for lam in lams]

    def pruned(self, method: str, **changes: object) -> list[Row]:
        """A curve over compressions of a pruning method.

        Those with a score rank biases and normalization too. Random pruning does not: a scale that it sets to 0 silences a
        channel. So it ends where nothing else is left.
        """
        limit = self._limit_of_weights() if method == "random" else math.inf
        reached = [c for c in COMPRESSIONS if c <= limit]
        return [self.key(method, seed, prune_to=c, **changes) for seed in self._seeds() for c in reached]

    def _limit_of_weights(self) -> float:
        return compression_limit(_net(self.dataset, self.model))

    def dense(self) -> list[Row]:
        """The dense nets."""
        return [self.key("dense", seed) for seed in self._seeds()]

    def _seeds(self, seeds: Iterable[int] | None = None) -> Iterable[int]:
        return range(self.seeds) if seeds is None else seeds


def _trained(config: TrainConfig) -> Row:
    return {name: getattr(config, name) for name in _TRAINED}


def parameters_of(dataset: str, model: str) -> int:
    """How many parameters a network for a data set has.

    Example:
        >>> from sparsenn.papers.dwf.settings import parameters_of
        >>> parameters_of("mnist", "lenet-300-100")
        266610
    """
    return sum(p.numel() for p in _net(dataset, model).parameters())


def _net(dataset: str, model: str) -> nn.Module:
    """The network without its numbers."""
    images = IMAGES[dataset]
    with torch.device("meta"):
        return models.build(model, images.classes, images.channels, images.size)


def onset(lr: float, steps: int, momentum: float = 0.9) -> float:
    r"""The λ at which a weight that the loss leaves alone falls from 0.05 to the threshold of the collapse within a run.

    A factor shrinks at the rate :math:`(2 \lambda / D) \cdot \mathrm{lr} / (1 - \mathrm{momentum})` a step, so their
    product at D times that, whatever the depth; a cosine schedule has half of its steps' weight:

    .. math:: \lambda = \frac{\log(0.05 / 1.19 \cdot 10^{-7})}{\mathrm{steps} \cdot \mathrm{lr} / (1 - \mathrm{momentum})}

    Below it a net ends with no zeros but such as the loss asks for. Kolb et al. 2025, Appendix E.3, find that sparsity begins
    at about the same λ for all depths.

    Example:
        >>> from sparsenn.papers.dwf.settings import onset
        >>> round(onset(lr=0.3, steps=75 * 235), 6)
        0.000245
    """
    return math.log(0.05 / 2**-23) * (1 - momentum) / (steps * lr)


def tuning_epochs(epochs: int) -> int:
    """A tenth of the epochs, at least one.

    Example:
        >>> from sparsenn.papers.dwf.settings import tuning_epochs
        >>> tuning_epochs(75), tuning_epochs(2)
        (8, 1)
    """
    return max(round(epochs / 10), 1)


def source_of(key: Row) -> Row | None:
    """The run whose net a run begins with, or None.

    For a net that is pruned it is that of the same depth, λ and seed before anything is pruned; for one that is
    factorized when it is trained, the dense one.

    Example:
        >>> from sparsenn.papers.dwf.settings import Given, source_of
        >>> given = Given("fashion-mnist", "lenet-300-100")
        >>> source_of(given.key("magnitude", prune_to=10.0)) == given.key("dense")
        True
        >>> source_of(given.key("dense")) is None
        True
    """
    before = {"prune_to": None, "after_epochs": 0, "after_lr": None}
    if key["method"] == "magnitude":
        return {**key, **before, "method": "dense" if key["depth"] == 1 else "dwf"}
    if key["after_epochs"]:
        return {
            **key,
            **before,
            "method": "dense",
            "depth": 1,
            "lam": 0.0,
            "factor_init": FACTOR_INITS[0],
        }
    return None


def fine_tuned(key: Row, compression: float, epochs: int, lr: float) -> Row:
    """The run that prunes the net of ``key`` to a compression and trains what is left."""
    own = {column: key[column] for column in KEY}
    return {**own, "method": "magnitude", "prune_to": compression, "after_epochs": epochs, "after_lr": lr}


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """``count`` numbers from ``low`` to ``high`` with one ratio, to four digits; ``low`` alone where it is one.

    Example:
        >>> from sparsenn.papers.dwf.settings import log_spaced
        >>> log_spaced(1e-4, 1e-2, 3)
        [0.0001, 0.001, 0.01]
    """
    return [float(f"{low * (high / low) ** (i / max(count - 1, 1)):.4g}") for i in range(count)]
