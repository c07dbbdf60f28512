"""From a model and an example to the units of all its tensors: torch.fx traces the calls, one run gives the shapes."""

from __future__ import annotations

import functools
import inspect
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from sparsenn.prune.calls import Tracer
from sparsenn.prune.layers import Site
from sparsenn.prune.masks import Mask
from sparsenn.prune.rules import FUNCTIONS, LAYERS, METHODS, MODULES, mixing, opaque, read_width, reshape, units_in
from sparsenn.prune.units import Trace, Units, map_nested

_RESHAPES = ("view", "reshape", torch.reshape)
_signature = functools.cache(inspect.signature)


def trace_calls(model: nn.Module, given: tuple[Any, ...]) -> fx.Graph:
    """The calls of ``model(*given)``, or a sentence on why there is no such list."""
    try:
        return Tracer(MODULES, given).calls(model)
    except ValueError as error:
        raise ValueError(
            f"compact: {error}; what compaction takes is a model whose forward makes the same calls for all inputs"
        ) from error


class Analysis(fx.Interpreter):
    """Runs the calls on an example and follows the units beside the numbers."""

    def __init__(self, model: nn.Module, graph: fx.Graph, training: set[nn.Module]) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False  # errors are sentences
        self.trace = Trace(training, _used_twice(model, graph))
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._units: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """One call."""
        tensors = [self.env[node] for node in n.all_input_nodes if isinstance(self.env[node], Tensor)]
        versions = [tensor._version for tensor in tensors]
        try:
            result = super().run_node(n)
        except Exception as error:
            raise ValueError(f"compact: {self._title(n)} fails on example_input: {error}") from error
        for tensor, version in zip(tensors, versions, strict=True):
            if tensor._version != version:
                self._refuse_late_readers(n, tensor)
        args, kwargs = (map_nested(value, self._look_up) for value in (n.args, n.kwargs))
        self._units[n] = self._follow(n, args, dict(kwargs), result)
        return result

    def _look_up(self, value: Any) -> Any:
        return self._units[value] if isinstance(value, fx.Node) else value

    def _follow(self, n: fx.Node, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
        trace = self.trace
        if n.op == "placeholder":
            return trace.opaque(result, given=True) if isinstance(result, Tensor) else result
        if n.op == "output":
            for units in units_in(args):
                trace.demand(units)
            return None
        if not units_in(args, kwargs) or (n.target is operator.getitem and not isinstance(args[0], Units)):
            if n.target is operator.getitem:
                return args[0][args[1]]
            return opaque(trace, result)
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        if isinstance(n.target, type) and issubclass(n.target, tuple):  # a named tuple
            return n.target(*args, **kwargs)
        if n.op == "call_module":
            return self._module(n, args, kwargs, result)
        site = Site(self._title(n), None, result)
        if n.target in _RESHAPES:
            return reshape(trace, site, n, *args)
        if n.op == "call_method":
            return self._method(n, site, args, kwargs)
        if n.target is getattr:
            if args[1] == "shape":
                read_width(trace, n, args[0])
            return mixing(trace, site, args[0]) if isinstance(result, Tensor) else result
        return self._apply(n, FUNCTIONS.get(n.target), site, args, kwargs)

    def _method(self, n: fx.Node, site: Site, args: Any, kwargs: dict[str, Any]) -> Any:
        if n.target == "size":
            read_width(self.trace, n, *args, **kwargs)
            return site.result
        if n.target in ("dim", "numel"):
            if n.target == "numel":
                self.trace.pin(args[0].atoms)
            return site.result
        name = str(n.target)
        rule = METHODS.get(name.removesuffix("_") if name != "requires_grad_" else name)
        return self._apply(n, rule, site, args, kwargs)

    def _module(self, n: fx.Node, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
        module = self.fetch_attr(str(n.target))
        kind = type(module)
        site = Site(self._title(n), module, result)
        if parametrize.is_parametrized(module):
            masked = any(isinstance(own, Mask) for own in module.parametrizations.modules())
            cure = "sparsenn.prune.remove" if masked else "torch.nn.utils.parametrize.remove_parametrizations"
            raise site.error(f"carries a parametrization; remove it first with {cure}")
        if kind in LAYERS and module in self.trace.whole:
            return mixing(self.trace, site, *args, **kwargs)
        return self._apply(n, MODULES.get(kind), site, args, kwargs)

    def _apply(self, n: fx.Node, rule: Callable[..., Any] | None, site: Site, args: Any, kwargs: dict[str, Any]) -> Any:
        if rule is None:
            raise site.error("is unknown to compaction, which cannot tell what it does to units")
        if any(isinstance(self._units[node], int | float) for node in n.all_input_nodes):
            return mixing(self.trace, site, *args, **kwargs)  # a size of the example, say: of other inputs it is another
        try:
            _signature(rule).bind(self.trace, site, *args, **kwargs)
        except TypeError:  # arguments that the rule does not know, such as alpha of torch.add
            return mixing(self.trace, site, *args, **kwargs)
        return rule(self.trace, site, *args, **kwargs)

    def _refuse_late_readers(self, n: fx.Node, changed: Tensor) -> None:
        """What was changed in place may be read again only as the result of that change."""
        storage = changed.untyped_storage().data_ptr()
        for node, value in self.env.items():
            shared = isinstance(value, Tensor) and value.untyped_storage().data_ptr() == storage
            if shared and any(self._order[user] > self._order[n] for user in node.users):
                raise ValueError(
                    f"compact: {n.name!r} changes {node.name!r} in place, which is read again later; use its result"
                )

    def _title(self, n: fx.Node) -> str:
        """The name of a layer and its kind, or of a call of a function or a method and the module that makes it."""
        if n.op == "call_module":
            return f"{n.target!r} ({type(self.fetch_attr(str(n.target))).__name__})"
        inside = list(n.meta.get("nn_module_stack") or {})
        title = f"{n.name!r} ({getattr(n.target, '__name__', n.target)})"
        return f"{title} in {inside[-1]!r}" if inside else title


def _used_twice(model: nn.Module, graph: fx.Graph) -> set[nn.Module]:
    """Modules that are called twice, or whose parameters are read elsewhere too."""
    calls = Counter(id(model.get_submodule(str(n.target))) for n in graph.nodes if n.op == "call_module")
    readers = Counter(id(p) for module in model.modules() for p in _places(module))
    for n in graph.nodes:
        if n.op == "get_attr":
            readers[id(operator.attrgetter(str(n.target))(model))] += 1
    return {module for module in model.modules() if calls[id(module)] > 1 or any(readers[id(p)] > 1 for p in _places(module))}


def _places(module: nn.Module) -> list[nn.Parameter]:
    """A module's own parameters, one under two names twice."""
    return [p for _, p in module.named_parameters(recurse=False, remove_duplicate=False)]
