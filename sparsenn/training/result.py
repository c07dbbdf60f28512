"""What a run comes to: the sparse net, its figures, and the dense twin beside it."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparsenn.metrics import SparsityReport, sparsity_report
from sparsenn.nn.convert import collapse
from sparsenn.prune import remove
from sparsenn.training.config import TrainConfig
from sparsenn.training.diagnostics import switches_of
from sparsenn.training.evaluate import evaluate
from sparsenn.training.fit import Fit
from sparsenn.training.logging import Record
from sparsenn.training.methods import zero_threshold
from sparsenn.training.phases import ONSET, Phases, phases
from sparsenn.training.presets import FACTORIZED

_NEAR = 1.25  # times the weights that a target sparsity leaves: beyond it the report says so


@dataclass(frozen=True)
class Outcome:
    """One trained net.

    Attributes:
        config: the run.
        model: the net in eval mode; where the method only comes near zero, its small weights are set to exact zeros (see
            ``sparsenn.collapse``), and where it put masks on, these are plain zeros.
        history: the evaluations on the way.
        accuracy_before: share of right test answers before the collapse.
        accuracy: the same after it, so of ``model``.
        before: the sparsity before the collapse: few exact zeros, many weights with |w| ≤ threshold.
        after: the sparsity of ``model``, where the two figures agree.
        seconds: time spent in training steps, over all sessions of the run.
        switches: with ``balanced`` auto, whose factors became one root a weight in training: by the parameter's name, the
            figures of its ``sparsenn.optim.BalanceSwitch``. Nothing where they were one from the start (``factor_init`` root).
    """

    config: TrainConfig
    model: nn.Module
    history: list[Record]
    accuracy_before: float
    accuracy: float
    before: SparsityReport
    after: SparsityReport
    seconds: float
    switches: dict[str, dict[str, float]]

    @property
    def total(self) -> int:
        """All parameters."""
        return self.after.total.numel

    @property
    def weights(self) -> int:
        """The parameters of ``model`` that are not zero."""
        return self.after.total.numel - self.after.total.zeros

    @property
    def compression_ratio(self) -> float:
        """All parameters over the non-zero ones; inf where none is left."""
        return self.after.exact_compression_ratio

    @property
    def kept_over_asked(self) -> float | None:
        """How many times the weights that a target sparsity leaves there are; None without one, or where it is of a part."""
        if self.config.target_sparsity is None or not self.config.penalize_biases:
            return None
        return self.weights / (self.total * (1 - self.config.target_sparsity))

    @property
    def phases(self) -> Phases | None:
        """When sparsity set in and the phases of training began; None for a net without factors."""
        return phases(self.history, self.total) if self.config.method in FACTORIZED else None

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "test_accuracy_before_collapse": self.accuracy_before,
            "test_accuracy": self.accuracy,
            "weights": self.weights,
            "parameters": self.total,
            "compression_ratio": self.compression_ratio if self.weights else None,
            "before_collapse": self.before.to_dict(),
            "after_collapse": self.after.to_dict(),
            "seconds": round(self.seconds, 3),
            **({"phases": asdict(self.phases)} if self.phases is not None else {}),
            **({"switches": self.switches} if self.config.balanced == "auto" else {}),
        }


@dataclass(frozen=True)
class Result:
    """A run: the net, its dense twin if one was trained, and the folder if there is one. ``str(result)`` is the report.

    ``untraced`` is why the folder's sparse artefact holds no architecture; None where it holds one, or there is no folder.
    """

    net: Outcome
    twin: Outcome | None
    folder: Path | None
    untraced: str | None = None

    @property
    def fewer_weights(self) -> float | None:
        """How many times fewer weights than the twin the net has; None without a twin or without weights."""
        return self.twin.weights / self.net.weights if self.twin is not None and self.net.weights else None

    @property
    def points_lost(self) -> float | None:
        """Points (percent) of test accuracy below the twin; negative where the net is better, None without a twin."""
        return 100 * (self.twin.accuracy - self.net.accuracy) if self.twin is not None else None

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        comparison = {"times_fewer_weights": self.fewer_weights, "points_of_accuracy_lost": self.points_lost}
        return {
            "config": self.net.config.to_dict(),
            "net": self.net.to_dict(),
            "twin": self.twin.to_dict() if self.twin is not None else None,
            "comparison": comparison if self.twin is not None else None,
            "untraced": self.untraced,
        }

    def __str__(self) -> str:
        parts = [_title(self.net.config), _sparsity(self.net), _table(self)]
        if self.net.phases is not None:
            parts.append(_phases(self.net.phases))
        if self.net.config.balanced == "auto":
            parts.append(_switches(self.net))
        if (times := self.net.kept_over_asked) is not None and not 1 / _NEAR <= times <= _NEAR:
            parts.append(
                f"The target was missed: {times:.2g} times the weights asked for. More --epochs give λ time to find it."
            )
        if self.twin is not None:
            parts.append(_verdict(self))
        if self.untraced is not None:
            parts.append(
                "The sparse artefact holds the tensors alone, which sparsenn.load(path, into=model) reads back: "
                f"{self.untraced}."
            )
        return "\n\n".join(parts)


def outcome(fit: Fit) -> Outcome:
    """Collapse a copy of a trained net, without its masks, and measure it before and after."""
    model = remove(copy.deepcopy(fit.model)).eval()
    images, labels = fit.data.test_images, fit.data.test_labels
    threshold = zero_threshold(fit.config)
    before, accuracy_before = sparsity_report(model, threshold), evaluate(model, images, labels)[1]
    if threshold:
        collapse(model, threshold)
    after, accuracy = sparsity_report(model, threshold), evaluate(model, images, labels)[1]
    figures = (accuracy_before, accuracy, before, after, fit.seconds)
    return Outcome(fit.config, model.cpu(), fit.history, *figures, switches_of(fit.model, fit.optimizer))


def _title(config: TrainConfig) -> str:
    factors = f"D = {config.depth}, " if config.method in FACTORIZED else ""
    if config.target_sparsity is not None:
        penalty = f"target sparsity {100 * config.target_sparsity:g} %, "
    elif config.compression is not None:
        after = f" after {config.prune_epoch} epochs" if config.prune_epoch else ""
        penalty = f"compression {config.compression:g}{after}, "
    else:
        penalty = f"λ = {config.lam:g}, " if config.method != "dense" else ""
    how = f"{factors}{penalty}lr {config.lr:g}, {config.epochs} epochs, seed {config.seed}"
    return f"{config.model} on {config.dataset}, {config.method} ({how})"


def _sparsity(net: Outcome) -> str:
    threshold = zero_threshold(net.config)
    if not threshold:
        return str(net.after)
    return f"Before the collapse:\n{net.before}\n\nAfter the collapse (|w| ≤ {threshold:.3g} is exactly 0):\n{net.after}"


def _phases(found: Phases) -> str:
    if found.onset is None:
        return f"Sparsity did not set in: less than {100 * ONSET:g} % zeros at every evaluation."
    parts = [f"Sparsity set in by epoch {found.onset} ({100 * ONSET:g} % zeros)"]
    if found.reorganization is not None:
        parts.append(f"training accuracy fell from epoch {found.reorganization}")
    if found.sparsification is not None:
        parts.append(f"and rose again from epoch {found.sparsification}")
    return ", ".join(parts) + "."


def _switches(net: Outcome) -> str:
    if net.config.factor_init == "root":
        return "Factors were balanced from the start: one root a weight."
    if not net.switches:
        return "No parameter's factors were ever balanced."
    jump = max(own["jump"] for own in net.switches.values())
    return f"Balanced factors became one root a weight, of {', '.join(net.switches)}; a weight jumped by {jump:.2g} at most."


def _table(result: Result) -> str:
    nets = [result.net] if result.twin is None else [result.net, result.twin]
    rows = [
        ("", ["this net", "dense twin"]),
        ("test accuracy", [f"{100 * net.accuracy:.2f} %" for net in nets]),
        ("test accuracy before the collapse", [f"{100 * net.accuracy_before:.2f} %" for net in nets]),
        ("weights that are not 0", [f"{net.weights:,} of {net.total:,}" for net in nets]),
        ("compression", [_times(net.compression_ratio) for net in nets]),
        *_aim(result.net.config, nets),
        ("seconds of training", [f"{net.seconds:.1f}" for net in nets]),
    ]
    return "\n".join(f"{name:34}" + "".join(f"{cell:>20}" for cell in cells[: len(nets)]) for name, cells in rows)


def _aim(config: TrainConfig, nets: list[Outcome]) -> list[tuple[str, list[str]]]:
    """The sparsity that was asked for beside the one reached, and the λ that led there."""
    if config.target_sparsity is None:
        return []
    reached = [f"{100 * (1 - net.weights / net.total):.2f} %" for net in nets]
    return [
        (f"zeros, {100 * config.target_sparsity:g} % wanted", reached),
        ("λ at the end", [f"{net.history[-1]['lam']:.3g}" for net in nets]),
    ]


def _times(ratio: float) -> str:
    return "nothing is left" if math.isinf(ratio) else f"{ratio:.1f} ×"


def _verdict(result: Result) -> str:
    lost = result.points_lost or 0.0
    accuracy = f"{abs(lost):.2f} points of test accuracy {'lost' if lost >= 0 else 'gained'}"
    if result.fewer_weights is None:
        return f"No weight is left, {accuracy}: λ is too large."
    return f"{result.fewer_weights:.1f} times fewer weights than the dense twin, {accuracy}."
