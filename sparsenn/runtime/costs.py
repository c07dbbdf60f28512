"""What a row, a weight and a column cost on this machine: measured once, kept in the user's cache folder."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sparsenn._files import write_atomic

LANES = (16, 32, 64)
_VERSION = 1
_SIZE = 512  # of the layers that are measured
_DENSITY = 0.05


@dataclass(frozen=True)
class Costs:
    """Seconds.

    Attributes:
        one_row, one_nonzero: of one sample in a sparse linear layer.
        one_weight: of one sample in a dense one.
        row, nonzero: of 16, 32 and 64 samples in a sparse layer.
        weight: of 16, 32 and 64 samples in a dense one.
        turn: of an input of a sample on its way into a panel.
    """

    one_row: float
    one_nonzero: float
    one_weight: float
    row: tuple[float, ...]
    nonzero: tuple[float, ...]
    weight: tuple[float, ...]
    turn: float

    def one(self, rows: int, columns: int, nonzeros: int, dense: bool) -> float:
        """A linear layer for one sample."""
        return self.one_weight * rows * columns if dense else self.one_row * rows + self.one_nonzero * nonzeros

    def panel(self, lanes: int, rows: int, columns: int, nonzeros: int, dense: bool) -> float:
        """A layer for a panel of so many lanes at one place."""
        i = LANES.index(lanes)
        return self.weight[i] * rows * columns if dense else self.row[i] * rows + self.nonzero[i] * nonzeros


_known: Costs | None = None


def costs() -> Costs:
    """This machine's, measured now if they never were. A cache that cannot be read or written is no error."""
    global _known
    if _known is None:
        path = cache_file()
        _known = _read(path)
        if _known is None:
            _known = measure()
            _write(path, _known)
    return _known


def cache_file() -> Path:
    """Where they are kept: ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``sparsenn``, by the processor's name."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if root else Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111 (never raises)
    return base / "sparsenn" / f"runtime-{_VERSION}-{_processor()}.json"


def measure() -> Costs:
    """Time the kernels themselves: layers of 512 × 512 with 0, 5 and 100 % of their weights; some 50 ms."""
    empty, some, full = (_layer(density) for density in (0.0, _DENSITY, 1.0))
    nonzeros = len(some[1])
    one_empty, one_some = _seconds(empty, 1, False), _seconds(some, 1, False)
    found: dict[str, Any] = {
        "one_row": one_empty / _SIZE,
        "one_nonzero": max(one_some - one_empty, 1e-12) / nonzeros,
        "one_weight": _seconds(full, 1, True) / _SIZE**2,
    }
    rows = [_seconds(empty, lanes, False) for lanes in LANES]
    products = [_seconds(some, lanes, False) for lanes in LANES]
    found["turn"] = max(products[-1] - rows[-1], 1e-12) / (64 * _SIZE) * 0.1
    found["row"] = tuple(seconds / _SIZE for seconds in rows)
    found["nonzero"] = tuple(max(b - a, 1e-12) / nonzeros for a, b in zip(rows, products, strict=True))
    found["weight"] = tuple(_seconds(full, lanes, True) / _SIZE**2 for lanes in LANES)
    return Costs(**found)


def _layer(density: float) -> tuple[np.ndarray, np.ndarray]:
    mask = np.random.default_rng(0).random((_SIZE, _SIZE)) < density
    starts = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
    return starts, np.nonzero(mask)[1].astype(np.int32)


def _seconds(layer: tuple[np.ndarray, np.ndarray], lanes: int, dense: bool) -> float:
    """The least time of one call."""
    from sparsenn import _native

    starts, columns = layer
    network = _native.Network(_SIZE, 1, 1)
    values, bias = np.full(len(columns), 1e-3, np.float32), np.zeros(_SIZE, np.float32)
    network.product(0, starts, columns, values, bias, [1, 1, 1, 1, 0, 0, 1, 1], False, dense, dense)
    prices = [1.0, 1e9, 1e9, 1e9] if lanes == 1 else [1e9, *(1e-9 if n == lanes else 1e9 for n in LANES)]
    network.finish([0, _SIZE], [0, _SIZE], prices, 1)
    x = np.ones((lanes, _SIZE), np.float32)
    network.run(x)
    best = np.inf
    for _ in range(12):
        start = time.perf_counter()
        for _ in range(4):
            network.run(x)
        best = min(best, (time.perf_counter() - start) / 4)
    return best


def _read(path: Path) -> Costs | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if set(stored) != {field.name for field in fields(Costs)}:
            return None
        found = Costs(**{name: tuple(value) if isinstance(value, list) else float(value) for name, value in stored.items()})
        numbers = np.array([found.one_row, found.one_nonzero, found.one_weight, found.turn, *found.row, *found.nonzero, *found.weight])
        return found if numbers.size == 13 and np.isfinite(numbers).all() and (numbers > 0).all() else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write(path: Path, found: Costs) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(found)).encode())
    except OSError:
        pass  # the next process measures again


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    try:
        text = info.read_text(encoding="utf-8") if info.exists() else ""
    except OSError:
        text = ""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    names = [found.get("model name", platform.processor() or platform.machine()), found.get("cpu family", ""), found.get("model", "")]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(names).lower()).strip("-") or "unknown"
