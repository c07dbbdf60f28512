"""When sparsity sets in, and where the three phases of a run begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sparsenn.training.logging import Record

ONSET = 0.05  # the share of zeros from which a net counts as becoming sparse
DIP = 0.002  # how far training accuracy has to fall, of 1, to be more than its noise


@dataclass(frozen=True)
class Phases:
    """Epochs at which the phases of a run begin; None for one that does not come.

    Attributes:
        reorganization: training accuracy is at a peak from which it falls by ``DIP`` or more.
        sparsification: it is at the bottom of that fall and ends above the peak; a run that never gets there again has none.
        onset: ``ONSET`` of the weights are zeros for the first time. The paper sees it at the end of the reorganization.
    """

    reorganization: int | None
    sparsification: int | None
    onset: int | None


def phases(history: Sequence[Record], parameters: int) -> Phases:
    """The phases of a run by the records of its evaluations and its number of parameters.

    The paper describes the phases (accuracy grows; it dips for a time while the norm of the weights rises; accuracy and
    sparsity grow together) and draws their borders without a rule. Ours go by the deepest dip of the training accuracy of a
    net that becomes sparse. The norm, which can rise from the first epoch to the last, decides nothing.

    Source:
        Kolb et al. 2025, Section 4.3 and Figure 6.

    Example:
        >>> from sparsenn.training.phases import phases
        >>> course = ((1, 0.80, 100), (2, 0.85, 99), (3, 0.84, 70), (4, 0.86, 40))
        >>> records = [{"epoch": e, "train_accuracy": a, "weights": w} for e, a, w in course]
        >>> phases(records, 100)
        Phases(reorganization=2, sparsification=3, onset=3)
    """
    onset = next((r["epoch"] for r in history if r["weights"] <= (1 - ONSET) * parameters), None)
    accuracies = [r["train_accuracy"] for r in history]
    falls = [best - own for best, own in zip(accumulate(accuracies, max), accuracies, strict=True)]
    if onset is None or max(falls) < DIP:
        return Phases(None, None, onset)
    bottom = falls.index(max(falls))
    peak = accuracies.index(max(accuracies[:bottom]))
    recovers = accuracies[-1] > accuracies[peak]
    return Phases(history[peak]["epoch"], history[bottom]["epoch"] if recovers else None, onset)
