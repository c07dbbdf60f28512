"""What a run tells while it runs: a line of JSON for every evaluation, and a bar for whoever watches."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from sparsenn.training.files import write_atomic

Record = dict[str, Any]


class MetricsLog:
    """The file ``metrics.jsonl``: one JSON object a line, the same bytes whether or not the run was interrupted.

    Opening it writes ``history`` anew, since a killed run may have logged more than its last checkpoint knows.
    """

    def __init__(self, path: Path, history: list[Record]) -> None:
        write_atomic(path, b"".join(_line(record) for record in history))
        self._path = path

    def append(self, record: Record) -> None:
        """Add one record."""
        with self._path.open("ab") as file:
            file.write(_line(record))


def _line(record: Record) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()


class Progress(Protocol):
    """Who watches a run."""

    def begin(self, title: str, epochs: int, done: int) -> None:
        """A net starts to train, ``done`` epochs of ``epochs`` behind it."""

    def advance(self, epoch: int, record: Record | None) -> None:
        """An epoch ended; ``record`` holds its evaluation, where there was one."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Quiet:
    """Nobody watches."""

    def begin(self, title: str, epochs: int, done: int) -> None:
        """Says nothing."""

    def advance(self, epoch: int, record: Record | None) -> None:
        """Says nothing."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to close."""


class PlainLines(Quiet):
    """About ten lines a net, for a terminal without rich."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._title, self._epochs, self._next = "", 1, 0

    def begin(self, title: str, epochs: int, done: int) -> None:
        """Remember the title; the first evaluation prints."""
        self._title, self._epochs, self._next = title, epochs, done

    def advance(self, epoch: int, record: Record | None) -> None:
        """Print an evaluation when a tenth of the epochs has gone by since the last line."""
        if record is None or (epoch < self._next and epoch < self._epochs):
            return
        self._next = epoch + max(1, self._epochs // 10)
        print(f"{self._title}: epoch {epoch}/{self._epochs}, {describe(record)}", file=self._stream, flush=True)


class RichBars(Quiet):
    """A progress bar for each net, with the latest loss, accuracy and compression."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        text = TextColumn("{task.fields[figures]}")
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), text, TimeRemainingColumn())
        self._bars = Bars(*columns, console=Console(file=stream), refresh_per_second=5)
        self._task: Any = None

    def begin(self, title: str, epochs: int, done: int) -> None:
        """Add a bar."""
        self._task = self._bars.add_task(title, total=epochs, completed=done, figures="")

    def advance(self, epoch: int, record: Record | None) -> None:
        """Move the bar on."""
        self._bars.update(self._task, completed=epoch)
        if record is not None:
            self._bars.update(self._task, figures=describe(record))

    def __enter__(self) -> RichBars:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()


def progress_for(*, quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """A bar on a terminal (plain lines where rich is not installed); nothing elsewhere, or if ``quiet``.

    Args:
        quiet: say nothing in any case.
        stream: where the bar would go; standard error by default.
    """
    stream = stream or sys.stderr
    if quiet or not stream.isatty():
        return Quiet()
    try:
        return RichBars(stream)
    except ImportError:
        return PlainLines(stream)


def describe(record: Record) -> str:
    """Loss, accuracy and compression of a record in a few words."""
    accuracy, compression = 100 * record["test_accuracy"], record["compression_ratio"]
    shown = "∞" if compression is None else f"{compression:.1f}"
    return f"loss {record['train_loss']:.4f}, test accuracy {accuracy:.1f} %, compression {shown}"
