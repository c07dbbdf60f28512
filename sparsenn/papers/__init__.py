"""The papers' figures and tables, each from one command: ``sparsenn reproduce PAPER ITEM``."""

from __future__ import annotations

import importlib
from typing import Any

ITEMS = {
    "dwf": {"fig1": "accuracy against compression: vanilla L1, proximal L1 and factorization on one net"},
    "rbv2": {
        "fig2": "the share of weights that count against the epoch: three strengths of the norm and of weight decay",
        "fig3": "matrices between hidden layers, sorted by norm",
        "fig4": "their singular values, and what they are products of",
    },
}


def reproduce(paper: str, item: str, **options: Any) -> Any:
    """Run one figure or table.

    Args:
        paper: a key of ``ITEMS``.
        item: a key of ``ITEMS[paper]``.
        **options: what the item's own ``reproduce`` takes.

    Raises:
        ValueError: for an unknown paper or item; the message lists the known ones.
    """
    if item not in ITEMS.get(paper, {}):
        known = ", ".join(f"{p} {i}" for p, items in ITEMS.items() for i in items)
        raise ValueError(f"reproduce: unknown {paper} {item}; known are {known}")
    return importlib.import_module(f"sparsenn.papers.{paper}.{item}").reproduce(**options)
