"""Modules of a model by every path that leads to them, and the selectors that every room takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

Selector = str | type[nn.Module]
Selectors = Selector | Iterable[Selector]
KINDS = ("bias", "norm", "embedding")
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first: batch and instance normalization
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_SHOWN = 8  # names in a message


def walk(module: nn.Module, path: str = "", above: tuple[nn.Module, ...] = ()) -> Iterator[tuple[str, nn.Module, tuple]]:
    """Every module by every path, with the modules it lies in; what lies below a parametrization is no part of the model."""
    inside = (*above, module)
    yield path, module, inside
    for name, child in module._modules.items():
        if child is not None and not (name == "parametrizations" and parametrize.is_parametrized(module)):
            yield from walk(child, join(path, name), inside)


def check_module(caller: str, model: object) -> None:
    """Refuse what is no module, such as its state_dict."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{caller}: model is {type(model).__name__}; it takes a torch.nn.Module, into which load_state_dict reads tensors"
        )


def join(path: str, name: str) -> str:
    """The name of something in the module at a path."""
    return f"{path}.{name}" if path else name


class Selectable(Protocol):
    """What a selector may mean: a parameter or a layer. To what a module type reaches is its own business."""

    @property
    def names(self) -> Sequence[str]:
        """Every name under which a model has it."""

    def matches(self, selector: Selector) -> bool:
        """Whether a selector means it."""


def selected(found: Sequence[Selectable], value: Selectors, where: str, *, kinds: Sequence[str] = KINDS) -> set[int]:
    """Positions of what any of the selectors means, one or many of them.

    Args:
        found: Parameters, or layers.
        value: Kinds of parameters, patterns for the whole name with the wildcards of the shell, and module types.
        where: The caller and its argument, for errors.
        kinds: Those that are known; without any the errors speak of layers.

    Raises:
        ValueError: for what is no selector, and for a pattern that means nothing, which is a slip. A kind or a type may mean
            nothing: not every model has biases.
    """
    what = "parameter" if kinds else "layer to change"
    chosen: set[int] = set()
    for selector in tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,):
        check_selector(selector, where, kinds=kinds)
        own = {i for i, one in enumerate(found) if one.matches(selector)}
        if not own and isinstance(selector, str) and selector not in kinds:
            no_kind = f"no kind ({', '.join(kinds)}) and " if kinds else ""
            raise ValueError(
                f"{where} has {selector!r}, which is {no_kind}the name of no {what}; "
                f"there are {some_of([one.names[0] for one in found]) or f'no {what}s'}"
            )
        chosen |= own
    return chosen


def some_of(names: Sequence[str]) -> str:
    """The first names, for a message; that of the model itself is ''."""
    shown = [name or repr(name) for name in names[:_SHOWN]]
    return ", ".join([*shown, "…"] if len(names) > _SHOWN else shown)


def check_selector(selector: object, where: str, *, kinds: Sequence[str] = KINDS) -> None:
    """Refuse what is neither a string nor a module type."""
    if not isinstance(selector, str) and not (isinstance(selector, type) and issubclass(selector, nn.Module)):
        takes = [f"kinds ({', '.join(kinds)})"] if kinds else []
        raise ValueError(f"{where} has {selector!r}; it takes {', '.join([*takes, 'name patterns and module types'])}")


def is_named(pattern: str, names: Sequence[str]) -> bool:
    """Whether a pattern means one of the names; "*.bias" means a bias of the root module too."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(f".{name}", pattern) for name in names)


def names_parameter(selector: str, names: Sequence[str], owners: Sequence[nn.Module]) -> bool:
    """Whether a kind or a pattern means a parameter, by its names and the modules that own it."""
    if selector == "bias":
        return any(map(_is_bias, names))
    if selector in KINDS:
        types = _NORMS if selector == "norm" else _EMBEDDINGS
        return selector in names or any(isinstance(owner, types) for owner in owners)
    return is_named(selector, names)


def _is_bias(name: str) -> bool:
    *path, last = name.split(".")
    if len(path) > 1 and path[-2] == "parametrizations":  # of which the originals are called original, original0, …
        last = path[-1]
    return last == "bias" or last.startswith("bias_") or last.endswith("_bias")
