"""A sweep: the runs of a grid as stacks, in one table that survives a kill."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsenn import __version__, _extension, _sources
from sparsenn.data import require_extra, taught
from sparsenn.models import build_student, teacher
from sparsenn.models.students import INPUTS
from sparsenn.training.errors import ConfigError, RunFolderError
from sparsenn.training.files import remove_parts, write_atomic, write_json
from sparsenn.training.folder import SWEEP, alone_in, open_new
from sparsenn.training.grid.config import SWEPT, Key, SweepConfig, read_sweep
from sparsenn.training.session import StopSignal, session
from sparsenn.training.stacked.progress import watch_for
from sparsenn.training.stacked.run import Run
from sparsenn.training.stacked.runner import Job, figures, run_jobs
from sparsenn.training.stacked.stack import Stack
from sparsenn.training.table import Row, Table

TABLE = "runs.jsonl"
FORMATS = ("csv", "jsonl", "parquet")
_STEP_COST = 200  # what a step costs whatever its network, in weights: for the estimate of the time left


def sweep(config: SweepConfig, out: str | Path, *, resume: bool = False, format: str = "csv", quiet: bool = True) -> list[Row]:  # noqa: A002
    """Train every run of a grid, as ``sparsenn sweep`` does.

    Runs of the same student, number of samples and batch size are one stack. Each run that ends becomes a line of
    ``runs.jsonl``: its settings, the version of the package, a digest of its Python files and the commit of its compiled part,
    the engine, the figures of ``sparsenn.training.stacked.figures``, and ``seconds``, which alone may differ when a sweep is
    interrupted. The state of the stack in progress is written every half minute: a kill loses less than a minute of work.

    Args:
        config: the grid, from ``configure_sweep`` or ``read_sweep``.
        out: a new or empty folder; with ``resume``, that of the sweep that goes on.
        resume: go on with the sweep in ``out``, which has to be this one (``threads`` may differ).
        format: what is written at the end beside ``runs.jsonl``, in the order of the grid: ``csv``, ``parquet`` (needs
            pyarrow), or ``jsonl`` for nothing.
        quiet: show no progress.

    Returns:
        The rows, in the order of the grid.

    Raises:
        ConfigError: for a config of another type, an unknown format, a device that is not there, or another sweep's folder.
        RunFolderError: if ``out`` holds anything else, holds no sweep to resume, or can't be written, or if another process
            trains in it.
        MissingExtraError: if pyarrow is wanted and missing.
        TrainingInterrupted: after SIGINT or SIGTERM, once the state is written.

    Example:
        >>> import tempfile
        >>> from sparsenn.training import configure_sweep, sweep
        >>> config = configure_sweep({"student": "multiChannelCNN", "seed": [0, 1], "samples": 64, "max_epochs": 2})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = sweep(config, folder)
        >>> [(row["seed"], row["status"], row["epochs"]) for row in rows]
        [(0, 'finished', 2), (1, 'finished', 2)]
    """
    if not isinstance(config, SweepConfig):
        raise ConfigError(
            f"sweep: config is of type {type(config).__name__}; it takes a SweepConfig, as configure_sweep makes it"
        )
    check_format(format)
    with session(config):
        groups = group(config)
        for own in groups:
            _smallest(own, config)  # refuses what can't be trained before there is a folder
        folder = _open_again(out, config) if resume else open_new(out, config, SWEEP)
        table = _open_table(folder)
        watch = watch_for(quiet=quiet)
        try:
            with StopSignal() as stop:
                run_jobs([_job(own, config) for own in groups], table, folder, watch=watch, stop=stop, again=_go_on(out))
        finally:
            watch.close()
    rows = table.rows_of(config.runs())
    if format != "jsonl":
        path = folder / f"runs.{format}"
        try:
            write_atomic(path, _csv(rows) if format == "csv" else _parquet(rows))
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be written ({error.strerror or error}); all rows are in {TABLE}") from error
    return rows


def check_format(name: str) -> None:
    """Refuse a format that is unknown, or that a package is missing for."""
    if name not in FORMATS:
        raise ConfigError(f"format is {name!r}; it takes {', '.join(FORMATS)}")
    if name == "parquet":
        require_extra("pyarrow.parquet", "writing a Parquet table")


@dataclass(frozen=True)
class Group:
    """Runs that are one stack.

    Attributes:
        name: student, samples and batch size.
        keys: of the runs.
    """

    name: str
    keys: tuple[Key, ...]


def group(config: SweepConfig) -> list[Group]:
    """The stacks of a sweep, in the order in which the grid first has a run of each."""
    found: dict[str, list[Key]] = {}
    for key in config.runs():
        name = f"{key['student']}, {key['samples']} samples, batch {key['batch_size']}"
        found.setdefault(name, []).append(key)
    return [Group(name, tuple(keys)) for name, keys in found.items()]


def describe(config: SweepConfig) -> list[str]:
    """What a sweep would do: for each of its stacks the number of runs, and which way they go and why.

    Raises:
        ConfigError: for a device that is not there.
        ValueError: if ``config.engine`` is "fused" and the operator does not cover a network.

    Example:
        >>> from sparsenn.training.grid.config import configure_sweep
        >>> from sparsenn.training.grid.sweep import describe
        >>> describe(configure_sweep({"student": "baselineCNN", "seed": [0, 1], "engine": "torch"}))
        ['baselineCNN, 5120 samples, batch 16: 2 runs, through torch.func, as asked for']
    """
    lines = []
    with session(config):
        for own in group(config):
            lines.append(f"{own.name}: {len(own.keys)} runs, {_smallest(own, config).reason}")
    return lines


def _smallest(own: Group, config: SweepConfig) -> Stack:
    """A stack of one run of each kind of the group, on one sample."""
    kinds = {(key["student_activation"], key["optimizer"], key["depth"]): {**key, "samples": 1} for key in own.keys}
    return _build(tuple(kinds.values()), config)


def _job(own: Group, config: SweepConfig) -> Job:
    weights = sum(p.numel() for p in build_student(own.keys[0]["student"], own.keys[0]["student_activation"]).parameters())
    steps = sum(key["max_epochs"] * -(-key["samples"] // key["batch_size"]) for key in own.keys)

    def row(stack: Stack, index: int) -> Row:
        commit = _extension.status()["build"].get("commit", "unknown")
        about = {"patience": config.patience, "dtype": config.dtype, "device": config.device, "engine": stack.engine}
        code = {"version": __version__, "sources": _sources.DIGEST, "commit": commit}
        return {**about, **code, **figures(stack, index)}

    return Job(own.name, own.keys, lambda: _build(own.keys, config), row, float((weights + _STEP_COST) * steps))


def _build(keys: tuple[Key, ...], config: SweepConfig) -> Stack:
    dtype = getattr(torch, config.dtype)
    sets: dict[tuple[Any, ...], int] = {}
    runs = []
    for key in keys:
        name = (key["teacher"], key["teacher_activation"], key["data_seed"])
        runs.append(_run(key, sets.setdefault(name, len(sets))))
    data = [_data(*name, samples=keys[0]["samples"], dtype=dtype) for name in sets]
    students = [
        build_student(
            key["student"],
            key["student_activation"],
            scale=1.0 if key["init_scale"] is None else key["init_scale"],
            seed=key["seed"],
        )
        for key in keys
    ]
    return Stack(
        students,
        runs,
        data,
        batch_size=keys[0]["batch_size"],
        patience=config.patience,
        max_epochs=[key["max_epochs"] for key in keys],
        dtype=dtype,
        device=config.device,
        engine=config.engine,
    )


def _run(key: Key, data: int) -> Run:
    names = ("seed", "lr", "optimizer", "momentum", "lam", "penalty", "depth", "eps", "weight_decay", "clipping")
    given = {name: key[name] for name in names if key[name] is not None}
    if key["beta1"] is not None:
        given["betas"] = (key["beta1"], key["beta2"])
    return replace(Run(), **given, data=data)


def _data(name: str, activation: str, seed: int, *, samples: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return taught(teacher(name, activation, dtype=dtype), samples, inputs=INPUTS, seed=seed, dtype=dtype)


def _open_again(out: str | Path, config: SweepConfig) -> Path:
    stored = stored_sweep(out)
    different = [name for name, value in stored.to_dict().items() if value != config.to_dict()[name] and name != "threads"]
    if different:
        raise ConfigError(f"{out} holds another sweep: {', '.join(different)} differ; drop --resume and name another --out")
    folder = Path(out)
    with alone_in(folder, _go_on(out)):
        remove_parts(folder)
        write_json(folder / SWEEP, config.to_dict())
    return folder


def _go_on(out: str | Path) -> str:
    return f"sparsenn sweep --out {out} --resume"


def stored_sweep(out: str | Path) -> SweepConfig:
    """The settings of the sweep in a folder.

    Raises:
        RunFolderError: if there is none, or its settings are damaged or can't be read.
    """
    path = Path(out) / SWEEP
    try:
        if not path.is_file():
            raise RunFolderError(f"{out} holds no sweep to resume (no {SWEEP}); drop --resume to start one there")
        return read_sweep(path)
    except OSError as error:
        raise RunFolderError(f"{out}: cannot be read: {error.strerror or error}; name another folder with --out") from error
    except ConfigError as error:
        raise RunFolderError(f"{path}: not the settings of a sweep ({error})") from error


def _open_table(folder: Path) -> Table:
    path = folder / TABLE
    try:
        table = Table(path, SWEPT)
    except ValueError as error:
        raise RunFolderError(str(error)) from error
    for number, row in enumerate(table.rows, start=1):
        damaged = [name for name in SWEPT if isinstance(row[name], list | dict)]
        if damaged or "status" not in row:
            what = f"{', '.join(damaged)} can't be a list or object" if damaged else "no status"
            raise RunFolderError(
                f"{path}, line {number}: not a row of this table ({what}); delete the line to train its run again"
            )
    return table


def _columns(rows: list[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "seconds"))
    return [*names, "seconds"]


def _csv(rows: list[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: list[Row]) -> bytes:
    arrow, parquet = (require_extra(name, "writing a Parquet table") for name in ("pyarrow", "pyarrow.parquet"))
    names = _columns(rows)
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table({name: [row.get(name) for row in rows] for name in names}), sink)
    return sink.getvalue().to_pybytes()
