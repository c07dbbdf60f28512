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
_VERSION = 3
_SIZE = 256  # of the layers that are measured
_DENSITY = 0.1
_TILE = 12  # rows that a dense kernel computes together, on the widest processors
_PACKING = 6  # about what it costs to lay a column out for it, in rows
_ALONE = 16  # samples that are run one after the other, so that the call itself counts little


@dataclass(frozen=True)
class Costs:
    """Seconds.

    Attributes:
        one_row, one_nonzero: of one sample in a sparse linear layer.
        one_weight: of one sample in a dense one.
        row, nonzero: of 16, 32 and 64 samples in a sparse layer.
        weight: of 16, 32 and 64 samples in a dense one.
        alone: of one sample that is run alone, beside its layers.
        turn: of a number of a sample on its way into a panel or out of it.
    """

    one_row: float
    one_nonzero: float
    one_weight: float
    row: tuple[float, ...]
    nonzero: tuple[float, ...]
    weight: tuple[float, ...]
    alone: float
    turn: float

    def one(self, rows: int, columns: int, nonzeros: int, dense: bool) -> float:
        """A linear layer for one sample."""
        return self.one_weight * rows * columns if dense else self.one_row * rows + self.one_nonzero * nonzeros

    def panel(self, lanes: int, rows: int, columns: int, nonzeros: int, dense: bool) -> float:
        """A layer for a panel of so many lanes at one place."""
        i = LANES.index(lanes)
        padded = -(-rows // _TILE) * _TILE + _PACKING
        return self.weight[i] * padded * columns if dense else self.row[i] * rows + self.nonzero[i] * nonzeros


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
    """Time the kernels themselves: layers of 256 × 256 with 0, 10 and 100 % of their weights; about 50 ms.

    A layer's time is half of what two more of it add to a network, so that neither the call nor the way into and out of a panel
    is counted.
    """
    empty, some, full = (_layer(density) for density in (0.0, _DENSITY, 1.0))
    nonzeros = len(some[1])
    times = {lanes: [_seconds(layer, lanes) for layer in (empty, some, full)] for lanes in (1, *LANES)}
    row = {lanes: own[0][1] / _SIZE for lanes, own in times.items()}
    nonzero = {lanes: max(own[1][1] - own[0][1], 0.1 * own[1][1]) / nonzeros for lanes, own in times.items()}
    weight = {lanes: own[2][1] / _SIZE**2 for lanes, own in times.items()}
    alone, together = (max(whole - layer, 1e-9) for whole, layer in (times[1][0], times[64][0]))
    rows, stored, weights = (tuple(by[lanes] for lanes in LANES) for by in (row, nonzero, weight))
    return Costs(row[1], nonzero[1], weight[1], rows, stored, weights, alone, together / (64 * 2 * _SIZE))


def _layer(density: float) -> tuple[np.ndarray, np.ndarray]:
    mask = np.random.default_rng(0).random((_SIZE, _SIZE)) < density
    starts = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
    return starts, np.nonzero(mask)[1].astype(np.int32)


def _seconds(layer: tuple[np.ndarray, np.ndarray], lanes: int) -> tuple[float, float]:
    """Of a network of one such layer, and of each further one: the least times for one sample alone, or for a panel."""
    short, long = (_network(layer, lanes, count) for count in (1, 3))
    x = np.ones((lanes if lanes > 1 else _ALONE, _SIZE), np.float32)
    calls = len(x) // lanes
    best = [np.inf, np.inf]
    for turn in range(17):  # of which the first only brings the weights into the caches
        for i, network in enumerate((short, long)):
            start = time.perf_counter()
            network.run(x)
            if turn:
                best[i] = min(best[i], (time.perf_counter() - start) / calls)
    return best[0], max((best[1] - best[0]) / 2, 1e-9)


def _network(layer: tuple[np.ndarray, np.ndarray], lanes: int, count: int) -> Any:
    from sparsenn import _native

    starts, columns = layer
    network = _native.Network(_SIZE, 1, 1)
    values, bias = np.full(len(columns), 1e-3, np.float32), np.zeros(_SIZE, np.float32)
    dense = len(columns) == _SIZE**2
    for at in range(count):
        network.product(at, starts, columns, values, bias, [1, 1, 1, 1, 0, 0, 1, 1], False, dense, dense)
    network.finish([0, _SIZE], [0, _SIZE], [1e-9 if n == lanes else 1.0 for n in (1, *LANES)], 1)
    return network


def _read(path: Path) -> Costs | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if set(stored) != {field.name for field in fields(Costs)}:
            return None
        parts: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else float(value) for name, value in stored.items()
        }
        found = Costs(**parts)
        numbers = np.hstack([np.array(value, float) for value in parts.values()])
        return found if numbers.size == 14 and np.isfinite(numbers).all() and (numbers > 0).all() else None
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
    names = [
        found.get("model name", platform.processor() or platform.machine()),
        found.get("cpu family", ""),
        found.get("model", ""),
    ]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(names).lower()).strip("-") or "unknown"
