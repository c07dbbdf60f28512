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


def load_kernels() -> None:
    """Load the libraries that fit this torch; warn once where kernels that should be there are not."""
    import torch

    _libraries["cpu"] = _load("cpu")
    if torch.version.cuda is None:
        _libraries["cuda"] = Library("cuda", None, f"torch {torch.__version__} is built without CUDA")
    else:
        _libraries["cuda"] = _load("cuda")
    cpu = _libraries["cpu"]
    if not cpu.loaded and not os.environ.get("SPARSENN_NO_WARNING"):
        warnings.warn(
            f"sparsenn runs on its slower PyTorch reference: {cpu.problem}. To build the kernels: {_REBUILD} "
            "(SPARSENN_NO_WARNING=1 silences this)",
            stacklevel=2,
        )


def _load(name: str) -> Library:
    import torch

    if os.environ.get("SPARSENN_REFERENCE") == "1":
        return Library(name, None, "SPARSENN_REFERENCE=1 is set")
    found = sorted(Path(__file__).parent.glob(f"_{name}.*so"))
    if not found:
        return Library(name, None, f"the {name} library was not built")
    path = found[-1]
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Library(name, path, f"{path.name} does not load with torch {torch.__version__}: {error}")
    return Library(name, path, None)


def require_kernels() -> None:
    """Raise, with the cure, unless the CPU kernels are loaded."""
    cpu = _libraries["cpu"]
    if not cpu.loaded:
        raise RuntimeError(f"sparsenn's compiled kernels are not available: {cpu.problem}. To build them: {_REBUILD}")


def status() -> dict[str, Any]:
    """What was built, and what is loaded once `sparsenn.ops` is imported."""
    try:
        from sparsenn import _native

        build: dict[str, str] = _native.build_info()
    except ImportError as error:
        build = {"problem": str(error)}
    return {"build": build, "libraries": dict(_libraries)}
