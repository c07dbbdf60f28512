"""What is learned from: the teachers and the real data of the paper, each with its students and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsenn import data as datasets
from sparsenn.data import DataError, TabularData
from sparsenn.models import feature_head, soft_committee
from sparsenn.nn.spectralize import spectralize

NETS = ("spectral", "direct")
LR = {"spectral": 0.005, "direct": 0.002}
BATCH_SIZE = {"spectral": 300, "direct": 500}
ALPHA_LAMBDA, ALPHA_PHI, ALPHA_W = 5e-4, 1e-2, 1e-2
PAPER_WIDTHS = (10, 20, 40, 60, 100, 200, 500, 700, 1000)


@dataclass(frozen=True)
class Experiment:
    """A task, the students of variable width that learn it, and what is run where nothing else is asked for.

    Attributes:
        title: what stands above a picture.
        load: takes a data root or the path of a file, gives the samples.
        widths: widths h of the first hidden layer.
        epochs: passes over the samples.
        trials: nets of each width.
        reference: width of the teacher's first hidden layer, where there is a teacher.
        hidden2: width of the students' second hidden layer.
        strength: what the penalties of the paper are multiplied by.
        student: takes sizes of input, hidden layers and output, gives the net in its direct form.
        spectral_layers: which layers of it are spectral in the other form; None for all.
        penalised: the layers that the penalty is on.
    """

    title: str
    load: Callable[[str | None], TabularData]
    widths: tuple[int, ...] = PAPER_WIDTHS
    epochs: int = 2000
    trials: int = 10
    reference: int | None = None
    hidden2: int = 20
    strength: float = 1.0
    student: Callable[..., nn.Sequential] = soft_committee
    spectral_layers: tuple[str, ...] | None = ("0",)
    penalised: tuple[str, ...] = ("0",)

    def make(self, net: str, data: TabularData, width: int, hidden2: int, trial: int) -> nn.Sequential:
        """A fresh student; the spectral and the direct one of a trial have the same links."""
        outputs = data.train_targets.shape[1] if data.train_targets.dim() == 2 else int(data.train_targets.max()) + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1 + trial)  # 0 is the teacher
            student = self.student(data.in_features, (width, hidden2), outputs)
        if net == "spectral":
            spectralize(student, include=self.spectral_layers)
        return student


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error, or cross-entropy where the targets are classes."""
    if targets.is_floating_point():
        return (outputs - targets).square().mean()
    return functional.cross_entropy(outputs, targets)


def teacher(widths: tuple[int, ...] = (10, 20, 20)) -> nn.Sequential:
    """The frozen teacher, always the same for the same widths."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return soft_committee(widths[0], widths[1:]).requires_grad_(False)


def _from_teacher(widths: tuple[int, ...], root: str | None) -> TabularData:
    del root  # nothing is read
    return datasets.from_teacher(teacher(widths), widths[0])


def _shuffled(name: str, root: str | None) -> TabularData:
    return TabularData.of_images(datasets.shuffle_pixels(datasets.load(name, root, download=True)))


def _housing(root: str | None) -> TabularData:
    """With an input that is always 1 for the biases that the students lack, and targets >= 0, which is what they can give."""
    data = datasets.load_california_housing(root, download_missing=True)
    least = data.train_targets.min()
    train, test = (functional.pad(inputs, (0, 1), value=1.0) for inputs in (data.train_inputs, data.test_inputs))
    return TabularData(data.name, train, data.train_targets - least, test, data.test_targets - least)


def _features(path: str | None) -> TabularData:
    if path is None:
        raise DataError(
            "CIFAR-100 features: none are given; --features FILE names them, and "
            "python -m sparsenn.papers.spectral.resnet50 FILE computes them where torchvision is installed"
        )
    return datasets.load_features(path)


_SMALL = (10, 20, 40, 100, 200)
EXPERIMENTS = {
    "teacher": Experiment("teacher 10-20-20-1", partial(_from_teacher, (10, 20, 20)), reference=20),
    "heterogeneous-teacher": Experiment(
        "teacher 20-40-20-1", partial(_from_teacher, (20, 40, 20)), (20, 40, 80, 200), reference=40
    ),
    "california-housing": Experiment("California Housing", _housing, _SMALL, 60),
    "shuffled-mnist": Experiment("shuffled MNIST", partial(_shuffled, "mnist"), _SMALL, 40),
    "shuffled-fashion-mnist": Experiment("shuffled Fashion-MNIST", partial(_shuffled, "fashion-mnist"), _SMALL, 40),
    "cifar100-features": Experiment(
        "CIFAR-100 features of a ResNet-50",
        _features,
        (20, 50, 100, 200, 500),
        50,
        hidden2=512,
        student=feature_head,
        spectral_layers=None,
        penalised=("0", "3"),
    ),
}
