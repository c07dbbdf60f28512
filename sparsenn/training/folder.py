"""The folder of a run: who may write into it, and what lies where."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

try:
    import fcntl
except ImportError:  # Windows has none, and no lock that a killed process gives back
    fcntl = None  # type: ignore[assignment]

from sparsenn.training.config import TrainConfig, resumed
from sparsenn.training.errors import ConfigError, RunFolderError
from sparsenn.training.files import parse_json, remove_parts, write_json
from sparsenn.training.presets import FACTORIZED

CONFIG = "config.json"
SWEEP = "sweep.json"

_NAMES = ("EACCES", "EDQUOT", "EEXIST", "EFBIG", "EIO", "ENAMETOOLONG", "ENOSPC", "ENOTDIR", "EPERM", "EROFS")
_NO_WRITING = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}


class Settings(Protocol):
    """What a folder is opened with."""

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""


def open_new(folder: str | Path, config: Settings, name: str = CONFIG) -> Path:
    """Make ``folder`` the home of a new run or sweep and write its configuration, under ``name``.

    Raises:
        RunFolderError: if it holds a run or anything else, or cannot be written.
    """
    folder = Path(folder)
    with writing_in(folder, "--out takes a new or an empty folder"), _locked(folder):
        if (folder / name).exists():
            kind = "run" if name == CONFIG else "sweep"
            raise RunFolderError(
                f"{folder} holds another {kind}; add --resume to go on with it, or name another folder with --out"
            )
        if any(folder.iterdir()):
            raise RunFolderError(f"{folder} is not empty; --out takes a new or an empty folder")
        write_json(folder / name, config.to_dict())
    return folder


@contextlib.contextmanager
def writing_in(folder: Path, cure: str) -> Iterator[None]:
    """Say so in a sentence where the folder takes no more; an error that is about something else stays what it is.

    Args:
        folder: made where it is not there.
        cure: the end of the sentence.

    Raises:
        RunFolderError: if something can't be written.
    """
    entered = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entered = True
        yield
    except OSError as error:
        if entered and not _is_about_writing(error, folder):  # before that it may be about a parent
            raise
        raise RunFolderError(f"{error.filename or folder}: cannot be written ({error.strerror or error}); {cure}") from error


@contextlib.contextmanager
def alone_in(folder: Path, again: str = "the same command") -> Iterator[None]:
    """Let no other process that asks for it into a folder as long as this lasts; a kill ends it too.

    Args:
        folder: made where it is not there.
        again: the command that goes on, for the message where something can't be written.

    Raises:
        RunFolderError: if another one is there, or something can't be written.
    """
    with writing_in(folder, f"go on with: {again}"), _locked(folder):
        yield


@contextlib.contextmanager
def alone_at(file: Path) -> Iterator[None]:
    """The same for one file, made where it is not there; others in its folder are free.

    Raises:
        RunFolderError: if another process is there, or something can't be written.
    """
    with writing_in(file.parent, "go on with: the same command"):
        if not file.exists():  # one that takes no more may be read-only
            file.touch()
        with _locked(file):
            yield


def _is_about_writing(error: OSError, folder: Path) -> bool:
    """Whether it says that the folder takes no more, and not that something else is missing or closed."""
    named = isinstance(error.filename, str | bytes)
    elsewhere = named and not Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder.absolute())
    return error.errno in _NO_WRITING and not elsewhere


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # of a file system that has no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunFolderError(f"{place}: another process trains here; wait for it, or name another folder") from error
        yield
    finally:
        os.close(handle)


def stored_config(folder: str | Path) -> dict[str, Any]:
    """The settings with which the run in ``folder`` was started.

    Raises:
        RunFolderError: if there is no run, or its configuration is damaged.
    """
    path = Path(folder) / CONFIG
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
        return TrainConfig(**stored).to_dict()
    except FileNotFoundError as error:
        raise RunFolderError(f"{folder} holds no run to resume (no {CONFIG}); drop --resume to start one there") from error
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise RunFolderError(f"{path}: {error}") from error
        raise RunFolderError(f"{path}: not the configuration of a run ({error})") from error


def open_again(folder: str | Path, given: dict[str, Any]) -> tuple[Path, TrainConfig]:
    """Go on with the run in ``folder``; ``given`` may hold what the run was started with, and no other values.

    Raises:
        RunFolderError: if there is no run, or another process trains it.
        ConfigError: if ``given`` contradicts it.
    """
    folder = Path(folder)
    config = resumed(stored_config(folder), given)
    with alone_in(folder, go_on(folder)):
        for place in (folder, folder / "twin"):
            remove_parts(place)
    return folder, config


def go_on(folder: Path) -> str:
    """The command that goes on with the run in ``folder``."""
    return f"sparsenn train --out {folder} --resume"


def fresh_name(root: str | Path, config: TrainConfig) -> Path:
    """A folder under ``root`` that does not exist yet, named after the run."""
    method = f"{config.method}{config.depth}" if config.method in FACTORIZED else config.method
    return fresh(Path(root) / f"{config.dataset}-{config.model}-{method}-seed{config.seed}")


def fresh(base: Path) -> Path:
    """``base``, or that with the first number behind it under which nothing is there."""
    candidate, number = base, 2
    while candidate.exists():
        candidate, number = base.with_name(f"{base.name}-{number}"), number + 1
    return candidate
