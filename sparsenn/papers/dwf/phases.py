"""When sparsity sets in, and where the three phases of a run begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsenn.training.logging import Record

ONSET = 0.05  # the share of zeros from which a net counts as becoming sparse


@dataclass(frozen=True)
class Phases:
    """Epochs at which the phases of a run with a falling learning rate begin; None for one that does not come.

    Attributes:
        reorganization: the norm of the collapsed weights, after its first fall, rises again.
        sparsification: that norm is at its largest since then; from here on the net becomes sparser and better at once.
        onset: ``ONSET`` of the weights are zeros for the first time. The paper sees it at the end of the reorganization.
    """

    reorganization: int | None
    sparsification: int | None
    onset: int | None


def phases(history: Sequence[Record], parameters: int) -> Phases:
    """The phases of a run by the records of its evaluations and its number of parameters.

    The paper describes the phases (the norm falls; it rises and accuracy dips; both accuracy and sparsity grow) and draws their
    borders without a rule. Ours: the first smallest norm before the largest one, and that largest one, over all records but
    the first, whose norm is mostly that of the start.

    Source:
        Kolb et al. 2025, Section 4.3 and Figure 6.

    Example:
        >>> from sparsenn.papers.dwf.phases import phases
        >>> records = [{"epoch": e, "norm": n, "weights": w} for e, n, w in ((1, 9, 100), (2, 5, 100), (3, 8, 99), (4, 6, 40))]
        >>> phases(records, 100)
        Phases(reorganization=2, sparsification=3, onset=4)
    """
    later = list(history)[1:]
    onset = next((r["epoch"] for r in history if r["weights"] <= (1 - ONSET) * parameters), None)
    if not later:
        return Phases(None, None, onset)
    peak = max(range(len(later)), key=lambda i: later[i]["norm"])
    if peak == 0:  # the norm only falls: there is no reorganization to be seen
        return Phases(None, None, onset)
    valley = min(range(peak), key=lambda i: later[i]["norm"])
    return Phases(later[valley]["epoch"], later[peak]["epoch"], onset)
