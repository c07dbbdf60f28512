"""What a row, a weight and a column cost on this machine: measured once, kept in the user's cache folder."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sparsenn._files import write_atomic

SAMPLES = (1, 8, 64)  # that are computed one after the other
LANES = (8, 16, 32, 64)  # of a panel; a dense kernel takes the last three
_WIDTHS = (256, 1024, 4096)  # columns of the layers that are measured
_VERSION = 6
_SIZE = 256  # of the square ones
_DENSITY = 0.1
_STRIP = 16  # rows that a dense kernel for samples computes together, on the widest processors
_TILE = 4  # rows that one for panels is padded to
_PACKING = 6  # about what it costs to lay a column out for it, in rows
_IMAGE = (3, 1)  # about what a number of an image costs between two products, in turns: alone, and in a panel
_FURTHER_EMPTY = 20  # layers without weights that are added, for one alone is quicker than a call is exact
_ALONE = 16  # samples of a sparse layer that are timed together, so that the call itself counts little


@dataclass(frozen=True)
class Costs:
    """Seconds.

    Attributes:
        row, nonzero: of one sample in a sparse linear layer.
        weight: of 1, 8 and 64 samples in a dense one.
        panel_row: of 8, 16, 32 and 64 samples in a panel, in a sparse layer.
        panel_weight: of 16, 32 and 64 in a dense one.
        panel_nonzero: of 8 to 64 for a stored weight, each in layers of 256, 1024 and 4096 columns, whose panels leave the
            first cache, then the second.
        alone: of one sample beside its layers, where no panel is filled.
        turn: of a number of a sample on its way into a panel or out of it.
    """

    row: float
    nonzero: float
    weight: tuple[float, ...]
    panel_row: tuple[float, ...]
    panel_nonzero: tuple[tuple[float, ...], ...]
    panel_weight: tuple[float, ...]
    alone: float
    turn: float

    def samples(self, rows: int, columns: int, nonzeros: int, dense: bool) -> list[float]:
        """A linear layer for 1, 8 and 64 samples one after the other."""
        if dense:
            return [weight * -(-rows // _STRIP) * _STRIP * columns for weight in self.weight]
        return [(self.row * rows + self.nonzero * nonzeros) * count for count in SAMPLES]

    def images(self, numbers: int) -> tuple[list[float], list[float]]:
        """So many numbers a sample that poolings and convolutions move, for the samples and for the panels."""
        each, panel = (turns * self.turn * numbers for turns in _IMAGE)
        return [each * count for count in SAMPLES], [panel * lanes for lanes in LANES]

    def panels(self, rows: int, columns: int, nonzeros: int, dense: bool) -> list[float]:
        """A layer for panels of 8, 16, 32 and 64 lanes, at one place."""
        if dense:
            padded = -(-rows // _TILE) * _TILE + _PACKING
            pairs = zip(self.panel_row[1:], self.panel_weight, strict=True)  # a row's result is written in either case
            return [math.inf, *(row * rows + weight * padded * columns for row, weight in pairs)]
        at, widths = np.log(max(columns, 1)), np.log(_WIDTHS)
        each = [float(np.interp(at, widths, own)) for own in self.panel_nonzero]
        return [row * rows + nonzero * nonzeros for row, nonzero in zip(self.panel_row, each, strict=True)]


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
    """Time the kernels themselves: layers of 256 × 256 with 0, 10 and 100 % of their weights, and wider ones; takes .25 s.

    A layer's time is what further ones of it add to a network, so that neither the call nor the way into and out of a panel is
    counted.
    """
    empty, some, full = (_layer(_SIZE, density) for density in (0.0, _DENSITY, 1.0))
    wide = [_layer(columns, _DENSITY) for columns in _WIDTHS]
    alone, row = _seconds(empty, _ALONE, 1, _FURTHER_EMPTY)
    _, nonzero = _seconds(some, _ALONE, 1)
    weight = tuple(_seconds(full, count, 1)[1] / _SIZE**2 for count in SAMPLES)
    panel_row, panel_nonzero, panel_weight = [], [], []
    for lanes in LANES:
        whole, rows = _seconds(empty, lanes, lanes, _FURTHER_EMPTY)
        own = [_seconds(layer, lanes, lanes)[1] - rows * len(layer.starts) / _SIZE for layer in wide]
        panel_row.append(rows / _SIZE)
        panel_nonzero.append(tuple(max(x, rows / 10) / len(layer.columns) for x, layer in zip(own, wide, strict=True)))
        if lanes > LANES[0]:
            panel_weight.append(_seconds(full, lanes, lanes)[1] / _SIZE**2)
    return Costs(
        row / (_SIZE * _ALONE),
        max(nonzero - row, 0.1 * nonzero) / (len(some.columns) * _ALONE),
        weight,
        tuple(panel_row),
        tuple(panel_nonzero),
        tuple(panel_weight),
        max(alone - row, 1e-9) / _ALONE,
        max(whole - rows, 1e-9) / (2 * _SIZE * LANES[-1]),
    )


@dataclass(frozen=True)
class _Layer:
    width: int
    starts: np.ndarray
    columns: np.ndarray


def _layer(width: int, density: float) -> _Layer:
    """Of as many weights as the square one."""
    mask = np.random.default_rng(0).random((_SIZE**2 // width, width)) < density
    starts = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
    return _Layer(width, starts, np.nonzero(mask)[1].astype(np.int32))


def _seconds(layer: _Layer, count: int, lanes: int, further: int = 2) -> tuple[float, float]:
    """For so many samples, the least times of a network of one such layer, and of each further one."""
    networks = [_network(layer, lanes, layers) for layers in (1, 1 + further)]
    x = np.ones((count, layer.width), np.float32)
    best = [np.inf, np.inf]
    for turn in range(17):  # of which the first only brings the weights into the caches
        for i, network in enumerate(networks):
            start = time.perf_counter()
            network.run(x)
            if turn:
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0], max((best[1] - best[0]) / further, 1e-9)


def _network(layer: _Layer, lanes: int, layers: int) -> Any:
    """One that runs by so many lanes: a chain of a square layer, or several wide ones side by side."""
    from sparsenn import _native

    rows, chained = len(layer.starts) - 1, layer.width == _SIZE
    network = _native.Network(layer.width, 1, 1)
    values, bias = np.full(len(layer.columns), 1e-3, np.float32), np.zeros(rows, np.float32)
    dense = [len(layer.columns) == rows * layer.width] * 3
    source = 0 if chained else network.flatten(0)  # a view of the input, which several may read
    for at in range(layers):
        of = at if chained else source
        network.product(of, layer.starts, layer.columns, values, bias, [1, 1, 1, 1, 0, 0, 1, 1], False, dense)
    samples, panel = ([1e-9 if n == lanes else 1.0 for n in own] for own in ((1, 1, 1), LANES))
    network.finish([0, layer.width], [0, rows], samples, panel, 1)
    return network


def _read(path: Path) -> Costs | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if set(stored) != {field.name for field in fields(Costs)}:
            return None
        parts: dict[str, Any] = {name: np.array(value, float) for name, value in stored.items()}
        numbers = np.concatenate([value.ravel() for value in parts.values()])
        if [value.shape for value in parts.values()] != _SHAPES or not (np.isfinite(numbers) & (numbers > 0)).all():
            return None
        return Costs(**{name: _tuples(value.tolist()) for name, value in parts.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


_SHAPES: list[tuple[int, ...]] = [(), (), (3,), (4,), (4, 3), (3,), (), ()]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


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
