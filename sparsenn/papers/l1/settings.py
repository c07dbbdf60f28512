"""The six experiments as the paper and its public configuration files set them. No PyTorch is needed to read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sparsenn.training.checks import COUNT, SAMPLES, shown
from sparsenn.training.errors import ConfigError

ACTIVATIONS = ("relu", "tanh", "sigmoid")  # in the order of the paper's tables
PAIRS = tuple((teacher, student) for teacher in ACTIVATIONS for student in ACTIVATIONS)
METHODS = ("l1", "l2", "none", "prox")
PUBLISHED = METHODS[:3]
SCALES = (0.2, 1.0)
SEEDS = 5
LAM = 1e-5
BATCH_SIZE, PATIENCE = 16, 100
KEY = ("experiment", "method", "teacher_activation", "student_activation", "scale", "seed", "size", "max_epochs")


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments.

    Attributes:
        teacher: the teacher's type.
        student: the student's.
        perfect: how many weights each layer of a perfectly sparse student keeps; empty where the paper names none.
        lrs: learning rates of the methods that the default is not for.
        lr: that of the others.
    """

    teacher: str
    student: str
    perfect: tuple[int, ...]
    lrs: dict[str, float]
    lr: float = 0.005

    @property
    def convolutional(self) -> bool:
        """Whether the student is a convolutional network, with fewer samples and more epochs."""
        return self.student.endswith("CNN")

    @property
    def size(self) -> int:
        """Number of samples."""
        return 5120 if self.convolutional else 100_000

    def learning_rate(self, method: str) -> float:
        """That of the stored runs with which a method is compared; the proximal one takes that of L1."""
        return self.lrs.get("l1" if method == "prox" else method, self.lr)

    def max_epochs(self, method: str, scale: float) -> int:
        """The longest that a run may take."""
        if method != "none":
            return 100_000
        return 10_000 if self.convolutional else {0.2: 2000}.get(scale, 5000)


EXPERIMENTS = {
    1: Experiment("baselineCNN", "baselineCNN", (), {"l1": 0.01}),
    2: Experiment("baselineCNN", "multiChannelCNN", (3, 2, 2), {}, lr=0.01),
    3: Experiment("baselineCNN", "fcn_256_32", (12, 4, 2), {"l1": 0.01}),
    4: Experiment("baselineCNN", "fcn_128_128", (12, 4, 2), {}),
    5: Experiment("multiChannelCNN", "fcn_256_32", (), {}),
    6: Experiment("splitFilterCNN", "multiChannelCNN", (6, 4, 2), {}),
}
PERFECT = {(own.teacher, own.student): own.perfect for own in EXPERIMENTS.values()}


def grid(
    experiment: int,
    *,
    methods: Sequence[str] = PUBLISHED,
    scales: Sequence[float] = SCALES,
    pairs: Iterable[tuple[str, str]] = PAIRS,
    seeds: int | Sequence[int] = SEEDS,
    size: int | None = None,
    epochs: int | None = None,
) -> list[dict[str, Any]]:
    """The runs of an experiment, each once by the columns ``KEY`` of its row, in the order in which they are trained.

    Args:
        experiment: 1 to 6.
        methods: of ``METHODS``.
        scales: of the start.
        pairs: activations of teacher and student.
        seeds: how many, counted from 1, or which.
        size: samples; None for the paper's number.
        epochs: the longest run; None for the paper's number.

    Raises:
        ConfigError: for a value out of range.

    Example:
        >>> from sparsenn.papers.l1.settings import grid
        >>> len(grid(1)), grid(1)[0]["method"]
        (270, 'l1')
    """
    own = EXPERIMENTS[experiment]
    chosen = list(range(1, seeds + 1)) if isinstance(seeds, int) else list(seeds)
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ConfigError(f"methods: got {', '.join(map(repr, unknown)) or 'none'}; it takes some of {', '.join(METHODS)}")
    bad_scales = [scale for scale in scales if not 0 < scale < float("inf")]
    if bad_scales or not scales:
        raise ConfigError(f"scales: got {', '.join(map(repr, bad_scales)) or 'none'}; it takes numbers above 0")
    for name, value, check in (("size", size, SAMPLES), ("epochs", epochs, COUNT)):
        if value is not None and not check.fits(value):
            raise ConfigError(f"{name} is {shown(value)}; it takes {check.takes}")
    if not chosen:
        raise ConfigError(f"seeds is {seeds}; it takes 1 or more")
    return [
        dict(
            zip(
                KEY,
                (experiment, method, *pair, scale, seed, size or own.size, epochs or own.max_epochs(method, scale)),
                strict=True,
            )
        )
        for method in dict.fromkeys(methods)
        for scale in dict.fromkeys(scales)
        for pair in pairs
        for seed in dict.fromkeys(chosen)
    ]


def jobs_of(keys: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs that are trained as one stack: all of a convolutional student, the seeds of a cell of a large one."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for key in keys:
        names = ["experiment", "size"]
        if not EXPERIMENTS[key["experiment"]].convolutional:
            names += ["method", "scale", "teacher_activation", "student_activation", "max_epochs"]
        groups.setdefault(tuple(key[name] for name in names), []).append(key)
    return list(groups.values())
