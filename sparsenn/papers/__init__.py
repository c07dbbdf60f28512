"""The papers' figures and tables, each from one command: ``sparsenn reproduce PAPER ITEM``."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

ITEMS = {
    "dwf": {"fig1": "accuracy against compression: vanilla L1, proximal L1 and factorization on one net"},
    "spectral": {
        "fig1": "relevance of the nodes of spectral and direct students of a teacher, as histograms",
        "fig2": "nodes that are left against the student's width, and what it costs to remove them",
        "fig3a": "the same on shuffled Fashion-MNIST",
        "fig3b": "the same on shuffled MNIST",
        "fig3c": "the same under a teacher with hidden layers of 40 and 20",
        "fig3d": "the same on California Housing",
        "fig3e": "the same on CIFAR-100 features of a ResNet-50 (--features FILE)",
        "grouplasso": "beside the paper: a group lasso of the same strength, by proximal steps",
        "fig4": "path magnitudes of the students beside the teacher's",
    },
}


def reproduce(paper: str, item: str, **options: Any) -> Any:
    """Run one figure or table.

    Args:
        paper: a key of ``ITEMS``.
        item: a key of ``ITEMS[paper]``.
        **options: what the item's own ``reproduce`` takes.

    Raises:
        ValueError: for an unknown paper or item, or an option that the item does not take; the message lists the known ones.
    """
    if item not in ITEMS.get(paper, {}):
        known = ", ".join(f"{p} {i}" for p, items in ITEMS.items() for i in items)
        raise ValueError(f"reproduce: unknown {paper} {item}; known are {known}")
    run = importlib.import_module(f"sparsenn.papers.{paper}.{item}").reproduce
    takes = inspect.signature(run).parameters
    if foreign := [name for name in options if name not in takes]:
        raise ValueError(f"reproduce: {paper} {item} takes no {', '.join(foreign)}; it takes {', '.join(takes)}")
    return run(**options)
