"""The pictures of a run, drawn without a display."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from sparsenn.training.figures import mark_phases, new_axes, new_figure, png
from sparsenn.training.files import write_atomic
from sparsenn.training.logging import Record
from sparsenn.training.presets import FACTORIZED
from sparsenn.training.result import Outcome, Result

_NET, _TWIN = "#1f5fa8", "#9a9a9a"


def write_pictures(result: Result, folder: Path) -> list[Path]:
    """Draw accuracy, compression and misalignment over the epochs, with the phases of a factorized net, and the weight map.

    Args:
        result: the run.
        folder: where ``accuracy.png``, ``compression.png``, ``misalignment.png`` (for factorized nets) and ``weights.png`` go.

    Returns:
        The files written.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    drawings = {"accuracy.png": _accuracy(result), "compression.png": _compression(result), "weights.png": _weights(result.net)}
    if result.net.config.method in FACTORIZED:
        drawings["misalignment.png"] = _misalignment(result)
    for name, figure in drawings.items():
        write_atomic(folder / name, png(figure))
    return [folder / name for name in drawings]


def _over_epochs(title: str, ylabel: str) -> tuple[Any, Any]:
    return new_axes(title, "epoch", ylabel)


def _series(history: list[Record], key: str) -> tuple[list[int], list[float]]:
    return [r["epoch"] for r in history], [math.nan if r[key] is None else r[key] for r in history]


def _accuracy(result: Result) -> Any:
    figure, axes = _over_epochs(f"Accuracy, {_name(result.net)}", "accuracy (%)")
    for net, color, label in _nets(result):
        for key, style in (("train_accuracy", ":"), ("test_accuracy", "-")):
            epochs, values = _series(net.history, key)
            axes.plot(
                epochs,
                [100 * v for v in values],
                style,
                color=color,
                label=f"{label}, {key.split('_')[0]}",
                marker=_dot(epochs),
            )
    _mark(axes, result.net)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _compression(result: Result) -> Any:
    figure, axes = _over_epochs(f"Compression, {_name(result.net)}", "all weights / weights above the threshold")
    for net, color, label in _nets(result):
        epochs, values = _series(net.history, "compression_ratio")
        axes.plot(epochs, values, color=color, label=label, marker=_dot(epochs))
    _mark(axes, result.net)
    axes.set_yscale("log")
    axes.legend(frameon=False, loc="upper left")
    return figure


def _misalignment(result: Result) -> Any:
    figure, axes = _over_epochs(f"Factor misalignment, {_name(result.net)}", "mean of (1/D) Σ ω² − |w|^(2/D)")
    epochs, values = _series(result.net.history, "misalignment")
    axes.plot(epochs, values, color=_NET, marker=_dot(epochs))
    _mark(axes, result.net)
    if any(v > 0 for v in values):
        axes.set_yscale("log")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    return figure


def _mark(axes: Any, net: Outcome) -> None:
    if net.phases is not None:
        mark_phases(axes, net.phases)


def _weights(net: Outcome) -> Any:
    layers = [
        (name, np.asarray(w.detach().double()).reshape(len(w), -1)) for name, w in net.model.named_parameters() if w.dim() > 1
    ]
    figure = new_figure(7.5, 0.6 + 2.0 * len(layers))
    for axes, (name, matrix) in zip(figure.subplots(len(layers), 1, squeeze=False)[:, 0], layers, strict=True):
        limit = float(np.quantile(np.abs(matrix[matrix != 0]), 0.98)) if (matrix != 0).any() else 1.0
        rows, columns = matrix.shape
        image = axes.imshow(
            _thicken(matrix),
            cmap="RdBu",
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="nearest",
            extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        )
        alive = int((matrix != 0).sum())
        axes.set(title=f"{name}: {alive:,} of {matrix.size:,} weights are not 0", xlabel="input", ylabel="neuron")
        figure.colorbar(image, ax=axes)
    figure.suptitle(f"Weights, {_name(net)}")
    return figure


def _thicken(matrix: np.ndarray, columns: int = 300) -> np.ndarray:
    """The matrix in at most ``columns`` columns and rows, each cell its largest entry: no lone weight gets lost."""
    for axis in (0, 1):
        group = -(-matrix.shape[axis] // columns)
        if group > 1:
            starts = np.arange(0, matrix.shape[axis], group)
            high, low = np.maximum.reduceat(matrix, starts, axis), np.minimum.reduceat(matrix, starts, axis)
            matrix = np.where(high >= -low, high, low)
    return matrix


def _nets(result: Result) -> list[tuple[Outcome, str, str]]:
    nets = [(result.net, _NET, "this net")]
    return nets if result.twin is None else [*nets, (result.twin, _TWIN, "dense twin")]


def _name(net: Outcome) -> str:
    return f"{net.config.model} on {net.config.dataset}"


def _dot(epochs: list[int]) -> str:
    """A lone point is invisible without a marker."""
    return "o" if len(epochs) == 1 else ""
