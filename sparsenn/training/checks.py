"""What a setting may be: whether a value fits, and in words what does. No PyTorch is needed here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """What a setting takes.

    Attributes:
        fits: whether a value is of that kind; it raises for none.
        takes: what is, after "it takes".
    """

    fits: Callable[[Any], bool]
    takes: str


def is_int(value: Any) -> bool:
    """Whether a value is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is an int or float, and no bool, that a float can hold and that is finite."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def one_of(known: Sequence[str]) -> Check:
    """One of some names."""
    return Check(lambda value: isinstance(value, str) and value in known, f"one of {', '.join(known)}")


def whole(low: int, high: int | None = None) -> Check:
    """An int from ``low`` to ``high``, without an end if that is None."""
    takes = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"
    return Check(lambda value: is_int(value) and low <= value and (high is None or value <= high), takes)


def number(fits: Callable[[Any], bool], takes: str) -> Check:
    """A finite number that fits."""
    return Check(lambda value: is_number(value) and fits(value), takes)


def optional(check: Check, otherwise: str = "") -> Check:
    """The same, or None, which means what ``otherwise`` says."""
    return Check(lambda value: value is None or check.fits(value), f"{check.takes}, or null{otherwise}")


def list_of(check: Check, takes: str) -> Check:
    """A list of one value or more, each of which fits."""
    return Check(lambda value: isinstance(value, list) and len(value) > 0 and all(map(check.fits, value)), takes)


def shown(value: Any) -> str:
    """A value that does not fit, in a message: one line, and not a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def first_line(error: Exception) -> str:
    """What an error of foreign code says, in a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


NOT_NEGATIVE = number(lambda value: value >= 0, "a number, 0 or more")
ABOVE_0 = number(lambda value: value > 0, "a number above 0")
BELOW_1 = number(lambda value: 0 <= value < 1, "a number from 0 up to, but not, 1")
TRUE_OR_FALSE = Check(lambda value: isinstance(value, bool), "true or false")
SEED = Check(lambda value: is_int(value) and 0 <= value < 2**63, "a whole number from 0 up to, but not, 2^63")
COUNT = whole(1, 2**31 - 1)
DEPTH = whole(1, 64)
THREADS = whole(0, 1024)
SAMPLES = whole(1, 10**8)  # of 12 numbers: 5 GB
FOLDER = Check(lambda value: isinstance(value, str) and bool(value) and "\0" not in value, "a folder's name")
DEVICE = Check(
    lambda value: isinstance(value, str) and re.fullmatch(r"cpu|cuda(:\d+)?", value) is not None, "cpu, cuda or cuda:<index>"
)
