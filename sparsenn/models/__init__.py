"""The networks of the papers."""

from sparsenn.models.lenet import lenet5, lenet_300_100
from sparsenn.models.registry import build, names

__all__ = ["build", "lenet5", "lenet_300_100", "names"]
