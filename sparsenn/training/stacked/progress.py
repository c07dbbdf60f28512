"""What a sweep tells whoever watches: runs done, and about how long it will still take."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

LINE_EVERY = 30.0  # seconds, without a bar


class Watch(Protocol):
    """Who watches a sweep."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def update(self, done: int, total: int, title: str, seconds_left: float | None) -> None:
        """So many runs of so many are done; ``title`` is the stack in progress."""

    def close(self) -> None:
        """The sweep ended or stopped."""


class Nobody:
    """Nobody watches."""

    def say(self, text: str) -> None:
        """Says nothing."""

    def update(self, done: int, total: int, title: str, seconds_left: float | None) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Nothing to close."""


class Lines(Nobody):
    """A line every half minute and one at the end, where there is no terminal or no rich."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._next = stream, 0.0
        self._kept = ""  # what was too soon to be printed

    def say(self, text: str) -> None:
        """Print it."""
        print(text, file=self._stream, flush=True)

    def update(self, done: int, total: int, title: str, seconds_left: float | None) -> None:
        """Print, if the last line is long enough ago."""
        self._kept = f"{title}: {done}/{total} runs{_left(seconds_left)}"
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_EVERY
            self.close()

    def close(self) -> None:
        """Print what was not."""
        if self._kept:
            self.say(self._kept)
        self._kept = ""


class Bar(Nobody):
    """One bar for all runs."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("runs{task.fields[left]}"),
        )
        self._bars = Bars(*columns, console=Console(file=stream), refresh_per_second=2)
        self._task: Any = None

    def say(self, text: str) -> None:
        """Print it above the bar."""
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, done: int, total: int, title: str, seconds_left: float | None) -> None:
        """Move the bar."""
        if self._task is None:
            self._bars.start()
            self._task = self._bars.add_task(title, total=total, left="")
        self._bars.update(self._task, completed=done, total=total, description=title, left=_left(seconds_left))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bars.stop()


def watch_for(*, quiet: bool = False, stream: TextIO | None = None) -> Watch:
    """A bar on a terminal, lines elsewhere and where rich is not installed; nobody if ``quiet``."""
    stream = stream or sys.stderr
    if quiet:
        return Nobody()
    if not stream.isatty():
        return Lines(stream)
    try:
        return Bar(stream)
    except ImportError:
        return Lines(stream)


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", about {spoken(seconds)} left"


def spoken(seconds: float) -> str:
    """A length of time in the two largest units that it has.

    Example:
        >>> from sparsenn.training.stacked.progress import spoken
        >>> spoken(59.7), spoken(3700), spoken(200_000)
        ('1 min', '1 h 2 min', '2 d 7 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
