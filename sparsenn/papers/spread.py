"""What is said of several runs that differ in nothing but their seed."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation of one value or more; their order has no effect on a digit.

    Example:
        >>> from sparsenn.papers.spread import mean_std
        >>> mean_std([1.0, 3.0])
        (2.0, 1.0)
    """
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
