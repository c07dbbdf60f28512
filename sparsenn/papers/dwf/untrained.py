"""The tables and figures that need no trained net."""

from __future__ import annotations

from pathlib import Path

from sparsenn.papers.dwf import inventory, starts
from sparsenn.training.files import write_atomic

_ITEMS = {
    "table3.md": lambda: inventory.datasets().encode(),
    "table4.md": lambda: inventory.hyperparameters().encode(),
    "fig3.png": lambda: starts.geometry("Figure 3"),
    "fig25.png": lambda: starts.gaussian("Figure 25"),
}


def reproduce(out: str | Path = "runs/dwf", *, item: str, quiet: bool = True) -> Path:
    """Make a table of settings, or a picture of where factors start.

    Args:
        out: the folder.
        item: ``table3``, ``table4``, ``fig3`` or ``fig25``.
        quiet: as everywhere; nothing is printed here.

    Returns:
        The path of the table or picture.

    Source:
        Kolb et al. 2025, Tables 3 and 4 (Appendix G.2), Figure 3 (and Equation 6), Figure 25 (and Lemma 5).
    """
    (name,) = (name for name in _ITEMS if Path(name).stem == item)
    content = _ITEMS[name]()
    path = Path(out) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path
