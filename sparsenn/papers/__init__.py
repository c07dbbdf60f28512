"""The papers' figures and tables, each from one command: ``sparsenn reproduce PAPER ITEM``."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

_L1_TABLES = {
    "table1": "average sparsity, Experiment 3",
    **{
        f"table{n}": f"weights {how}, Experiment 1"
        for n, how in ((2, "without regularization"), (3, "under L1"), (4, "under L2"))
    },
    "table5": "final losses of all pairs, Experiment 1",
    **{f"table{n}": f"weights of {a} students, Experiment 2" for n, a in ((6, "tanh"), (7, "ReLU"), (8, "sigmoid"))},
    "table9": "average sparsity, Experiment 4",
    "table10": "average sparsity, Experiment 5",
    **{f"table{n}": f"weights of {a} students, Experiment 6" for n, a in ((11, "sigmoid"), (12, "ReLU"), (13, "tanh"))},
}
_L1_FIGURES = {
    **{f"fig{n}": f"final losses, Experiment {e}" for n, e in ((3, 3), (5, 2), (9, 4), (11, 5))},
    **{f"fig{n}": f"weight map, Experiment {e}" for n, e in ((4, 4), (6, 3), (7, 3), (8, 3), (10, 5))},
}
ITEMS = {
    "dwf": {
        "table1": "compression within 5 and 10 points of the dense net, and the published numbers beside",
        "table2": "test accuracy at sparsities of 90 to 99.9 %, pruning methods and the published numbers beside",
        "table3": "the data sets",
        "table4": "networks, epochs, learning rates and λ, and the published rates beside",
        "fig1": "accuracy against compression: vanilla L1, proximal L1 and factorization, as trained and after pruning",
        "fig3": "a weight's factors and their penalty",
        "fig4": "starts of the factors: densities, and accuracy against compression",
        "fig5a": "weights that are dead from the start, D = 10 without a penalty",
        "fig5b": "a learning rate too small for sparsity",
        "fig6": "three phases of training, under three schedules and three strengths",
        "fig7": "compression and accuracy on the way, for every strength (fig15, fig16: the same for VGG-19)",
        "fig8": "accuracy against compression beside pruning methods",
        "fig9": "the same for ResNet-18 on CIFAR-10, or --model and --dataset",
        "fig10": "the share of weights left in each layer",
        "fig11": "learning rates, by depth",
        "fig12a": "which learning rate is best at which compression",
        "fig12b": "starts of the factors, LeNet-5",
        "fig13": "compression and norm against the strength",
        "fig14": "depths up to 8",
        "fig15": "accuracy on the way, for every strength, VGG-19 on CIFAR-100",
        "fig16": "the same, with compression",
        "fig17": "compression and norm of each layer on the way",
        "fig18": "zeros and misalignment of each layer on the way",
        "fig19": "misalignment on the way, by depth and strength",
        "fig20": "the parts of the training loss on the way",
        "fig21": "factorized nets pruned further and trained on",
        "fig22": "depths on a wide ResNet, CIFAR-100",
        "fig23": "starts of the factors, by depth",
        "fig24": "fig6 for balanced factors from the start",
        "fig25": "factors whose product is normal, and a Kolmogorov-Smirnov test",
        "fig26": "time of a sample against the batch size: dense, FactorizedSGD, factors under autograd",
        "fig27": "the same for memory at the peak of a step",
        "path": "beside the paper: one net taken up a path of λ by warm starts, against a net for every λ, as a table",
        "starts": "beside the paper: starts of the factors from scratch and from a trained net, as a table",
        "transformer": "beside the paper: a small transformer under every means of this package, and pruned",
    },
    "l1": {
        "exp1": "baselineCNN taught by baselineCNN: all runs, losses, sparsities, recovery, and the published ones beside",
        "exp2": "the same for multiChannelCNN taught by baselineCNN",
        "exp3": "the same for fcn_256_32 taught by baselineCNN (hours)",
        "exp4": "the same for fcn_128_128 taught by baselineCNN (hours)",
        "exp5": "the same for fcn_256_32 taught by multiChannelCNN (hours)",
        "exp6": "the same for multiChannelCNN taught by splitFilterCNN",
        **_L1_TABLES,
        **dict(sorted(_L1_FIGURES.items(), key=lambda entry: int(entry[0].removeprefix("fig")))),
        "courses": "beside the paper: when a student has the connections that it ends with, under L1 and under proximal steps",
    },
    "rbv2": {
        "fig2": "the share of weights that count against the epoch: three strengths of the norm and of weight decay",
        "fig3": "matrices between hidden layers, sorted by norm",
        "fig4": "their singular values, and what they are products of",
        "when": "share, rank and error against the epoch over seeds: when the norm and weight decay take effect",
        "beyond": "beside the paper: the norm on California Housing and MNIST next to other means, and compacted nets",
    },
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
_SHARED = {"dwf": "items", "l1": "items"}  # papers whose items are made by one module
_APART = {  # but for these
    ("dwf", "table3"): "untrained",
    ("dwf", "table4"): "untrained",
    ("dwf", "fig3"): "untrained",
    ("dwf", "fig25"): "untrained",
    ("dwf", "fig26"): "cost",
    ("dwf", "fig27"): "cost",
    ("dwf", "path"): "path",
    ("dwf", "transformer"): "transformer",
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
    module = _APART.get((paper, item), _SHARED.get(paper, item))
    run = importlib.import_module(f"sparsenn.papers.{paper}.{module}").reproduce
    takes = inspect.signature(run).parameters
    if "item" in takes:
        options["item"] = item
    if foreign := [name.replace("_", "-") for name in options if name not in takes]:
        known = ", ".join(name.replace("_", "-") for name in takes if name != "item")
        raise ValueError(f"reproduce: {paper} {item} takes no {', '.join(foreign)}; it takes {known}")
    return run(**options)
