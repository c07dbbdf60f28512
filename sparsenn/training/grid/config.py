"""The settings of a sweep, checked before PyTorch is imported, and the runs that they stand for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sparsenn.training.checks import (
    ABOVE_0,
    BELOW_1,
    COUNT,
    DEPTH,
    DEVICE,
    NOT_NEGATIVE,
    SAMPLES,
    SEED,
    THREADS,
    TRUE_OR_FALSE,
    Check,
    one_of,
    optional,
    shown,
)
from sparsenn.training.config import read_settings
from sparsenn.training.errors import ConfigError
from sparsenn.training.presets import ENGINES, OPTIMIZERS, PENALTIES

Key = dict[str, Any]

STUDENTS = ("baselineCNN", "splitFilterCNN", "multiChannelCNN", "fcn_256_32", "fcn_128_128", "fcn_1024_128")
TEACHERS = ("baselineCNN", "splitFilterCNN", "multiChannelCNN")
ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu")
DTYPES = ("float32", "float64")

# What a setting means nothing to, by optimizer; and to sgd and adam λ means nothing without a penalty.
_WITHOUT_EFFECT = {
    "sgd": ("depth", "beta1", "beta2", "eps"),
    "prox": ("penalty", "depth", "beta1", "beta2", "eps"),
    "factorized": ("penalty", "beta1", "beta2", "eps", "clipping"),
    "adam": ("momentum", "depth"),
}


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Every setting of a sweep. Those of a tuple are swept: the sweep trains every combination of their values.

    A setting that means nothing to an optimizer (``depth`` to ``sgd``, say, or ``lam`` where there is no penalty) is left out
    of its runs, and runs that are then the same are one.

    Attributes:
        student: networks that are trained, by the names of ``sparsenn.models.students.STUDENTS``.
        student_activation: their activations: relu, sigmoid, tanh, gelu.
        teacher: networks that are learnt: baselineCNN, splitFilterCNN, multiChannelCNN.
        teacher_activation: their activations.
        same_activation: only pairs of student and teacher with the same one.
        init_scale: what multiplies the students' starting weights, but for GELU's; 0 leaves PyTorch's own start.
        samples: size of the data set, x ~ N(0, I) and the teacher's answers.
        data_seed: of the samples; None takes the run's seed.
        seed: of the starting weights and of the order of the samples.
        optimizer: sgd, prox, factorized, adam: see ``sparsenn.training.stacked.Run``, as for the following.
        lr: learning rate.
        momentum: of all optimizers but adam.
        penalty: none, l1 or l2, in the loss, for sgd and adam.
        lam: its strength, and that of prox and factorized.
        depth: factors, for factorized.
        beta1: of adam.
        beta2: of adam.
        eps: of adam.
        weight_decay: added to the gradient, times the weight, and not to the loss.
        clipping: weights below it become 0 after each step.
        max_epochs: passes over the samples, at most.
        batch_size: samples a step.
        patience: a run ends after so many epochs in a row without a smaller loss; None for no such end.
        dtype: float32 or float64.
        device: cpu, cuda or cuda:<index>.
        engine: auto, fused or torch, as for ``sparsenn.training.stacked.Stack``.
        threads: CPU threads; 0 leaves PyTorch its choice.
    """

    student: tuple[str, ...]
    student_activation: tuple[str, ...] = ("tanh",)
    teacher: tuple[str, ...] = ("baselineCNN",)
    teacher_activation: tuple[str, ...] = ("tanh",)
    same_activation: bool = False
    init_scale: tuple[float, ...] = (1.0,)
    samples: tuple[int, ...] = (5120,)
    data_seed: tuple[int | None, ...] = (None,)
    seed: tuple[int, ...] = (0,)
    optimizer: tuple[str, ...] = ("sgd",)
    lr: tuple[float, ...] = (0.005,)
    momentum: tuple[float, ...] = (0.9,)
    penalty: tuple[str, ...] = ("none",)
    lam: tuple[float, ...] = (1e-5,)
    depth: tuple[int, ...] = (2,)
    beta1: tuple[float, ...] = (0.9,)
    beta2: tuple[float, ...] = (0.999,)
    eps: tuple[float, ...] = (1e-8,)
    weight_decay: tuple[float, ...] = (0.0,)
    clipping: tuple[float, ...] = (0.0,)
    max_epochs: tuple[int, ...] = (1000,)
    batch_size: tuple[int, ...] = (16,)
    patience: int | None = 100
    dtype: str = "float32"
    device: str = "cpu"
    engine: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if name not in SWEPT:
                if not check.fits(value):
                    raise ConfigError(f"{name} is {shown(value)}; it takes {check.takes}{_no_list(value)}")
                continue
            if not isinstance(value, tuple | list):
                raise ConfigError(f"{name} is {shown(value)}; it takes a tuple of values, each {check.takes}")
            if not value:
                raise ConfigError(f"{name} is an empty list; it takes {check.takes}, or a list of them")
            for own in value:
                if not check.fits(own):
                    raise ConfigError(f"{name} has {shown(own)}; it takes {check.takes}, or a list of them")
            if name in RATES:  # a column of the table is of one type, however a number is written
                object.__setattr__(self, name, tuple(map(float, value)))
        if not any(True for _ in self.runs()):
            raise ConfigError(
                "same_activation is true, but student_activation and teacher_activation have none in common: there is no run"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def runs(self) -> Iterator[Key]:
        """The runs: for each one the swept settings by their names, None for what means nothing to it."""
        seen = set()
        for values in itertools.product(*(getattr(self, name) for name in SWEPT)):
            key = _effective(dict(zip(SWEPT, values, strict=True)))
            name = tuple(key.values())
            if name in seen or (self.same_activation and key["student_activation"] != key["teacher_activation"]):
                continue
            seen.add(name)
            yield key


def _effective(key: Key) -> Key:
    key |= dict.fromkeys(_WITHOUT_EFFECT[key["optimizer"]])
    if key["penalty"] == "none":
        key["lam"] = None
    if key["lam"] == 0 and key["optimizer"] in ("sgd", "adam"):
        key |= {"lam": None, "penalty": "none"}
    if key["student_activation"] == "gelu" and key["init_scale"] > 0:
        key["init_scale"] = None  # its start is not scaled
    if key["data_seed"] is None:
        key["data_seed"] = key["seed"]
    return key


def configure_sweep(settings: Mapping[str, Any], where: str = "sweep") -> SweepConfig:
    """A sweep from plain values: a number or a name where one is meant, or a list of them where it is swept.

    Raises:
        ConfigError: for settings that are no mapping, an unknown key (the message lists the known ones), a missing student, a
            list where one value belongs, or a value out of range.

    Example:
        >>> from sparsenn.training.grid.config import configure_sweep
        >>> config = configure_sweep({"student": "fcn_256_32", "penalty": ["l1", "none"], "lam": [1e-5, 1e-4], "seed": [0, 1]})
        >>> len(list(config.runs()))
        6
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"{where}: the settings are of type {type(settings).__name__}; it takes them by their names, as a dict"
        )
    unknown = [key for key in settings if key not in KEYS]
    if unknown:
        raise ConfigError(f"{where}: unknown {', '.join(map(repr, unknown))}; known are {', '.join(KEYS)}")
    if "student" not in settings:
        raise ConfigError(f"{where}: student is missing; it takes {', '.join(STUDENTS)}, or a list of them")
    given: dict[str, Any] = {}
    for key, value in settings.items():
        many = isinstance(value, list | tuple)
        given[key] = (tuple(value) if many else (value,)) if key in SWEPT else value
    try:
        return SweepConfig(**given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def read_sweep(path: str | Path) -> SweepConfig:
    """The sweep of a JSON or TOML file.

    Raises:
        ConfigError: if it cannot be read, or as :func:`configure_sweep` does.
    """
    return configure_sweep(read_settings(path), f"config file {path}")


def _no_list(value: Any) -> str:
    return ", and no list" if isinstance(value, list | tuple) else ""


_CHECKS: dict[str, Check] = {
    "student": one_of(STUDENTS),
    "student_activation": one_of(ACTIVATIONS),
    "teacher": one_of(TEACHERS),
    "teacher_activation": one_of(ACTIVATIONS),
    "same_activation": TRUE_OR_FALSE,
    "init_scale": NOT_NEGATIVE,
    "samples": SAMPLES,
    "data_seed": optional(SEED, " for the run's own"),
    "seed": SEED,
    "optimizer": one_of(OPTIMIZERS),
    "lr": ABOVE_0,
    "momentum": BELOW_1,
    "penalty": one_of(PENALTIES),
    "lam": NOT_NEGATIVE,
    "depth": DEPTH,
    "beta1": BELOW_1,
    "beta2": BELOW_1,
    "eps": ABOVE_0,
    "weight_decay": NOT_NEGATIVE,
    "clipping": NOT_NEGATIVE,
    "max_epochs": COUNT,
    "batch_size": COUNT,
    "patience": optional(COUNT),
    "dtype": one_of(DTYPES),
    "device": DEVICE,
    "engine": one_of(ENGINES),
    "threads": THREADS,
}
KEYS = tuple(field.name for field in fields(SweepConfig))
RATES = tuple(field.name for field in fields(SweepConfig) if field.type == "tuple[float, ...]")
SWEPT = tuple(field.name for field in fields(SweepConfig) if str(field.type).startswith("tuple"))
