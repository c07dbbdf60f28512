"""From a model to the list of its operations: torch.fx traces the calls, each has a row in one of the tables."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from sparsenn.nn.spectral import SpectralGate
from sparsenn.prune.calls import Tracer
from sparsenn.runtime.architecture import Op, make


class ArchitectureError(ValueError):
    """The operations of a model cannot be listed; ``reason`` is why, the message also who says so and what helps."""

    def __init__(self, reason: str, caller: str = "", cure: str = "") -> None:
        super().__init__(f"{caller}: {reason}; {cure}" if caller else reason)
        self.reason = reason


def trace(model: nn.Module) -> list[Op]:
    """The operations of ``model(x)`` in eval mode.

    Raises:
        ArchitectureError: for a model that torch.fx cannot trace, a module with forward hooks, or a call that has no row here;
            it is named.
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ArchitectureError(
                f"{f'the module {name!r}' if name else 'the model'} ({type(module).__name__}) has forward hooks, which a file "
                "cannot hold; for masks and norms of torch.nn.utils, remove() makes plain weights of them"
            )
    with evaluating(model):
        try:
            graph = _Tracer(_MODULES, (_INPUT,)).calls(model)
        except ValueError as error:
            raise ArchitectureError(str(error)) from error
        return _Calls(model).list(graph)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in eval mode, and each module back into its own."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def is_layer(model: nn.Module) -> bool:
    """Whether a module is one operation."""
    return type(model) in _MODULES


class _Proxy(fx.Proxy):
    def __iadd__(self, other: Any) -> fx.Proxy:
        """Python would make a sum of ``x += y`` otherwise, and another name of x would keep its old value."""
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        """With sums in place."""
        return _Proxy(node, self)


class _Calls:
    """Walks the calls of a graph; each becomes an operation, or the number of an earlier result.

    An operation in place writes a new version of its input's memory: who reads an older one later is refused.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.ops: list[Op] = []
        self.results: dict[fx.Node, int] = {}
        self.memory: dict[fx.Node, tuple[fx.Node, int]] = {}  # the tensor that it is or is a view of, and the version
        self.versions: dict[fx.Node, int] = {}

    def list(self, graph: fx.Graph) -> list[Op]:
        for node in graph.nodes:
            if node.op == "placeholder":
                self.results[node] = 0
                self._own(node)
            elif node.op == "output":
                self._output(node)
            elif not _is_batch_size(node):
                self._call(node)
        return self.ops

    def _own(self, node: fx.Node) -> None:
        self.memory[node], self.versions[node] = (node, 0), 0

    def _check_fresh(self, node: fx.Node, title: str) -> None:
        home, version = self.memory[node]
        if version != self.versions[home]:
            raise ArchitectureError(f"{title} reads a tensor that an operation in place has changed; {_WHAT}")

    def _output(self, node: fx.Node) -> None:
        (result,) = node.args
        if not isinstance(result, fx.Node):
            raise ArchitectureError(f"the model returns {type(result).__name__} instead of one tensor; {_WHAT}")
        self._check_fresh(result, "the output")
        at = self.results[result]
        if at != len(self.ops) or not self.ops:
            self.ops.append(make(len(self.ops) + 1, "identity", of=(at,)))

    def _call(self, node: fx.Node) -> None:
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        name, key = "", node.target
        if module is not None:
            name, key = str(node.target), type(module)
        table: dict[Any, Any] = {"call_module": _MODULES, "call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, {})
        row = table.get(key)
        title = f"{node.target!r} ({type(module).__name__})" if module else f"{node.name!r} ({getattr(key, '__name__', key)})"
        if row is None:
            raise ArchitectureError(f"{title} is unknown; {_WHAT}")
        try:
            made = row(module, *node.args, **node.kwargs) if module is not None else row(*node.args, **node.kwargs)
        except (TypeError, _Unknown) as error:
            raise ArchitectureError(f"{title} is called in a way that is unknown: {error}; {_WHAT}") from error
        kind, inputs, options = made
        if not all(isinstance(x, fx.Node) and x in self.results for x in inputs):
            raise ArchitectureError(f"{title} takes something else than tensors that were computed from the input; {_WHAT}")
        for x in inputs:
            self._check_fresh(x, title)
        of = tuple(self.results[x] for x in inputs)
        self.ops.append(make(len(self.ops) + 1, kind, name, of, **options))
        self.results[node] = len(self.ops)
        if kind in _VIEWS:
            self.memory[node] = self.memory[inputs[0]]
        elif _in_place(node, module):
            home, version = self.memory[inputs[0]]
            self.versions[home] = version + 1
            self.memory[node] = (home, version + 1)
        else:
            self._own(node)


_VIEWS = ("flatten", "identity", "dropout")  # in eval mode, the input's own memory


def _in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False))
    return node.target is operator.iadd or str(node.target).endswith("_") or bool(node.kwargs.get("inplace", False))


_INPUT = object()
_WHAT = (
    "what is known has one input, one output, and linear and convolutional layers, batch normalization, gates, ReLU, tanh, "
    "sigmoid, GELU, softmax, pooling, flatten, sums and dropout"
)


class _Unknown(Exception):  # noqa: N818
    pass


def _plain(kind: str, **options: Any) -> Callable[..., Any]:
    return lambda module, x: (kind, [x], options)


def _conv(d: int) -> Callable[..., Any]:
    def row(module: Any, x: Any) -> Any:
        if module.padding_mode != "zeros" and any(module._reversed_padding_repeated_twice):
            raise _Unknown(f"padding_mode={module.padding_mode!r}")
        padding = module.padding
        if isinstance(padding, str):
            reach = [k * (n - 1) for k, n in zip(module.dilation, module.kernel_size, strict=True)]
            if padding == "same" and any(r % 2 for r in reach):
                raise _Unknown("padding='same' that differs between the sides")
            padding = [r // 2 for r in reach] if padding == "same" else [0] * d
        lists = {"stride": list(module.stride), "padding": list(padding), "dilation": list(module.dilation)}
        return f"conv{d}d", [x], {**lists, "groups": module.groups}

    return row


def _norm(d: int) -> Callable[..., Any]:
    def row(module: Any, x: Any) -> Any:
        if module.running_mean is None:
            raise _Unknown("it keeps no running statistics")
        return f"batchnorm{d}d", [x], {"eps": module.eps, "momentum": module.momentum}

    return row


def _sizes(value: Any, d: int) -> list[int]:
    sizes = [value] * d if isinstance(value, int) else list(value)
    if len(sizes) == 1:
        sizes *= d
    if len(sizes) != d or not all(type(x) is int for x in sizes):
        raise _Unknown(f"a size is {value!r}")
    return sizes


def _max(d: int) -> Callable[..., Any]:
    def call(
        x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:  # fmt: skip
        if return_indices or any(k != 1 for k in _sizes(dilation, d)):
            raise _Unknown("return_indices or a dilation")
        kernel = _sizes(kernel_size, d)
        strides = kernel if stride is None or stride == [] else _sizes(stride, d)
        return (
            f"maxpool{d}d",
            [x],
            {"kernel": kernel, "stride": strides, "padding": _sizes(padding, d), "ceil": bool(ceil_mode)},
        )

    return call


def _average(d: int) -> Callable[..., Any]:
    def call(
        x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Any:  # fmt: skip
        if divisor_override is not None:
            raise _Unknown("divisor_override")
        kind, inputs, options = _max(d)(x, kernel_size, stride, padding, 1, ceil_mode)
        return kind.replace("max", "avg"), inputs, {**options, "include_pad": bool(count_include_pad)}

    return call


def _adaptive(name: str, d: int) -> Callable[..., Any]:
    return lambda x, output_size: (f"adaptive{name}pool{d}d", [x], {"size": _sizes(output_size, d)})


def _flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    if (start_dim, end_dim) != (1, -1):
        raise _Unknown(f"from dimension {start_dim} to {end_dim}")
    return "flatten", [x], {}


def _view(x: Any, *shape: Any) -> Any:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    if len(sizes) != 2 or sizes[1] != -1 or not (isinstance(sizes[0], fx.Node) and _is_batch_size(sizes[0])):
        raise _Unknown(f"the shape {tuple(sizes)}; use flatten(1)")
    return "flatten", [x], {}


def _add(x: Any, other: Any, *, alpha: Any = 1) -> Any:
    if alpha != 1:
        raise _Unknown(f"alpha={alpha}")
    return "add", [x, other], {}


def _elementwise(kind: str) -> Callable[..., Any]:
    return lambda x, inplace=False: (kind, [x], {})


def _gelu(x: Any, approximate: str = "none") -> Any:
    return "gelu", [x], {"tanh": approximate == "tanh"}


def _softmax(x: Any, dim: Any = None, dtype: Any = None) -> Any:
    if type(dim) is not int or dtype is not None:
        raise _Unknown(f"dim={dim}, dtype={dtype}")
    return "softmax", [x], {"dim": dim}


def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p:
        raise _Unknown("training=True, by which it is random in eval mode too")
    return "dropout", [x], {"p": float(p)}


def _is_batch_size(node: fx.Node) -> bool:
    """``x.size(0)``, ``x.shape[0]``, and ``x.shape`` on the way there."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] == "shape" and all(_is_batch_size(user) for user in node.users)
    shape = node.args[0] if node.op == "call_function" and node.target is operator.getitem else None
    return isinstance(shape, fx.Node) and shape.target is getattr and bool(node.args[1] == 0)


_MODULES: dict[Any, Callable[..., Any]] = {
    nn.Linear: _plain("linear"),
    nn.Conv1d: _conv(1),
    nn.Conv2d: _conv(2),
    nn.BatchNorm1d: _norm(1),
    nn.BatchNorm2d: _norm(2),
    SpectralGate: lambda m, x: ("gate", [x], {"dim": m.dim}),
    nn.ReLU: _plain("relu"),
    nn.Tanh: _plain("tanh"),
    nn.Sigmoid: _plain("sigmoid"),
    nn.GELU: lambda m, x: _gelu(x, m.approximate),
    nn.Softmax: lambda m, x: _softmax(x, m.dim),
    nn.Flatten: lambda m, x: _flatten(x, m.start_dim, m.end_dim),
    nn.Identity: _plain("identity"),
    nn.Dropout: lambda m, x: _dropout(x, m.p, m.training),
    nn.Dropout1d: lambda m, x: _dropout(x, m.p, m.training),
    nn.Dropout2d: lambda m, x: _dropout(x, m.p, m.training),
}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.relu: _elementwise("relu"),
    torch.relu: _elementwise("relu"),
    torch.tanh: _elementwise("tanh"),
    F.tanh: _elementwise("tanh"),
    torch.sigmoid: _elementwise("sigmoid"),
    F.sigmoid: _elementwise("sigmoid"),
    F.gelu: _gelu,
    F.softmax: lambda x, dim=None, _stacklevel=3, dtype=None: _softmax(x, dim, dtype),
    torch.softmax: _softmax,
    torch.flatten: _flatten,
    torch.add: _add,
    torch.reshape: lambda x, shape: _view(x, shape),
    operator.add: _add,
    operator.iadd: _add,
    F.dropout: _dropout,
}
_METHODS: dict[Any, Callable[..., Any]] = {
    "relu": _elementwise("relu"),
    "relu_": _elementwise("relu"),
    "tanh": _elementwise("tanh"),
    "sigmoid": _elementwise("sigmoid"),
    "softmax": _softmax,
    "flatten": _flatten,
    "add": _add,
    "add_": _add,
    "view": _view,
    "reshape": _view,
    "contiguous": _elementwise("identity"),
}


def _of_max_module(row: Callable[..., Any]) -> Callable[..., Any]:
    return lambda m, x: row(x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def _of_average_module(row: Callable[..., Any]) -> Callable[..., Any]:
    def call(m: Any, x: Any) -> Any:
        divisor = getattr(m, "divisor_override", None)
        return row(x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor)

    return call


def _of_adaptive_module(row: Callable[..., Any]) -> Callable[..., Any]:
    return lambda m, x: row(x, m.output_size)


for _d in (1, 2):
    _FUNCTIONS[getattr(F, f"max_pool{_d}d")] = _max(_d)
    _FUNCTIONS[getattr(F, f"avg_pool{_d}d")] = _average(_d)
    _MODULES[getattr(nn, f"MaxPool{_d}d")] = _of_max_module(_max(_d))
    _MODULES[getattr(nn, f"AvgPool{_d}d")] = _of_average_module(_average(_d))
    for _title, _name in (("Avg", "avg"), ("Max", "max")):
        _FUNCTIONS[getattr(F, f"adaptive_{_name}_pool{_d}d")] = _adaptive(_name, _d)
        _MODULES[getattr(nn, f"Adaptive{_title}Pool{_d}d")] = _of_adaptive_module(_adaptive(_name, _d))
