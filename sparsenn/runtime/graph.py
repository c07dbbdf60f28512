"""From a file's operations to few steps: batch normalization folded, activations fused, constants and unread units gone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparsenn.runtime.architecture import PRODUCTS, Op
from sparsenn.runtime.errors import ArtefactError
from sparsenn.runtime.storage import FLOATS, Stored, cast

CURVES = ("tanh", "sigmoid", "gelu", "gelu_tanh")


@dataclass
class Matrix:
    """Weights that are not zero, by rows, in float64: entry k is ``values[k]`` at ``(rows[k], columns[k])``."""

    shape: tuple[int, int]
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Where each row begins."""
        return np.searchsorted(self.rows, np.arange(self.shape[0] + 1)).astype(np.int32)

    def keep(self, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> None:
        """Leave only the rows and columns of these masks, renumbered."""
        rows = np.ones(self.shape[0], bool) if rows is None else rows
        columns = np.ones(self.shape[1], bool) if columns is None else columns
        left = rows[self.rows] & columns[self.columns]
        self.rows = (np.cumsum(rows) - 1)[self.rows[left]]
        self.columns = (np.cumsum(columns) - 1)[self.columns[left]]
        self.values = self.values[left]
        self.shape = (int(rows.sum()), int(columns.sum()))


@dataclass
class Node:
    """One step: what it is, the steps it reads (−1 is the input), and its numbers."""

    kind: str  # product | affine | relu | a curve | sum | pool | softmax | flatten
    name: str
    of: list[int]
    relu: bool = False
    matrix: Matrix | None = None
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scale: np.ndarray = field(default_factory=lambda: np.zeros(0))
    options: dict[str, Any] = field(default_factory=dict)
    weights: tuple[int, ...] = ()  # the shape of a product's weight as it was stored


def build(ops: list[Op], tensors: Mapping[str, Stored]) -> list[Node]:
    """The steps of a file.

    Raises:
        ArtefactError: where a layer and its tensors do not fit; the layer is named.
    """
    check_names(ops, tensors)
    at: list[int] = [-1]  # of each value the step that makes it
    nodes: list[Node] = []
    for op in ops:
        of = [at[i] for i in op.of]
        if op.kind in ("identity", "dropout"):
            at.append(of[0])
            continue
        nodes.append(_node(op, of, tensors))
        at.append(len(nodes) - 1)
    return _drop_unread(nodes[: at[-1] + 1] or [Node("pass", "result", [-1])])


def simplify(nodes: list[Node]) -> list[Node]:
    """The same function in fewer and smaller steps."""
    nodes = [replace(node, of=list(node.of)) for node in nodes]
    for node in nodes:
        if node.matrix is not None:
            node.matrix = replace(node.matrix)
    nodes = _fuse(nodes, "affine", _fold_norm)
    nodes = _fuse(nodes, "relu", _fuse_relu)
    _shrink(nodes)
    return nodes


def check_names(ops: Iterable[Op], tensors: Iterable[str]) -> None:
    """Refuse tensors that no operation reads.

    Raises:
        ArtefactError: with their names.
    """
    kinds: dict[str, str] = {}
    for op in ops:
        if op.module and kinds.setdefault(op.module, op.kind) != op.kind:
            raise ArtefactError(f"the module {op.module!r} is of two kinds, {kinds[op.module]} and {op.kind}")
    known = {f"{module}.{part}" for module, kind in kinds.items() for part in _PARTS.get(kind.rstrip("12d"), ())}
    surplus = sorted(set(tensors) - known)
    if surplus:
        raise ArtefactError(f"it has tensors that belong to no layer: {surplus[:5]}")


_PARTS = {
    "linear": ("weight", "bias"),
    "conv": ("weight", "bias"),
    "batchnorm": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    "gate": ("lambda_out",),
}


def _node(op: Op, of: list[int], tensors: Mapping[str, Stored]) -> Node:
    name = op.module or op.kind
    if op.kind in PRODUCTS:
        return _product(op, of, tensors)
    if op.kind.startswith("batchnorm"):
        mean, variance = (_vector(op, tensors, f"running_{part}") for part in ("mean", "var"))
        scale = 1 / np.sqrt(variance + float(op.options["eps"]))
        shift = np.zeros_like(scale)
        affine = [f"{op.module}.{part}" in tensors for part in ("weight", "bias")]
        if affine[0] != affine[1]:
            raise ArtefactError(f"the layer {op.title} has only one of weight and bias")
        if affine[0]:
            scale = scale * _vector(op, tensors, "weight")
            shift = _vector(op, tensors, "bias")
        if not mean.shape == scale.shape == shift.shape:
            raise ArtefactError(f"the tensors of {op.title} have different sizes")
        return Node("affine", name, of, scale=scale, bias=shift - mean * scale, options={"dims": int(op.kind[-2])})
    if op.kind == "gate":
        scale = _vector(op, tensors, "lambda_out")
        return Node("affine", name, of, scale=scale, bias=np.zeros_like(scale), options=dict(op.options))
    if "pool" in op.kind:
        return Node("pool", name, of, options={**op.options, "kind": op.kind, "dims": int(op.kind[-2])})
    if op.kind == "gelu":
        return Node("gelu_tanh" if op.options["tanh"] else "gelu", name, of)
    return Node("sum" if op.kind == "add" else op.kind, name, of, options=dict(op.options))


def _product(op: Op, of: list[int], tensors: Mapping[str, Stored]) -> Node:
    weight = tensors.get(f"{op.module}.weight")
    dims = 0 if op.kind == "linear" else int(op.kind[-2])
    if weight is None or len(weight.shape) != 2 + dims or weight.dtype not in FLOATS:
        raise ArtefactError(f"the layer {op.title} has no floating weight of {2 + dims} dimensions")
    if 0 in weight.shape[2:]:
        raise ArtefactError(f"the layer {op.title} has a kernel without entries")
    height, width = weight.shape[0], math.prod(weight.shape[1:])
    values = cast(weight.values, "F64").data
    flat = weight.positions()
    if flat is None:
        flat = np.flatnonzero(values)
        values = values[flat]
    else:
        flat, values = flat[values != 0], values[values != 0]
    rows, columns = np.divmod(flat, max(width, 1))
    options = dict(op.options)
    groups = options.get("groups", 1)
    if groups > 1:
        if height % groups:
            raise ArtefactError(f"the layer {op.title} has {height} channels in {groups} groups")
        columns = columns + rows // (height // groups) * width
    bias = np.zeros(height)
    if f"{op.module}.bias" in tensors:
        bias = _vector(op, tensors, "bias")
    if bias.shape != (height,):
        raise ArtefactError(f"the bias of {op.title} has {bias.size} entries, its weight {height} rows")
    matrix = Matrix((height, width * groups), rows, columns, values)
    return Node("product", op.module, of, matrix=matrix, bias=bias, options={**options, "dims": dims}, weights=weight.shape)


def _vector(op: Op, tensors: Mapping[str, Stored], part: str) -> np.ndarray:
    stored = tensors.get(f"{op.module}.{part}")
    if stored is None or len(stored.shape) != 1 or stored.dtype not in FLOATS:
        raise ArtefactError(f"the layer {op.title} has no floating {part} of one dimension")
    values = cast(stored.values, "F64").data
    flat = stored.positions()
    if flat is None:
        return values.astype(np.float64)
    dense = np.zeros(stored.numel)
    dense[flat] = values
    return dense


def _drop_unread(nodes: list[Node]) -> list[Node]:
    needed = {len(nodes) - 1}
    for i in reversed(range(len(nodes))):
        if i in needed:
            needed.update(nodes[i].of)
    return _without(nodes, {i for i in range(len(nodes)) if i not in needed}, {})


def _without(nodes: list[Node], gone: set[int], instead: Mapping[int, int]) -> list[Node]:
    """The steps without some; who reads one of those reads another instead."""
    place: dict[int, int] = {-1: -1}
    left: list[Node] = []
    for i, node in enumerate(nodes):
        if i in gone:
            if i in instead:
                place[i] = place[instead[i]]
            continue
        node.of = [place[j] for j in node.of]
        place[i] = len(left)
        left.append(node)
    return left


def _fuse(nodes: list[Node], kind: str, absorb: Any) -> list[Node]:
    """Steps of a kind that become a part of the step before them, where nobody else reads that."""
    readers = Counter(i for node in nodes for i in node.of)
    instead: dict[int, int] = {}
    for i, node in enumerate(nodes):
        if node.kind == kind and node.of[0] >= 0 and readers[node.of[0]] == 1:
            before = instead.get(node.of[0], node.of[0])
            if absorb(nodes[before], node):
                instead[i] = before
    return _without(nodes, set(instead), instead)


def _fold_norm(before: Node, norm: Node) -> bool:
    if before.kind != "product" or before.relu or before.matrix is None or before.matrix.shape[0] != norm.scale.size:
        return False
    dims = before.options["dims"]
    fits = norm.options["dim"] in (1, -dims - 1) if "dim" in norm.options else norm.options["dims"] == max(dims, 1)
    if not fits:
        return False
    matrix = before.matrix
    values = matrix.values * norm.scale[matrix.rows]
    left = values != 0  # a gate may close
    before.matrix = replace(matrix, rows=matrix.rows[left], columns=matrix.columns[left], values=values[left])
    before.bias = before.bias * norm.scale + norm.bias
    return True


def _fuse_relu(before: Node, relu: Node) -> bool:
    if before.kind not in ("product", "sum", "affine"):
        return False
    before.relu = True
    return True


def _shrink(nodes: list[Node]) -> None:
    """Between linear layers: constant units into the next biases, units that nobody reads away."""
    readers = Counter(i for node in nodes for i in node.of)
    pairs = []
    for node in nodes:
        if node.kind != "product" or node.options["dims"] or node.of[0] < 0 or readers[node.of[0]] != 1:
            continue
        between, before = None, nodes[node.of[0]]
        if before.kind in ("relu", *CURVES) and before.of[0] >= 0 and readers[before.of[0]] == 1:
            between, before = before, nodes[before.of[0]]
        if before.kind == "product" and not before.options["dims"]:
            pairs.append((before, between, node))
    for before, between, node in (*pairs, *reversed(pairs)):
        _shrink_between(before, between, node)


def _shrink_between(before: Node, between: Node | None, node: Node) -> None:
    first, second = before.matrix, node.matrix
    if first is None or second is None or first.shape[0] != second.shape[1]:
        return
    constant = np.bincount(first.rows, minlength=first.shape[0]) == 0
    value = np.maximum(before.bias, 0) if before.relu else before.bias
    value = value if between is None else _curve(between.kind, value)
    here = constant[second.columns]
    node.bias = node.bias.copy()
    np.add.at(node.bias, second.rows[here], second.values[here] * value[second.columns[here]])
    second.rows, second.columns, second.values = (x[~here] for x in (second.rows, second.columns, second.values))
    read = np.bincount(second.columns, minlength=second.shape[1]) > 0
    stay = read & ~constant
    if not stay.any():
        stay[:1] = True  # no step without units
    second.keep(columns=stay)
    first.keep(rows=stay)
    before.bias = before.bias[stay]


def _curve(kind: str, x: np.ndarray) -> np.ndarray:
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "tanh":
        return np.tanh(x)
    if kind == "sigmoid":
        return np.array([0.0 if v < -700 else 1 / (1 + math.exp(-v)) for v in x])
    if kind == "gelu":
        return np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x])
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
