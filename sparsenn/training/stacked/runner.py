"""Stacks one after the other, a row of a table for every run that ends: a kill loses seconds, and what follows is the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsenn.training.checkpoint import NAME, load_checkpoint, save_checkpoint
from sparsenn.training.checks import NOT_NEGATIVE, shown
from sparsenn.training.errors import RunFolderError, TrainingInterrupted
from sparsenn.training.folder import alone_in
from sparsenn.training.session import StopSignal
from sparsenn.training.stacked.progress import Nobody, Watch
from sparsenn.training.stacked.run import ACTIVE, DIVERGED
from sparsenn.training.stacked.stack import Stack
from sparsenn.training.table import Row, Table

CHECKPOINT_EVERY = 30.0  # seconds: what a kill loses at most, with the second or two of a visit
VISIT = 1.0  # seconds between two looks at the clock


@dataclass(frozen=True)
class Job:
    """A stack to be trained, and what becomes of its runs.

    Attributes:
        name: what its checkpoint is known by; no two jobs of a folder share one.
        keys: for each run of the stack, the columns that name its row.
        build: makes the stack.
        figures: the other columns of the row of a run, by stack and number of the run, once it has ended.
        work: the most that is to be done, in any unit that the jobs share, for the estimate of the time left.
    """

    name: str
    keys: Sequence[Row]
    build: Callable[[], Stack]
    figures: Callable[[Stack, int], Row]
    work: float = 1.0


def run_jobs(
    jobs: Sequence[Job],
    table: Table,
    folder: str | Path,
    *,
    watch: Watch | None = None,
    stop: StopSignal | None = None,
    again: str = "the same command",
) -> None:
    """Train every job whose rows are not all in the table, from its checkpoint in ``folder`` where there is one.

    Rows are written when their run ends, in the order of epochs and, within an epoch, of the runs; each has, beside its keys
    and figures, the column ``seconds``: how long its stack had trained by then. Killed at any moment and called again, this
    ends in the same rows in the same order, but for that column.

    Args:
        jobs: what is to be done, in order; no two of one name, and no two runs of one key.
        table: where rows go; its key columns are those of the jobs' keys.
        folder: where the checkpoint of the stack in progress lies, a file at a time.
        watch: who watches.
        stop: asked about once a second.
        again: the command that goes on, for the message of an interruption.

    Raises:
        ValueError: for jobs or keys that are named alike, keys without a column of the table's, or another number of them than
            the stack has runs.
        TrainingInterrupted: after a signal, once the state is written.
        RunFolderError: if the checkpoint is damaged or does not fit its job, another process trains in the folder, or a file
            can't be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from sparsenn.training.stacked import Job, Run, Stack, figures, run_jobs
        >>> from sparsenn.training.table import Table
        >>> x = torch.randn(32, 4)
        >>> def build():
        ...     nets = [torch.nn.Linear(4, 1) for _ in range(2)]
        ...     return Stack(nets, [Run(seed=0), Run(seed=1)], [(x, x[:, :1])], max_epochs=[5, 3])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Table(Path(folder) / "rows.jsonl", ("seed",))
        ...     run_jobs([Job("nets", [{"seed": 0}, {"seed": 1}], build, figures)], table, Path(folder))
        >>> [(row["seed"], row["epochs"]) for row in table.rows]
        [(1, 3), (0, 5)]
    """
    _check(jobs, table)
    folder = Path(folder)
    with alone_in(folder, again):
        _run_jobs(jobs, table, folder, watch or Nobody(), stop, again)


def _check(jobs: Sequence[Job], table: Table) -> None:
    """What would be written over: a checkpoint by that of another job, a row by that of another run."""
    for name, value, kind, takes in (("jobs", jobs, Sequence, "a list of Job objects"), ("table", table, Table, "a Table")):
        if not isinstance(value, kind):
            raise ValueError(f"run_jobs: {name} is of type {type(value).__name__}; it takes {takes}")
    names: set[str] = set()
    keys: set[tuple[Any, ...]] = set()
    for index, job in enumerate(jobs):
        if not isinstance(job, Job):
            raise ValueError(f"run_jobs: jobs[{index}] is of type {type(job).__name__}; it takes a list of Job objects")
        if job.name in names:
            raise ValueError(f"run_jobs: two jobs are named {job.name!r}; the state of one would be written over the other's")
        names.add(job.name)
        for key in job.keys:
            if lacking := [column for column in table.key if column not in key]:
                raise ValueError(
                    f"run_jobs: a key of job {job.name!r} lacks {', '.join(lacking)}, by which the table tells rows"
                )
            if table.name_of(key) in keys:
                raise ValueError(f"run_jobs: two runs have the key {shown(key)}; a table has one row for each key")
            keys.add(table.name_of(key))


def _run_jobs(jobs: Sequence[Job], table: Table, folder: Path, watch: Watch, stop: StopSignal | None, again: str) -> None:
    total = sum(len(job.keys) for job in jobs)
    open_jobs = [job for job in jobs if any(True for _ in table.missing(job.keys))]
    later = sum(job.work for job in open_jobs)
    done = total - sum(len(list(table.missing(job.keys))) for job in open_jobs)
    shares = [row["epochs"] / row["max_epochs"] for row in table.rows if row.get("max_epochs") and row.get("epochs")]
    for job in open_jobs:
        later -= job.work
        session = _Session(job, table, folder, later, shares)
        count = f"{len(job.keys)} run{'' if len(job.keys) == 1 else 's'}"
        watch.say(f"{job.name}: {count}, {session.stack.reason}")
        session.write_rows()
        try:
            while session.stack.active:
                session.visit()
                watch.update(done + session.written, total, job.name, session.seconds_left())
                number = stop.number if stop is not None else None
                if number is not None or time.monotonic() >= session.saved + CHECKPOINT_EVERY:
                    session.save()
                if number is not None and session.stack.active:
                    raise TrainingInterrupted(f"stopped after a whole step; go on with: {again}", number, folder)
        finally:
            watch.update(done + session.written, total, job.name, None)
        done += session.written
        shares += session.stack.expected_shares().tolist()
        (folder / NAME).unlink(missing_ok=True)
    _forget(folder / NAME, jobs)


def _forget(path: Path, jobs: Sequence[Job]) -> None:
    """Remove the checkpoint of one of these jobs, all of which are complete: a kill came between its last row and its end."""
    if path.exists() and load_checkpoint(path).get("job") in {job.name for job in jobs}:
        path.unlink()


class _Session:
    """A job in progress."""

    def __init__(self, job: Job, table: Table, folder: Path, later: float, shares: Sequence[float]) -> None:
        self.job, self.table, self.path, self.later, self.shares = job, table, folder / NAME, later, tuple(shares)
        self.stack = job.build()
        if len(job.keys) != len(self.stack.runs):
            raise ValueError(
                f"run_jobs: job {job.name!r} has {len(job.keys)} keys for {len(self.stack.runs)} runs of its stack"
            )
        self.seconds = 0.0
        self._whole = self.stack.remaining_steps()
        self._restore()
        self._ended: set[int] = set()
        missing = {id(row) for row in table.missing(job.keys)}
        self._there = {index for index, key in enumerate(job.keys) if id(key) not in missing}
        self.written = 0
        self._steps, self._rate = 1, 0.0
        self.saved = time.monotonic()

    def _restore(self) -> None:
        if not self.path.exists():
            return
        state = load_checkpoint(self.path)
        if state.get("job") != self.job.name:
            return  # of a job that is complete: the kill came before the file was removed
        try:
            self.stack.load_state_dict(state["stack"])
            self.seconds = state["seconds"]
        except (KeyError, ValueError) as error:
            raise RunFolderError(
                f"{self.path}: the checkpoint does not fit ({error}); delete it to train this stack from its start"
            ) from error

    def visit(self) -> None:
        """Train for about a second, and write the rows of the runs that end."""
        began = lap = time.perf_counter()
        moved = 0
        while self.stack.active and lap - began < VISIT:
            runs = len(self.stack.active)
            taken = self.stack.advance(self._steps)
            now = time.perf_counter()
            self.seconds += now - lap
            self._steps = max(1, int(taken * VISIT / max(now - lap, 1e-9)))
            moved += taken * runs
            if len(self.stack.active) < runs:
                self.write_rows()
            lap = time.perf_counter()
        self._rate = moved / max(lap - began, 1e-9)

    def write_rows(self) -> None:
        """A row for every run that has ended and has none."""
        active = set(self.stack.active)
        for index in range(len(self.job.keys)):
            if index in active or index in self._ended:
                continue
            self._ended.add(index)
            if index not in self._there:
                figures = {**self.job.figures(self.stack, index), "seconds": round(self.seconds, 3)}
                self.table.add({**self.job.keys[index], **figures})
                self.written += 1

    def save(self) -> None:
        """Write the checkpoint."""
        save_checkpoint(self.path, {"job": self.job.name, "stack": self.stack.state_dict(), "seconds": self.seconds})
        self.saved = time.monotonic()

    def seconds_left(self) -> float | None:
        """An estimate: what the active runs are expected to take, later stacks like those in the table, over the speed."""
        if not self._rate:
            return None
        shares = self.stack.expected_shares(self.shares)
        later = self.later / self.job.work * self._whole if self.job.work else 0.0
        mean = float(np.mean([*self.shares, *shares]))
        return (self.stack.remaining_steps(shares) + later * mean) / self._rate


def figures(stack: Stack, index: int, threshold: float = 1e-4) -> Row:
    r"""The figures of a run that has ended, for a row.

    Args:
        stack: its stack.
        index: its number there.
        threshold: τ; a weight with \|w\| < τ counts into ``sparsity``, an exact zero into ``exact_sparsity`` too.

    Returns:
        ``status``, ``epochs``; ``mse`` (or ``cross_entropy``), ``final_loss`` and ``best_loss``: the last epoch's loss without
        and with the penalty, and the best with it; ``sparsity`` and ``exact_sparsity``: shares of all weights, and of the
        k-th tensor's as ``sparsity_k`` and ``exact_sparsity_k``, k = 1, 2, …. Of a diverged run all but the first two are None.

    Raises:
        ValueError: if the run has not ended, or for a threshold that is no number, 0 or more.
        IndexError: if the stack has no such run.

    Example:
        >>> import torch
        >>> from sparsenn.training.stacked import Run, Stack, figures
        >>> x = torch.randn(32, 4)
        >>> stack = Stack([torch.nn.Linear(4, 1)], [Run(optimizer="prox", lam=10.0)], [(x, x[:, :1])], max_epochs=30)
        >>> while stack.active:
        ...     stack.epoch()
        >>> row = figures(stack, 0)
        >>> row["status"], row["epochs"], row["exact_sparsity_1"]
        ('finished', 30, 1.0)
    """
    if not NOT_NEGATIVE.fits(threshold):
        raise ValueError(f"figures: threshold is {shown(threshold)}; it takes {NOT_NEGATIVE.takes}")
    outcome = stack.outcome(index)
    if outcome.status == ACTIVE:
        raise ValueError(f"figures: run {index} has not ended")
    tensors = list(outcome.weights.values())
    count = sum(w.numel() for w in tensors)
    below, zeros = [int((w.abs() < threshold).sum()) for w in tensors], [int((w == 0).sum()) for w in tensors]
    row: Row = {stack.loss: outcome.data_loss, "final_loss": outcome.loss, "best_loss": outcome.best_loss}
    for name, found in (("sparsity", below), ("exact_sparsity", zeros)):
        row[name] = sum(found) / count
        row |= {f"{name}_{k}": n / w.numel() for k, (n, w) in enumerate(zip(found, tensors, strict=True), start=1)}
    if outcome.status == DIVERGED:
        row = dict.fromkeys(row)
    return {"status": outcome.status, "epochs": outcome.epochs, **row}
