"""``sparsenn teacher-student``: runs set by a JSON file, with the flags, folders and files of the paper's public code."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsenn._extras import require_extra
from sparsenn._files import PART
from sparsenn.data import taught
from sparsenn.metrics import teacher_distance
from sparsenn.metrics.recovery import THRESHOLD, weighted_layers
from sparsenn.models import build_student, teacher
from sparsenn.models.students import ACTIVATIONS, STUDENTS
from sparsenn.models.teachers import TEACHERS
from sparsenn.papers.l1.runs import recovery_figures, settings_of, weight_figures
from sparsenn.papers.l1.settings import ACTIVATIONS as PAPER_ACTIVATIONS
from sparsenn.papers.l1.settings import PERFECT
from sparsenn.papers.l1.study_config import StudyConfig, read_study_config
from sparsenn.training.checks import SEED, shown
from sparsenn.training.errors import ConfigError, RunFolderError
from sparsenn.training.files import parse_json, remove_parts, write_atomic, write_json
from sparsenn.training.folder import alone_in, writing_in
from sparsenn.training.session import StopSignal
from sparsenn.training.stacked import Run, Stack
from sparsenn.training.stacked.progress import watch_for
from sparsenn.training.stacked.runner import Job, run_jobs
from sparsenn.training.table import Row, Table

OPTIMIZERS = ("sgd", "prox")
_KEY = ("teacher", "student", "lr", "l1_norm", "l2_norm", "seed")
_SETTINGS, _ROWS = "settings.json", "runs.jsonl"
_LINE = "=" * 80
_LONGEST = 255 - len(PART)  # bytes of a file's name, while it is written


@dataclass(frozen=True)
class Model:
    """A network by its published name, ``<type>_<activation>``."""

    kind: str
    activation: str

    def __str__(self) -> str:
        return f"{self.kind}_{self.activation}"


@dataclass(frozen=True)
class Wanted:
    """A run by what names it."""

    source: Model
    student: Model
    lr: float
    l1: float
    l2: float


def parse_model(name: str, flag: str) -> Model:
    """``fcn_256_32_relu`` is the type fcn_256_32 with the activation relu.

    Raises:
        ConfigError: if it is no type and activation that there are; a teacher's type has published weights.
    """
    kind, _, activation = name.rpartition("_")
    check_kind(kind, flag)
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"{flag} is {name!r}: unknown activation {activation!r}; it takes <type>_<activation> with {', '.join(ACTIVATIONS)}"
        )
    return Model(kind, activation)


def check_kind(kind: str, flag: str) -> None:
    """Refuse a type that is not there by the flag that named it."""
    known = TEACHERS if flag.startswith("teacher") else STUDENTS
    if kind not in known:
        raise ConfigError(f"{flag}: unknown type {kind!r}; known are {', '.join(known)}")


def run_study(
    mode: str,
    config_path: str,
    *,
    teacher_model: str | None = None,
    student_model: str | None = None,
    teacher_type: str | None = None,
    student_type: str | None = None,
    seed: int = 42,
    name: str = "noName",
    optimizer: str = "sgd",
    quiet: bool = True,
) -> Path:
    """Train one student or many as a JSON file says, and write what the public code writes.

    ``single`` trains the pair of models with the first learning rate and the first strengths; ``multiple`` every pair of
    activations (relu, tanh, sigmoid; like ones alone if ``same_act``) with every learning rate and strength, as one stack.
    The folder ``<save_path>/experiments_<name>_<config's name>_<seed>`` gets a checkpoint ``<teacher>__<student>.pth`` of each
    pair (with learning rate and strengths behind, where there are several), a text ``experiment_….txt`` to which each run that
    ends appends its weights and figures, ``runs.jsonl`` with the same as rows, and ``settings.json``. The same command again
    goes on where it was killed.

    Args:
        mode: ``single`` or ``multiple``.
        config_path: see :func:`sparsenn.papers.l1.study_config.read_study_config`.
        teacher_model: ``<type>_<activation>``, for ``single``.
        student_model: the same.
        teacher_type: type of the teachers, for ``multiple``.
        student_type: type of the students.
        seed: of data, weights and order of the samples.
        name: goes into the names of folder and files.
        optimizer: ``sgd``, with the penalty in the loss, or ``prox``, whose steps make exact zeros.
        quiet: no bar.

    Returns:
        The folder.

    Raises:
        ConfigError: for a setting that is unknown, missing, out of range or of no use.
        RunFolderError: if the folder can't be written or is of other runs, or another process trains in it.
        TrainingInterrupted: after a signal, once the state is written.

    Source:
        The public code of Schulz and Poggio, L1-regularization: The path to sparsity.
    """
    config = read_study_config(config_path)
    pairs = _pairs(mode, config, teacher_model, student_model, teacher_type, student_type)
    _check(seed, name, optimizer, config)
    require_extra("scipy.optimize", "the distance between teacher and student")
    study = _Study(config, pairs, mode, seed, name, optimizer)
    study.open()
    table = Table(study.folder / _ROWS, _KEY)
    watch = watch_for(quiet=quiet)
    try:
        with StopSignal() as stop:
            run_jobs([study.job()], table, study.folder, watch=watch, stop=stop)
    finally:
        watch.close()
    return study.folder


def _pairs(mode: str, config: StudyConfig, *models: str | None) -> list[tuple[Model, Model]]:
    flags = dict(zip(("teacher_model", "student_model", "teacher_type", "student_type"), models, strict=True))
    if mode not in ("single", "multiple"):
        raise ConfigError(f"mode is {mode!r}; it takes single or multiple")
    wanted = [flag for flag in flags if flag.endswith("_model" if mode == "single" else "_type")]
    missing = [flag for flag in wanted if flags[flag] is None]
    useless = [flag for flag in flags if flag not in wanted and flags[flag] is not None]
    if missing or useless:
        raise ConfigError(f"mode {mode} takes {' and '.join(wanted)}; {', '.join([*missing, *useless])} {_fault(missing)}")
    source, student = (str(flags[flag]) for flag in wanted)
    if mode == "single":
        return [(parse_model(source, wanted[0]), parse_model(student, wanted[1]))]
    check_kind(source, wanted[0])
    check_kind(student, wanted[1])
    activations = itertools.product(PAPER_ACTIVATIONS, repeat=2)
    return [(Model(source, a), Model(student, b)) for a, b in activations if a == b or not config.same_act]


def _fault(missing: list[str]) -> str:
    return "is missing" if missing else "has no use"


def _check(seed: Any, name: str, optimizer: str, config: StudyConfig) -> None:
    if not SEED.fits(seed):
        raise ConfigError(f"seed is {shown(seed)}; it takes {SEED.takes}")
    if not name or set(name) & set("/\\\0"):
        raise ConfigError(f"name is {name!r}; it takes a string that can be part of a file's name")
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer is {optimizer!r}; it takes {' or '.join(OPTIMIZERS)}")
    if optimizer == "prox" and any(config.l2_norm):
        raise ConfigError("optimizer prox has the penalty l1_norm; l2_norm takes [0]")


@dataclass
class _Study:
    config: StudyConfig
    pairs: list[tuple[Model, Model]]
    mode: str
    seed: int
    name: str
    optimizer: str

    def __post_init__(self) -> None:
        own = self.config
        lists = (own.lr, own.l1_norm, own.l2_norm)
        every = itertools.product(*((v[:1] for v in lists) if self.mode == "single" else lists))
        self.strengths = list(dict.fromkeys(every))
        self.stem = f"{self.name}_{own.name}_{self.seed}"
        self.folder = Path(own.save_path) / f"experiments_{self.stem}"
        self.wanted = [Wanted(*pair, *values) for pair in self.pairs for values in self.strengths]

    def open(self) -> None:
        """Make the folder this study's, or find that it is."""
        settings = {
            "mode": self.mode,
            "pairs": [[str(a), str(b)] for a, b in self.pairs],
            "seed": self.seed,
            "name": self.name,
            "optimizer": self.optimizer,
            "config": self.config.to_dict(),
        }
        path = self.folder / _SETTINGS
        names = [self.folder.name, self._text_name, *map(self._file_name, range(len(self.wanted)))]
        if (longest := max(len(name.encode()) for name in names)) > _LONGEST:
            raise ConfigError(f"name makes a file's name of {longest} bytes; it takes one that is {longest - _LONGEST} shorter")
        with writing_in(self.folder, "name another folder with save_path"):
            if path.exists():
                self._compare(path, settings)
                with alone_in(self.folder):
                    remove_parts(self.folder)
            elif any(self.folder.iterdir()):
                raise RunFolderError(f"{self.folder} holds other files; name another folder with --name or save_path")
            else:
                write_json(path, settings)

    @staticmethod
    def _compare(path: Path, settings: dict[str, Any]) -> None:
        try:
            stored = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{path}: not the settings of a study ({error}); name another folder with --name") from error
        different = [key for key in settings if not isinstance(stored, dict) or stored.get(key) != settings[key]]
        if different:
            raise RunFolderError(
                f"{path.parent} holds runs of another {', '.join(different)}; name another folder with --name or save_path"
            )

    def job(self) -> Job:
        """All runs as one stack."""
        keys: list[Row] = [
            dict(zip(_KEY, (str(own.source), str(own.student), own.lr, own.l1, own.l2, self.seed), strict=True))
            for own in self.wanted
        ]
        return Job(self.stem, keys, self.build, self.figures)

    def build(self) -> Stack:
        """The stack of the study."""
        own = self.config
        sources = list(dict.fromkeys(wanted.source for wanted in self.wanted))
        students = [wanted.student for wanted in self.wanted]
        data = [taught(teacher(m.kind, m.activation), own.dataset_size, seed=self.seed) for m in sources]
        modules = [build_student(m.kind, m.activation, scale=own.init, seed=self.seed) for m in students]
        runs = [self._run(wanted, sources.index(wanted.source)) for wanted in self.wanted]
        return Stack(modules, runs, data, batch_size=own.batch_size, patience=own.patience, max_epochs=own.num_epochs)

    def _run(self, wanted: Wanted, data: int) -> Run:
        method = "prox" if self.optimizer == "prox" else "l1" if wanted.l1 else "l2" if wanted.l2 else "none"
        return Run(
            seed=self.seed,
            lr=wanted.lr,
            clipping=self.config.clipping,
            data=data,
            **settings_of(method, wanted.l1 or wanted.l2),
        )

    def figures(self, stack: Stack, index: int) -> Row:
        """Write the files of a run that ended; what goes into its row."""
        wanted = self.wanted[index]
        source, student = wanted.source, wanted.student
        outcome, net = stack.outcome(index), stack.module(index)
        origin = teacher(source.kind, source.activation)
        odd = source.activation == student.activation == "tanh"
        finite = outcome.status == "finished"
        results = {
            "final_loss": outcome.best_loss if finite else None,
            "distance_metric": teacher_distance(origin, net, absolute=odd) if finite else None,
        }
        stored = {
            "teacher_model_state_dict": published_state(origin),
            "student_model_state_dict": published_state(net),
            "teacher_model_name": str(source),
            "student_model_name": str(student),
            "l1_norm": wanted.l1,
            "l2_norm": wanted.l2,
            "lr": wanted.lr,
            **results,
            "config": self.config.to_dict(),
            "seed": self.seed,
            "optimizer": self.optimizer,
            "status": outcome.status,
            "epochs": outcome.epochs,
        }
        buffer = io.BytesIO()
        torch.save(stored, buffer)
        write_atomic(self.folder / self._file_name(index), buffer.getvalue())
        self._append(stored)
        row: Row = {"status": outcome.status, "epochs": outcome.epochs, **results}
        if finite:
            row |= {
                **weight_figures(net, PERFECT.get((source.kind, student.kind), ())),
                **recovery_figures(origin, net, source.activation, student.activation),
            }
        return row

    def _file_name(self, index: int) -> str:
        own = self.wanted[index]
        several = "" if len(self.strengths) == 1 else f"__lr{_short(own.lr)}_l1{_short(own.l1)}_l2{_short(own.l2)}"
        return f"{own.source}__{own.student}{several}.pth"

    @property
    def _text_name(self) -> str:
        return f"experiment_{self.stem}.txt"

    def _append(self, stored: dict[str, Any]) -> None:
        path = self.folder / self._text_name
        text = path.read_text(encoding="utf-8") if path.exists() else _head(stored["teacher_model_state_dict"])
        section = self._section(stored)
        if section not in text:  # a kill after this line and before the row is written brings us here again
            write_atomic(path, (text + section).encode())

    def _section(self, stored: dict[str, Any]) -> str:
        own = self.config
        loss, distance = (stored[name] for name in ("final_loss", "distance_metric"))
        figures = {
            "Final Loss": "diverged" if loss is None else f"{loss:.4f}",
            "Distance Metric": "diverged" if distance is None else f"{distance:.4f}",
            "L1 norm": stored["l1_norm"],
            "L2 norm": stored["l2_norm"],
            "Batch size": own.batch_size,
            "Clipping": own.clipping,
            "Learning rate": stored["lr"],
            "data size": own.dataset_size,
            "init": own.init,
            "seed": self.seed,
            "stopped after epoch": stored["epochs"] - 1,  # counted from 0, as in the public code
        }
        weights = {name: torch.where(w.abs() < THRESHOLD, 0.0, w) for name, w in stored["student_model_state_dict"].items()}
        return "\n".join(
            [
                f"{stored['teacher_model_name']} -> {stored['student_model_name']}",
                "",
                "Student Model Parameters:",
                *(f"{name}: {w.numpy()}" for name, w in weights.items()),
                "",
                *(f"{name}: {value}" for name, value in figures.items()),
                "",
                _LINE,
                "",
                "",
            ]
        )


def _head(weights: dict[str, Tensor]) -> str:
    lines = [f"{name}: {w.numpy()}" for name, w in weights.items()]
    return "\n".join(["Experiment Summary:", _LINE, "", "Teacher Model Parameters:", *lines, "", _LINE, "", ""])


def published_state(net: nn.Module) -> dict[str, Tensor]:
    """The weights by the names and in the shapes that the public code's modules have.

    A layer is ``layers.<i>.weight``, a convolution's of shape (out, in, k); the filters of splitFilterCNN are
    ``layer<n>_weights.<f>`` of shape (1, k).

    Example:
        >>> from sparsenn.models import teacher
        >>> from sparsenn.papers.l1.teacher_student import published_state
        >>> list(published_state(teacher("splitFilterCNN", "relu")))[:3]
        ['layer1_weights.0', 'layer1_weights.1', 'layer2_weights.0']
    """
    layers = weighted_layers(net)
    weights = [layer.weight.detach() for layer in layers]
    if any(w.dim() == 4 and len(w) > 1 for w in weights):
        return {f"layer{n}_weights.{f}": own[0].clone() for n, w in enumerate(weights, start=1) for f, own in enumerate(w)}
    return {f"layers.{n}.weight": (w[0] if w.dim() == 4 else w).clone() for n, w in enumerate(weights)}


def _short(value: float) -> str:
    """A number as short as it can be told from all others."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
