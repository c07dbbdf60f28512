"""From steps and the shape of a sample to a compiled network: shapes, windows, and which kernel each layer gets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsenn.runtime.costs import LANES, SAMPLES, Costs
from sparsenn.runtime.errors import ArtefactError
from sparsenn.runtime.graph import CURVES, Node

MAX_FEATURES = 1 << 24
KERNELS = ("auto", "sparse", "dense")
_MARGIN = 1.25  # sparse panels must win by so much: they lose more to the caches in large layers than dense ones
_PLAIN = [1, 1, 1, 1, 0, 0, 1, 1]


@dataclass(frozen=True)
class Choice:
    """What one layer runs on.

    Attributes:
        layer: its name.
        shape: of its weight in the file.
        rows, columns: that are left of it.
        nonzeros: its weights that are not 0.
        one: the kernel for one sample, ``"sparse"``, ``"dense"`` or ``"compacted"`` (dense, without what is all zero).
        few: the kernel for samples that are computed one after the other.
        batch: the kernel for samples in panels.
    """

    layer: str
    shape: tuple[int, ...]
    rows: int
    columns: int
    nonzeros: int
    one: str
    few: str
    batch: str


@dataclass(frozen=True)
class Plan:
    """A compiled network for one shape of samples."""

    network: Any
    output: tuple[int, ...]
    choices: tuple[Choice, ...]


def plan(nodes: list[Node], sample: tuple[int, ...], costs: Costs, kernels: str, threads: int) -> Plan:
    """Compile the steps for samples of this shape.

    Raises:
        ValueError: if the first layers do not take such samples.
        ArtefactError: where steps do not fit each other.
    """
    from sparsenn import _native

    first = _flat(nodes, sample)
    shapes: list[tuple[int, ...]] = []
    network = _native.Network(*_box(first, "the input"))
    maker = _Maker(network, costs, kernels)
    # A first linear layer brings in only what it reads itself; where others read the input too, a view of it comes first.
    shared = math.prod(first[1:]) == 1 and _readers(nodes) > 1
    source = maker.count = network.flatten(0) if shared else 0
    at: list[int] = []
    for node in nodes:
        of = [first if i < 0 else shapes[i] for i in node.of]
        places = [source if i < 0 else at[i] for i in node.of]
        if node.kind == "flatten" and len(of[0]) == 1:
            shapes.append(of[0])
            at.append(places[0])
            continue
        shape = _shape(node, of, sample)
        _box(shape, f"the result of {node.name!r}")
        at.append(maker.add(node, places, of, shape))
        shapes.append(shape)
    if at[-1] == 0 or at[-1] != maker.count:  # the last step only gave its input another shape
        network.flatten(at[-1])
    turned = maker.read if maker.read is not None else math.prod(first)
    turned += math.prod(shapes[-1])
    samples = [own + costs.alone * count for own, count in zip(maker.samples, SAMPLES, strict=True)]
    panel = [own + costs.turn * turned * lanes for own, lanes in zip(maker.panel, LANES, strict=True)]
    network.finish([0, *sample], [0, *shapes[-1]], samples, panel, threads)
    return Plan(network, shapes[-1], tuple(maker.choices))


class _Maker:
    """Adds steps to a network, and up what they cost for 1, 8 and 64 samples and for panels of 8 to 64."""

    def __init__(self, network: Any, costs: Costs, kernels: str) -> None:
        self.network, self.costs, self.kernels = network, costs, kernels
        self.samples, self.panel = [0.0] * len(SAMPLES), [0.0] * len(LANES)
        self.read: int | None = None  # how much of the input a first linear layer reads
        self.choices: list[Choice] = []
        self.count = 0

    def add(self, node: Node, at: list[int], of: list[tuple[int, ...]], shape: tuple[int, ...]) -> int:
        network = self.network
        if len(of[0]) > 1:
            self._spend(*self.costs.images(math.prod(of[0]) + (math.prod(shape) if node.kind == "product" else 0)))
        if node.kind == "product":
            self.count = self._product(node, at[0], of[0], shape)
        elif node.kind == "affine":
            self.count = network.affine(at[0], node.scale, node.bias, node.relu)
        elif node.kind == "sum":
            self.count = network.sum(at[0], at[1], node.relu)
        elif node.kind == "relu":
            self.count = network.relu(at[0])
        elif node.kind in CURVES:
            self.count = network.curve(at[0], node.kind)
        elif node.kind == "pool":
            self.count = self._pool(node, at[0], of[0])
        elif node.kind == "softmax":
            self.count = network.softmax(at[0])
        else:
            self.count = network.flatten(at[0])
        return self.count

    def _product(self, node: Node, at: int, of: tuple[int, ...], shape: tuple[int, ...]) -> int:
        matrix = node.matrix
        assert matrix is not None
        window = _window(node, of)
        rows, nonzeros = matrix.shape[0], len(matrix.values)
        used = len(np.unique(matrix.columns))
        places = math.prod(shape[1:])
        if self.count == 0 and not node.options["dims"]:
            self.read = used
        grouped = node.options.get("groups", 1) > 1
        samples, panel = {}, {}
        for dense in (False, True):
            samples[dense] = self.costs.samples(rows, used, nonzeros, dense)
            if node.options["dims"]:
                chunk = self.costs.panels(rows, used, nonzeros, dense)[-1] / LANES[-1]
                samples[dense] = [chunk * self._pixels(of, window, shape) * count for count in SAMPLES]
            panel[dense] = [own * places for own in self.costs.panels(rows, used, nonzeros, dense)]
        one, few = (self._dense(samples[True][i] < samples[False][i], grouped) for i in (0, 1))
        each = {dense: min(own / lanes for own, lanes in zip(panel[dense], LANES, strict=True)) for dense in panel}
        batch = self._dense(each[True] < _MARGIN * each[False], grouped)
        self._spend([samples[one][0], *samples[few][1:]], panel[batch])
        whole = math.prod(node.weights) == rows * used
        names = [("dense" if whole else "compacted") if dense else "sparse" for dense in (one, few, batch)]
        self.choices.append(Choice(node.name, node.weights, rows, used, nonzeros, *names))
        values, bias = matrix.values.astype(np.float32), node.bias.astype(np.float32)
        return self.network.product(
            at, matrix.starts, matrix.columns.astype(np.int32), values, bias, window, node.relu, [one, few, batch]
        )

    def _spend(self, samples: list[float], panel: list[float]) -> None:
        self.samples = [total + own for total, own in zip(self.samples, samples, strict=True)]
        self.panel = [total + own for total, own in zip(self.panel, panel, strict=True)]

    def _dense(self, cheaper: bool, grouped: bool) -> bool:
        if grouped:  # a dense kernel would compute with the zeros between the groups
            return False
        return cheaper if self.kernels == "auto" else self.kernels == "dense"

    @staticmethod
    def _pixels(of: tuple[int, ...], window: list[int], shape: tuple[int, ...]) -> int:
        """How many neighbouring pixels of one sample are computed, those at the end of each row for nothing."""
        height = shape[1] if len(shape) == 3 else 1
        return ((height - 1) * -(-(of[-1] + 2 * window[5]) // window[3])) + shape[-1]

    def _pool(self, node: Node, at: int, of: tuple[int, ...]) -> int:
        options = node.options
        spans = [_spans(node, options, i, size) for i, size in enumerate(of[1:])]
        if len(spans) == 1:
            spans.insert(0, ([0], [1], [1.0]))
        parts = [tuple(np.array(x, t) for x, t in zip(own, (np.int32, np.int32, np.float32), strict=True)) for own in spans]
        return self.network.pool(at, "avg" in options["kind"], *parts)


def _readers(nodes: list[Node]) -> int:
    """How often the input is read, as it is or flattened."""
    views = {-1}
    for at, node in enumerate(nodes):
        if node.kind == "flatten" and node.of[0] in views:
            views.add(at)
    return sum(i in views for at, node in enumerate(nodes) if at not in views for i in node.of)


def _flat(nodes: list[Node], sample: tuple[int, ...]) -> tuple[int, ...]:
    """The input's shape for the network: one number where all that reads it flattens it."""
    flat = all(node.kind == "flatten" for node in nodes if -1 in node.of)
    return (math.prod(sample),) if flat and sample else sample


def _box(shape: tuple[int, ...], what: str) -> tuple[int, int, int]:
    if not 1 <= len(shape) <= 3:
        raise ValueError(f"{what} has {len(shape) + 1} dimensions with the batch; the runtime takes 2 to 4")
    if not 0 < math.prod(shape) <= MAX_FEATURES:
        raise ValueError(f"{what} has {math.prod(shape)} numbers a sample; the runtime takes 1 to {MAX_FEATURES}")
    return (
        (shape[0], 1, 1) if len(shape) == 1 else (shape[0], 1, shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2])
    )


def _shape(node: Node, of: list[tuple[int, ...]], sample: tuple[int, ...]) -> tuple[int, ...]:
    x = of[0]
    if node.kind == "product":
        return _product_shape(node, x, sample)
    if node.kind == "sum" and of[0] != of[1]:
        raise _misfit(node, f"adds {_text(of[0])} and {_text(of[1])}", sample)
    if node.kind == "flatten":
        return (math.prod(x),)
    if node.kind == "pool":
        dims = node.options["dims"]
        if len(x) != dims + 1:
            raise _misfit(node, f"takes {dims + 2} dimensions and gets {_text(x)}", sample)
        return (x[0], *(len(_spans(node, node.options, i, size)[0]) for i, size in enumerate(x[1:])))
    if node.options.get("dim", 1) not in (1, -len(x)):
        what = "softmax" if node.kind == "softmax" else "gate"
        raise ArtefactError(f"{node.name!r} is a {what} over dimension {node.options['dim']}; the runtime takes dimension 1")
    if node.kind == "affine":
        fits = "dim" in node.options or (len(x) == 3 if node.options["dims"] == 2 else len(x) < 3)
        if not fits or x[0] != node.scale.size:
            raise _misfit(node, f"takes {node.scale.size} channels and gets {_text(x)}", sample)
    return x


def _product_shape(node: Node, x: tuple[int, ...], sample: tuple[int, ...]) -> tuple[int, ...]:
    dims, matrix = node.options["dims"], node.matrix
    assert matrix is not None
    if len(x) != dims + 1:
        raise _misfit(node, f"takes {dims + 2} dimensions and gets {_text(x)}", sample)
    if not dims:
        if x[0] != matrix.shape[1]:
            raise _misfit(node, f"takes {matrix.shape[1]} features and gets {_text(x)}", sample)
        return (matrix.shape[0],)
    channels = node.weights[1] * node.options["groups"]
    if x[0] != channels:
        raise _misfit(node, f"takes {channels} channels and gets {_text(x)}", sample)
    window = _window(node, x)
    sizes = []
    for i, size in enumerate((1, *x[1:])[-2:]):
        kernel, stride, padding, dilation = window[i::2]
        padded = size + 2 * padding
        if padded < dilation * (kernel - 1) + 1:
            raise _misfit(node, f"has a kernel larger than its input of {_text(x)}", sample)
        sizes.append((padded, (padded - dilation * (kernel - 1) - 1) // stride + 1))
    if channels * sizes[0][0] * sizes[1][0] > MAX_FEATURES:
        raise ValueError(f"{node.name!r} has a padded input of more than {MAX_FEATURES} numbers a sample")
    return (matrix.shape[0], *(out for _, out in sizes[2 - dims :]))


def _window(node: Node, x: tuple[int, ...]) -> list[int]:
    """Kernel, stride, padding and dilation, each for rows and columns of pixels."""
    options, dims = node.options, node.options["dims"]
    if not dims:
        return _PLAIN
    window = []
    for name, none in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        sizes = list(node.weights[2:]) if name == "kernel" else options[name]
        window += ([none] if dims == 1 else []) + list(sizes)
    for i, size in enumerate((1, *x[1:])[-2:]):  # a longer stride than the input makes no difference
        window[2 + i] = min(window[2 + i], size + 2 * window[4 + i])
    return window


def _spans(node: Node, options: dict[str, Any], i: int, size: int) -> tuple[list[int], list[int], list[float]]:
    """Of one dimension of a pooling: where each window begins and ends, and the factor of its average."""
    if "size" in options:
        count = options["size"][i]
        if not 0 < count <= MAX_FEATURES or not size:
            raise ArtefactError(f"{node.name!r} pools {size} numbers to {count}")
        begin = [j * size // count for j in range(count)]
        end = [-(-(j + 1) * size // count) for j in range(count)]
        return begin, end, [1 / (b - a) for a, b in zip(begin, end, strict=True)]
    kernel, stride, padding = (options[name][i] for name in ("kernel", "stride", "padding"))
    if 2 * padding > kernel:
        raise ArtefactError(f"{node.name!r} pads by {padding}, more than half of its window of {kernel}")
    if size + 2 * padding < kernel and not (options["ceil"] and size):
        raise ArtefactError(f"{node.name!r} has a window of {kernel}, larger than its input of {size}")
    count = (size + 2 * padding - kernel + (stride - 1 if options["ceil"] else 0)) // stride + 1
    if options["ceil"] and (count - 1) * stride >= size + padding:
        count -= 1
    if count < 1:
        raise ArtefactError(f"{node.name!r} has a window of {kernel}, larger than its input of {size}")
    begin = [j * stride - padding for j in range(count)]
    end = [min(a + kernel, size + padding) for a in begin]
    inside = [(max(a, 0), min(b, size)) for a, b in zip(begin, end, strict=True)]
    sizes = [b - a for a, b in (zip(begin, end, strict=True) if options.get("include_pad", True) else inside)]
    return [a for a, _ in inside], [b for _, b in inside], [1 / max(s, 1) for s in sizes]


def _misfit(node: Node, problem: str, sample: tuple[int, ...]) -> ValueError:
    return ValueError(f"x has shape {_text(sample)}, for which the layer {node.name!r} {problem}")


def _text(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['N', *map(str, shape)])})"
