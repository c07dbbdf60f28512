"""What compaction has saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsenn.nn.indexed import IndexedLayer


@dataclass(frozen=True)
class LayerWidths:
    """The widths of one layer before and after.

    Attributes:
        name: The layer's name in the model.
        before: Number of units that it read and computed, (inputs, outputs).
        after: The same in the smaller model.
        parameters_before: Number of its parameters.
        parameters_after: The same in the smaller model.
    """

    name: str
    before: tuple[int, int]
    after: tuple[int, int]
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True)
class CompactionReport:
    """Widths and parameters before and after; made by :func:`compaction_report`. ``str`` gives a table, ``to_dict`` plain data.

    Attributes:
        layers: One row for each linear layer and convolution, in the order of the modules.
        parameters_before: Number of parameters of the model, batch normalization and all; products count, not their factors.
        parameters_after: The same of the smaller model.
        input_maps: For each layer that reads only some units of its input: its name, and the indices of those units.
    """

    layers: tuple[LayerWidths, ...]
    parameters_before: int
    parameters_after: int
    input_maps: dict[str, Tensor]

    @property
    def ratio(self) -> float:
        """Parameters before over parameters after; 1 for a model without any."""
        return self.parameters_before / self.parameters_after if self.parameters_after else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "layers": [vars(row) | {"before": list(row.before), "after": list(row.after)} for row in self.layers],
            "input_maps": {name: index.tolist() for name, index in self.input_maps.items()},
        }

    def __str__(self) -> str:
        head = ("layer", "inputs x outputs", "after", "parameters", "after")
        rows = [head, *(_cells(row) for row in self.layers)]
        rows.append(("total", "", "", f"{self.parameters_before:,}", f"{self.parameters_after:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def compaction_report(before: nn.Module, after: nn.Module) -> CompactionReport:
    """Compare a model with what :func:`compact` made of it, layer by layer.

    Args:
        before: The model.
        after: The smaller one.

    Returns:
        A :class:`CompactionReport`.

    Raises:
        ValueError: if ``after`` lacks a layer of ``before``, so that it cannot be its compaction.

    Example:
        >>> import torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> _ = torch.nn.init.zeros_(net[0].weight[1])
        >>> print(sparsenn.prune.compaction_report(net, sparsenn.prune.compact(net, torch.randn(1, 4))))
        layer  inputs x outputs  after  parameters  after
        -------------------------------------------------
        0                 4 x 3  4 x 2          15     10
        2                 3 x 2  2 x 2           8      6
        -------------------------------------------------
        total                                   23     16
    """
    rows, maps = [], {}
    modules = dict(after.named_modules())
    for name, old in before.named_modules():
        if not isinstance(old, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            continue
        new = modules.get(name)
        if not isinstance(new, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raise ValueError(f"compaction_report: after has no layer {name!r}; it takes what compact made of before")
        rows.append(LayerWidths(name, _widths(old), _widths(new), _numel(old), _numel(new)))
        if isinstance(new, IndexedLayer) and new.input_index is not None:
            maps[name] = new.input_index
    return CompactionReport(tuple(rows), _numel(before), _numel(after), maps)


def _widths(layer: Any) -> tuple[int, int]:
    rows, columns = layer.weight.shape[:2]
    return columns * getattr(layer, "groups", 1), rows


def _numel(model: nn.Module) -> int:
    """Parameters as they are used: the product of factors, not the factors; a tied one once."""
    found: dict[int, int] = {}
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module in inside:
            continue
        found.update((id(p), p.numel()) for p in module.parameters(recurse=False))
        if parametrize.is_parametrized(module):
            parametrizations: Any = module.parametrizations
            inside.update(parametrizations.modules())
            for name, parametrization in parametrizations.items():
                found[id(parametrization)] = getattr(module, name).numel()
    return sum(found.values())


def _cells(row: LayerWidths) -> tuple[str, ...]:
    before, after = (" x ".join(map(str, widths)) for widths in (row.before, row.after))
    return row.name, before, after, f"{row.parameters_before:,}", f"{row.parameters_after:,}"
