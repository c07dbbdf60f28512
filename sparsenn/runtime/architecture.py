"""How a network computes: a list of operations, each on the results of earlier ones.

An operation in JSON is ``[kind, module, options]``; the module's name and the options are left out where there are none.
``options["of"]`` numbers the inputs, 0 for the network's own and i for the i-th operation's result; without it the operation
takes the result before it. The last result is the network's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sparsenn.runtime.errors import ArtefactError

MAX_OPS = 100_000
_MAX_SIZE = 1 << 31
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*|_[A-Za-z0-9][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        kind: a key of ``KINDS``.
        module: the module that it is in the model, or "" for a function.
        of: the numbers of its inputs.
        options: what its kind takes, complete.
    """

    kind: str
    module: str
    of: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    at: int = 0

    @property
    def title(self) -> str:
        """Its name in a sentence."""
        return f"{self.module!r} ({self.kind})" if self.module else f"operation {self.at} ({self.kind})"

    def to_json(self) -> list[Any]:
        """The shortest form that :func:`parse` reads."""
        defaults = {name: default for name, (_, default) in KINDS[self.kind].items()}
        options = {name: value for name, value in self.options.items() if value != defaults[name]}
        if self.of != (self.at - 1,):
            options["of"] = list(self.of)
        return [self.kind, self.module, options] if options else [self.kind, self.module] if self.module else [self.kind]


def _whole(least: int, count: int) -> Callable[[Any], bool]:
    """A list of so many whole numbers."""

    def good(value: Any) -> bool:
        sizes = isinstance(value, list) and len(value) == count
        return sizes and all(type(x) is int and least <= x < _MAX_SIZE for x in value)

    return good


def _flag(value: Any) -> bool:
    return type(value) is bool


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def _dimension(value: Any) -> bool:
    return type(value) is int and -8 <= value < 8


def _positive(value: Any) -> bool:
    return type(value) is int and 1 <= value < _MAX_SIZE


REQUIRED = object()


def _conv(d: int) -> dict[str, tuple[Callable[[Any], bool], Any]]:
    return {
        "stride": (_whole(1, d), [1] * d),
        "padding": (_whole(0, d), [0] * d),
        "dilation": (_whole(1, d), [1] * d),
        "groups": (_positive, 1),
    }


def _pool(d: int, average: bool) -> dict[str, tuple[Callable[[Any], bool], Any]]:
    options: dict[str, tuple[Callable[[Any], bool], Any]] = {
        "kernel": (_whole(1, d), REQUIRED),
        "stride": (_whole(1, d), REQUIRED),
        "padding": (_whole(0, d), [0] * d),
        "ceil": (_flag, False),
    }
    if average:
        options["include_pad"] = (_flag, True)
    return options


_NORM: dict[str, tuple[Callable[[Any], bool], Any]] = {
    "eps": (lambda value: _number(value) and value >= 0, 1e-5),
    "momentum": (lambda value: value is None or _number(value), 0.1),
}
# For each kind the options: what is a value, and which one may be left out.
KINDS: dict[str, dict[str, tuple[Callable[[Any], bool], Any]]] = {
    "linear": {},
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "batchnorm1d": _NORM,
    "batchnorm2d": _NORM,
    "gate": {"dim": (_dimension, 1)},
    "relu": {},
    "tanh": {},
    "sigmoid": {},
    "gelu": {"tanh": (_flag, False)},
    "softmax": {"dim": (_dimension, 1)},
    "maxpool1d": _pool(1, False),
    "maxpool2d": _pool(2, False),
    "avgpool1d": _pool(1, True),
    "avgpool2d": _pool(2, True),
    "adaptiveavgpool1d": {"size": (_whole(1, 1), REQUIRED)},
    "adaptiveavgpool2d": {"size": (_whole(1, 2), REQUIRED)},
    "adaptivemaxpool1d": {"size": (_whole(1, 1), REQUIRED)},
    "adaptivemaxpool2d": {"size": (_whole(1, 2), REQUIRED)},
    "flatten": {},
    "add": {},
    "identity": {},
    "dropout": {"p": (_number, 0.5)},
}
PRODUCTS = ("linear", "conv1d", "conv2d")
MODULE_KINDS = (*PRODUCTS, "batchnorm1d", "batchnorm2d", "gate")


def make(at: int, kind: str, module: str = "", of: tuple[int, ...] | None = None, **options: Any) -> Op:
    """An operation with the options that are left out at their defaults."""
    known = KINDS[kind]
    complete = {name: options.get(name, default) for name, (_, default) in known.items()}
    return Op(kind, module, (at - 1,) if of is None else of, complete, at)


def parse(listed: Any) -> list[Op]:
    """The operations of a file, checked one by one.

    Raises:
        ArtefactError: for an operation that is unknown or malformed; it is named.
    """
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_OPS:
        raise ArtefactError("its architecture is no list of operations")
    return [_parse(at, entry) for at, entry in enumerate(listed, start=1)]


def _parse(at: int, entry: Any) -> Op:
    where = f"operation {at} of its architecture"
    if not isinstance(entry, list) or not 1 <= len(entry) <= 3 or not isinstance(entry[0], str):
        raise ArtefactError(f"{where} is not [kind, module, options]")
    rest: list[Any] = ["", {}]
    kind, module, options = [*entry, *rest[len(entry) - 1 :]]
    if kind not in KINDS:
        raise ArtefactError(f"{where} is of the unknown kind {kind[:40]!r}; known are {', '.join(KINDS)}")
    if not isinstance(module, str) or not isinstance(options, dict):
        raise ArtefactError(f"{where} is not [kind, module, options]")
    if module or kind in MODULE_KINDS:
        check_name(module)
    if module and kind == "add":
        raise ArtefactError(f"{where} is a sum, which is no module, and has the name {module!r} of one")
    of = options.pop("of", [at - 1])
    if not isinstance(of, list) or len(of) != (2 if kind == "add" else 1):
        raise ArtefactError(f"{where} ({kind}) has the wrong number of inputs")
    if not all(type(i) is int and 0 <= i < at for i in of):
        raise ArtefactError(f"{where} ({kind}) takes a result that is not there yet")
    known = KINDS[kind]
    for name, value in options.items():
        if name not in known or not known[name][0](value):
            raise ArtefactError(f"{where} ({kind}) has an option {name[:40]!r} that it does not take: {str(value)[:40]}")
    for name, (_, default) in known.items():
        if default is REQUIRED and name not in options:
            raise ArtefactError(f"{where} ({kind}) lacks its option {name!r}")
    return make(at, kind, module, tuple(of), **options)


def check_name(name: str) -> None:
    """Refuse names that no module or tensor of a model should have: they become attributes.

    Raises:
        ArtefactError: with the name.
    """
    if len(name) > 1000 or not all(_SEGMENT.fullmatch(segment) for segment in name.split(".")):
        raise ArtefactError(f"{name[:80]!r} is no name of a module or a tensor: letters, digits and _ between dots")
