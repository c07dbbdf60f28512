"""The arrows of docs/design.md: a room imports only what it is built upon, and importing the package costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparsenn

PACKAGE = Path(sparsenn.__file__).parent
# A room may import itself and the rooms of earlier rows.
ROWS = [
    {"_native", "_files", "_numbers", "_sources"},
    {"runtime"},
    {"_extension", "_extras"},
    {"ops"},
    {"init"},
    {"nn"},
    {"penalties"},
    {"optim"},
    {"prune", "metrics"},
    {"models", "data"},
    {"artefact"},
    {"training"},
    {"papers"},
    {"cli"},
    {"__main__"},
]
ROW = {room: i for i, row in enumerate(ROWS) for room in row}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path):
    """Rooms that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "sparsenn" else [node.module]
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative imports hide the arrows")
        yield from (parts[1] for name in names if (parts := name.split("."))[0] == "sparsenn" and len(parts) > 1)


@pytest.mark.parametrize(
    "path", sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name != "__init__.py"), ids=lambda p: p.name
)
def test_no_arrow_points_back(path):
    room = room_of(path)
    for imported in imports(path):
        if imported == "__version__":
            continue
        assert imported in ROW, f"{path} imports sparsenn.{imported}, which is in no row of docs/design.md"
        assert imported == room or ROW[imported] < ROW[room], f"{room} is not built upon {imported}"


CSRC = PACKAGE.parent / "csrc"


@pytest.mark.skipif(not CSRC.exists(), reason="needs the source tree")
def test_no_arrow_points_back_in_cpp():
    built_upon = {
        "math": {"math"},
        "launchers.h": set(),
        "cpu": {"math", "cpu", "launchers.h"},
        "cuda": {"math", "cuda", "launchers.h"},
        "runtime": {"math", "cpu", "runtime"},
        "registration": {"math", "launchers.h", "registration", "runtime"},
    }
    for path in CSRC.rglob("*"):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
            continue
        room = path.relative_to(CSRC).parts[0]
        text = path.read_text(encoding="utf-8")
        for included in re.findall(r'#include "([^"]+)"', text):
            assert included.split("/")[0] in built_upon[room], f"{path} includes {included}"
        if room != "registration":
            assert "torch/" not in text, f"{path}: only the registration knows torch"


def in_fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_brings_no_torch():
    assert in_fresh_python("import sys, sparsenn; print('torch' in sys.modules, 'numpy' in sys.modules)") == "False False"


def test_the_native_core_brings_no_torch():
    code = (
        "import sys, numpy as np; from sparsenn import _native; x = np.arange(6.).reshape(2, 3); "
        "print('torch' in sys.modules, (_native.hadamard_product([x, x.T.copy().T]) == x * x).all())"
    )
    pytest.importorskip("sparsenn._native", reason="the NumPy module is not built")
    assert in_fresh_python(code) == "False True"


def test_every_public_name_resolves():
    for name in sparsenn.__all__:
        assert getattr(sparsenn, name) is not None
    assert set(sparsenn.__all__) <= set(dir(sparsenn))
    with pytest.raises(AttributeError, match="no attribute 'fastnn'"):
        sparsenn.fastnn  # noqa: B018
