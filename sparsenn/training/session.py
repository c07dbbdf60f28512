"""The surroundings of a run, set up and put back: threads, random numbers, signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch

from sparsenn.training.errors import ConfigError


class Place(Protocol):
    """Where something runs."""

    @property
    def device(self) -> str:
        """As in ``TrainConfig``."""

    @property
    def threads(self) -> int:
        """As in ``TrainConfig``."""


@contextmanager
def session(config: Place) -> Iterator[None]:
    """Run the block with the threads of ``config`` and deterministic convolutions; the caller's state is restored.

    Raises:
        ConfigError: if the device is not there.
    """
    devices = check_device(config.device)
    threads, deterministic, benchmark = (
        torch.get_num_threads(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    try:
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark


def check_compiler(device: str) -> None:
    """See ``torch.compile`` work once.

    Raises:
        ConfigError: if it does not, for want of a compiler say, or if the device is not there.
    """
    check_device(device)
    try:
        torch.compile(torch.neg)(torch.ones(1, device=device))
    except Exception as error:  # a compiler's own, a full disk, a folder of caches that is a file
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(filter(str.strip, str(cause).splitlines()), type(cause).__name__)
        raise ConfigError(f"compile takes a torch.compile that works on {device}; here it says: {reason}") from error


def check_device(name: str) -> list[int]:
    """The CUDA devices that a device's name stands for.

    Raises:
        ConfigError: if it is not there.
    """
    if name == "cpu":
        return []
    count, index = torch.cuda.device_count(), torch.device(name).index or 0
    if index >= count:
        found = (
            f"this machine has {count} CUDA device{'s' if count != 1 else ''}" if count else "PyTorch sees no CUDA device here"
        )
        raise ConfigError(f"device is {name!r}, but {found}; device cpu works everywhere")
    return [index]


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a wish to stop, and leaves the second one to Python.

    It acts in the main thread only; elsewhere (a notebook's worker, say) signals stay what they were.

    Example:
        >>> from sparsenn.training.session import StopSignal
        >>> with StopSignal() as stop:
        ...     stop.wanted()
        False
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def wanted(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
