"""Finds and loads the compiled libraries once, and remembers why one could not be loaded."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


@dataclass(frozen=True)
class Library:
    """A compiled library: where it is, and why it is not in use, if it is not."""

    name: str
    path: Path | None
    problem: str | None

    @property
    def loaded(self) -> bool:
        """Whether its kernels serve the operators."""
        return self.problem is None


_libraries: dict[str, Library] = {}
_warned: set[str] = set()


def load_kernels(schemas: str) -> None:
    """Load the libraries that fit this torch and these operators; warn where the CPU's, which should be there, are not.

    Args:
        schemas: the fingerprint of the operators' schemas. A library passes arguments by position, so one that was built for
            others would read and write what it should not.
    """
    import torch

    _libraries["cpu"] = _load("cpu", schemas)
    if torch.version.cuda is None:
        _libraries["cuda"] = Library("cuda", None, f"torch {torch.__version__} is built without CUDA")
    else:
        _libraries["cuda"] = _load("cuda", schemas)
    if not loaded("cpu"):
        warn_once("cpu")


def loaded(name: str) -> bool:
    """Whether compiled kernels serve the operators on a type of device; of devices other than "cpu" and "cuda" none do."""
    return name in _libraries and _libraries[name].loaded


def warn_once(name: str) -> None:
    """Say, the first time, that a library's kernels are missing."""
    if name not in _warned and not os.environ.get("SPARSENN_NO_WARNING"):
        where = "" if name == "cpu" else f" on {name.upper()} tensors"
        warnings.warn(
            f"sparsenn runs on its slower PyTorch reference{where}: {_libraries[name].problem}. To build the kernels: "
            f"{_REBUILD} (SPARSENN_NO_WARNING=1 silences this)",
            stacklevel=3,
        )
    _warned.add(name)


def _load(name: str, schemas: str) -> Library:
    import torch

    if os.environ.get("SPARSENN_REFERENCE") == "1":
        return Library(name, None, "SPARSENN_REFERENCE=1 is set")
    found = sorted(Path(__file__).parent.glob(f"_{name}.*so"))
    if not found:
        return Library(name, None, f"the {name} library was not built")
    path = found[-1]
    if _built_for() not in (None, schemas):
        return Library(name, path, f"{path.name} was built from another version of sparsenn, with other operators")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Library(name, path, f"{path.name} does not load with torch {torch.__version__}: {error}")
    return Library(name, path, None)


def _built_for() -> str | None:
    """The fingerprint of the schemas that the libraries were built for; None where no build says so."""
    return _build().get("schemas")


def _build() -> dict[str, str]:
    try:
        from sparsenn import _native
    except ImportError as error:
        return {"problem": str(error)}
    return _native.build_info()


def require_kernels(name: str) -> None:
    """Raise, with the cure, unless a library's kernels are loaded."""
    library = _libraries[name]
    if not library.loaded:
        raise RuntimeError(
            f"sparsenn's compiled kernels for {name.upper()} are not available: {library.problem}. To build them: {_REBUILD}"
        )


def status() -> dict[str, Any]:
    """What was built, and what is loaded once `sparsenn.ops` is imported."""
    return {"build": _build(), "libraries": dict(_libraries)}
