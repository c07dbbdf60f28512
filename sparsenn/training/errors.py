"""What stops a run, each with all that is needed to go on. ``exit_code`` is what the command line ends with."""

from __future__ import annotations

from pathlib import Path


class ConfigError(ValueError):
    """A setting is unknown or out of range; the message names it, what it got and what it takes."""

    exit_code = 2


class RunFolderError(RuntimeError):
    """The run folder holds another run, none, or a damaged one; the message names the cure."""

    exit_code = 2


class TrainingDiverged(RuntimeError):  # noqa: N818 (an event with a checkpoint, as StopIteration is one)
    """The loss is no longer a finite number.

    Attributes:
        epoch: the epoch, counted from 1, in which that was seen.
        checkpoint: the last good checkpoint, or None if there is none.
    """

    exit_code = 3

    def __init__(self, message: str, epoch: int, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.checkpoint = checkpoint


class TrainingInterrupted(RuntimeError):  # noqa: N818
    """A signal ended the run after its state was written.

    Attributes:
        signal_number: which signal.
        folder: the folder to resume.
    """

    def __init__(self, message: str, signal_number: int, folder: Path) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.folder = folder

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 130 after Ctrl-C."""
        return 128 + self.signal_number
