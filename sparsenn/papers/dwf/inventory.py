"""Tables 3 and 4: the data sets, and what the networks are trained with on each."""

from __future__ import annotations

from collections.abc import Iterable

from sparsenn.papers.dwf.settings import IMAGES, Given, parameters_of
from sparsenn.training.presets import PRESETS

_DEPTHS = (2, 3, 4)
_OUR_OWN = ("digits",)  # not in the paper


def datasets() -> str:
    """Table 3: images and classes of each data set."""
    lines = [
        "# Table 3. Data sets\n",
        "| data set | training images | test images | classes | features |",
        "|---|---|---|---|---|",
    ]
    for name, own in IMAGES.items():
        if name not in _OUR_OWN:
            shape = f"{own.size} × {own.size} × {own.channels}"
            features = f"{own.channels * own.size**2:,} ({shape})"
            lines.append(f"| {name} | {own.examples:,} | {own.test_examples:,} | {own.classes} | {features} |")
    return "\n".join(lines) + "\n"


def hyperparameters() -> str:
    """Table 4: what factorized nets are trained with, and the published learning rates beside ours."""
    lines = [
        "# Table 4. Hyperparameters\n",
        "SGD with momentum 0.9. Learning rates and λ are those of D = 2, 3, 4; pruned nets have the rate of the dense one.\n",
        "| network | data set | parameters | epochs | batch | start | schedule | learning rates | published | dense | λ |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (dataset, model), preset in PRESETS.items():
        if dataset not in _OUR_OWN:
            given = Given(dataset, model, seeds=1)
            curves = [given.sweep(depth) for depth in _DEPTHS]
            first = curves[0][0]
            cells = (
                model,
                dataset,
                f"{parameters_of(dataset, model):,}",
                first["epochs"],
                first["batch_size"],
                first["factor_init"],
                first["schedule"],
                _at_depths(curve[0]["lr"] for curve in curves),
                _at_depths(preset.lr_at(depth) for depth in _DEPTHS),
                f"{given.key('dense')['lr']:g}",
                ", ".join(f"{curve[0]['lam']:.2g} to {curve[-1]['lam']:.2g}" for curve in curves),
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _at_depths(values: Iterable[float]) -> str:
    """One number where all are alike."""
    shown = [f"{value:g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)
