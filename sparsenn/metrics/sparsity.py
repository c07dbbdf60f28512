"""How many weights of a model are zero: exactly, and within a threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsenn.nn.selection import check_module
from sparsenn.nn.spectral import SPECTRUM, SpectralLayer


@dataclass(frozen=True)
class LayerSparsity:
    """The zeros of one tensor, or of a whole model.

    Attributes:
        name: The tensor's name in the model, such as ``"fc1.weight"``.
        shape: Its shape; None for a whole model.
        numel: Number of entries.
        zeros: Number of entries that are exactly 0.
        below: Number of entries with magnitude at most the threshold; exact zeros are among them.
    """

    name: str
    shape: tuple[int, ...] | None
    numel: int
    zeros: int
    below: int

    @property
    def compression_ratio(self) -> float:
        """All entries over those above the threshold; inf where none is above, 1 where there are no entries."""
        return _ratio(self.numel, self.numel - self.below)

    @property
    def exact_compression_ratio(self) -> float:
        """All entries over those that are not exactly 0; inf where all are 0, 1 where there are no entries."""
        return _ratio(self.numel, self.numel - self.zeros)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON, which has no infinity: an infinite ratio (nothing is left) becomes None."""
        return {
            "name": self.name,
            "shape": None if self.shape is None else list(self.shape),
            "numel": self.numel,
            "zeros": self.zeros,
            "below": self.below,
            "compression_ratio": _finite(self.compression_ratio),
            "exact_compression_ratio": _finite(self.exact_compression_ratio),
        }


@dataclass(frozen=True)
class SparsityReport:
    """The zeros of a model, tensor by tensor; made by :func:`sparsity_report`. ``str`` gives a table, ``to_dict`` plain data.

    Attributes:
        layers: One row per weight tensor, in the order of the model's modules.
        threshold: Up to which magnitude an entry counts as below.
    """

    layers: tuple[LayerSparsity, ...]
    threshold: float

    @property
    def total(self) -> LayerSparsity:
        """The row of the whole model."""
        numel, zeros, below = (sum(getattr(row, count) for row in self.layers) for count in ("numel", "zeros", "below"))
        return LayerSparsity("total", None, numel, zeros, below)

    @property
    def compression_ratio(self) -> float:
        """All weights over those above the threshold; inf where none is above, 1 for a model without weights."""
        return self.total.compression_ratio

    @property
    def exact_compression_ratio(self) -> float:
        """All weights over those that are not exactly 0; inf where all are 0, 1 for a model without weights."""
        return self.total.exact_compression_ratio

    def to_dict(self) -> dict[str, Any]:
        """``{"threshold", "layers": [...], "total"}``, ready for JSON; an infinite ratio (nothing is left) becomes None."""
        return {
            "threshold": self.threshold,
            "layers": [row.to_dict() for row in self.layers],
            "total": self.total.to_dict(),
        }

    def __str__(self) -> str:
        head = ("layer", "shape", "weights", "exact zeros", f"|w| <= {self.threshold:.3g}", "compression", "exact")
        rows = [head, *map(_cells, (*self.layers, self.total))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], *([rule] if self.layers else []), lines[-1]])


def sparsity(model_or_tensor: nn.Module | Tensor, threshold: float = 0.0) -> float:
    r"""Fraction of weights with magnitude at most ``threshold``.

    .. math:: \frac{|\{i : |w_i| \le \tau\}|}{n}

    Args:
        model_or_tensor: A tensor, or a module whose weights are counted as in :func:`sparsity_report`.
        threshold: τ ≥ 0, compared in the tensor's own dtype. With 0, exact zeros are counted.

    Returns:
        A float in [0, 1]; 0 where there are no entries. NaN is not a zero.

    Raises:
        TypeError: for anything else than a tensor or a module, such as a state_dict.
        ValueError: for a threshold that is negative or NaN, and for tensors on the meta device, which have no values.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.metrics.sparsity(torch.tensor([0.0, 1e-9, 0.5, -2.0]))
        0.25
        >>> sparsenn.metrics.sparsity(torch.tensor([0.0, 1e-9, 0.5, -2.0]), threshold=1e-7)
        0.5
    """
    if isinstance(model_or_tensor, Tensor):
        total = _row("tensor", model_or_tensor, _checked_threshold("sparsity", threshold))
    else:
        check_module("sparsity", model_or_tensor)
        total = sparsity_report(model_or_tensor, threshold).total
    return total.below / total.numel if total.numel else 0.0


def sparsity_report(model: nn.Module, threshold: float | None = None) -> SparsityReport:
    """Count the zeros of a model: per weight tensor and in total, exact ones and those below a threshold apart.

    Every parameter is counted, frozen ones too, each once however many modules share it. Parametrized tensors are counted by
    the value that the module computes with, so factorized weights by their product and not by their factors, and spectral
    layers by the weight that they compose. Buffers are not counted. The model is not changed.

    Args:
        model: Any module.
        threshold: Up to which magnitude an entry counts as below, compared in the tensor's own dtype (as
            :func:`sparsenn.collapse` does). Default: the spacing of float32 at 1, 1.19e-7.

    Returns:
        A :class:`SparsityReport`.

    Raises:
        TypeError: for anything else than a module.
        ValueError: for a threshold that is negative or NaN, and for parameters on the meta device, which have no values.

    Source: the threshold and the compression ratio are those of Kolb et al. 2025, Appendix G.

    Example:
        >>> import torch, sparsenn
        >>> layer = torch.nn.Linear(4, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(1.0)[0].fill_(0.0)
        ...     _ = layer.bias.fill_(1e-9)
        >>> report = sparsenn.metrics.sparsity_report(layer)
        >>> print(report)
        layer   shape  weights  exact zeros  |w| <= 1.19e-07  compression  exact
        ------------------------------------------------------------------------
        weight  2x4          8            4                4         2.00   2.00
        bias    2            2            0                2          inf   1.00
        ------------------------------------------------------------------------
        total               10            4                6         2.50   1.67
    """
    check_module("sparsity_report", model)
    if threshold is None:
        threshold = torch.finfo(torch.float32).eps
    threshold = _checked_threshold("sparsity_report", threshold)
    return SparsityReport(tuple(_row(name, weight, threshold) for name, weight in _weights(model)), threshold)


@torch.no_grad()
def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each weight tensor of a model once: its name and the value that the model computes with."""
    seen: set[tuple[int, ...]] = set()
    inside: set[nn.Module] = set()
    for prefix, module in model.named_modules():
        if module in inside:
            continue
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        found: list[tuple[str, tuple[int, ...]]] = [(name, (id(p),)) for name, p in own]
        if parametrize.is_parametrized(module):
            parametrizations: Any = module.parametrizations
            inside.update(parametrizations.modules())
            for name, parametrization in parametrizations.items():
                originals = tuple(id(p) for _, p in parametrization.named_parameters(recurse=False, remove_duplicate=False))
                if originals:
                    found.append((name, originals))
        if isinstance(module, SpectralLayer):
            spectrum = tuple(key for name, own in found if name in SPECTRUM for key in own)
            found = [("weight", spectrum), *((name, key) for name, key in found if name not in SPECTRUM)]
        for name, key in found:
            if key not in seen:
                seen.add(key)
                with _evaluating(module, name):
                    weight = getattr(module, name)
                yield f"{prefix}.{name}" if prefix else name, weight


@contextmanager
def _evaluating(module: nn.Module, name: str) -> Iterator[None]:
    """Parametrizations in eval mode: some (spectral norm) move their state whenever a training model reads the tensor."""
    parts = list(module.parametrizations[name].modules()) if parametrize.is_parametrized(module, name) else []  # type: ignore[index, union-attr]
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


@torch.no_grad()
def _row(name: str, weight: Tensor, threshold: float) -> LayerSparsity:
    if weight.is_meta:
        raise ValueError(f"sparsity: {name} is on the meta device and has no values to count")
    if weight.dtype == torch.bool:
        weight = weight.to(torch.uint8)
    numel = weight.numel()
    zeros = numel - int(torch.count_nonzero(weight))
    below = int(torch.count_nonzero(weight.abs() <= threshold))
    return LayerSparsity(name, tuple(weight.shape), numel, zeros, below)


def _checked_threshold(where: str, threshold: float) -> float:
    if not threshold >= 0:
        raise ValueError(f"{where}: threshold must be at least 0; got {threshold}")
    return float(threshold)


def _ratio(numel: int, left: int) -> float:
    if left:
        return numel / left
    return math.inf if numel else 1.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cells(row: LayerSparsity) -> tuple[str, ...]:
    shape = "" if row.shape is None else "x".join(map(str, row.shape)) or "scalar"
    ratios = (f"{row.compression_ratio:,.2f}", f"{row.exact_compression_ratio:,.2f}")
    return (row.name, shape, f"{row.numel:,}", f"{row.zeros:,}", f"{row.below:,}", *ratios)
