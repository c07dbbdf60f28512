"""Modules of a model by every path that leads to them, and rules that select some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

Rule = str | type[nn.Module]


def walk(module: nn.Module, path: str = "", above: tuple[nn.Module, ...] = ()) -> Iterator[tuple[str, nn.Module, tuple]]:
    """Every module by every path, with the modules it lies in; what lies below a parametrization is no part of the model."""
    inside = (*above, module)
    yield path, module, inside
    for name, child in module._modules.items():
        if child is not None and not (name == "parametrizations" and parametrize.is_parametrized(module)):
            yield from walk(child, join(path, name), inside)


def check_module(caller: str, model: Any) -> None:
    """Refuse what is no module, such as its state_dict."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{caller}: model is {type(model).__name__}; it takes a torch.nn.Module, into which load_state_dict reads tensors"
        )


def join(path: str, name: str) -> str:
    """The name of something in the module at a path."""
    return f"{path}.{name}" if path else name


def rules(caller: str, argument: str, value: Rule | Sequence[Rule] | None) -> tuple[Rule, ...] | None:
    """An argument of `caller` as a tuple of rules; raises where it is something else."""
    if value is None:
        return None
    found: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    for rule in found:
        if not isinstance(rule, str) and not (isinstance(rule, type) and issubclass(rule, nn.Module)):
            raise ValueError(f"{caller}: {argument} holds {rule!r}; it takes name patterns such as '*.bias' and module types")
    return found


def matches(rule: Rule, paths: Sequence[str], inside: Sequence[nn.Module]) -> bool:
    """Whether a rule names one of the paths, or the type of one of the modules that something lies in."""
    if isinstance(rule, str):
        # the leading dot lets "*.bias" name a bias of the root module too
        return any(fnmatchcase(path, rule) or fnmatchcase(f".{path}", rule) for path in paths)
    return any(isinstance(module, rule) for module in inside)
