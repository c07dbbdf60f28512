"""A whole run: data, net, twin, report, pictures."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from sparsenn import data as datasets
from sparsenn.artefact import save as save_artefact
from sparsenn.artefact.trace import ArchitectureError
from sparsenn.data import ImageData, require_extra
from sparsenn.training.config import TrainConfig
from sparsenn.training.errors import ConfigError
from sparsenn.training.files import write_atomic, write_json
from sparsenn.training.fit import build_model
from sparsenn.training.folder import alone_in, go_on, open_again, open_new
from sparsenn.training.logging import Progress, progress_for
from sparsenn.training.loop import to_device, train_net
from sparsenn.training.methods import check_compression
from sparsenn.training.pictures import write_pictures
from sparsenn.training.result import Outcome, Result, outcome
from sparsenn.training.session import StopSignal, check_compiler, session

MODEL = "model.safetensors"
ARTEFACT = "sparse.safetensors"
TWIN = "twin"


def train(config: TrainConfig, out: str | Path | None = None, *, quiet: bool = True, images: ImageData | None = None) -> Result:
    r"""Train a sparse network as ``sparsenn train`` does.

    The default method, ``dwf``, minimises by SGD with momentum

    .. math:: \min_{\omega} \; L(\omega_1 \odot \dots \odot \omega_D) + \frac{\lambda}{D} \sum_d \|\omega_d\|_2^2

    with every weight factorized, and every bias unless ``penalize_biases`` is false; then |w| ≤ 1.19e-7 (float32's epsilon)
    becomes exactly 0. What the other methods do stands in the attribute ``method`` of :class:`~sparsenn.training.TrainConfig`.

    Args:
        config: the run, from :func:`~sparsenn.training.configure`.
        out: a new or empty folder for configuration, metrics, checkpoints, report, model and pictures; None writes nothing.
        quiet: show no progress. Otherwise there is a bar where standard error is a terminal.
        images: train on these instead of loading ``config.dataset``.

    Returns:
        The net, its dense twin if ``config.twin``, and their figures; ``print(result)`` shows the report.

    Raises:
        DataError: if a data file is missing or damaged.
        MissingExtraError: if ``out`` is given and matplotlib is not installed, or scikit-learn for the digits.
        ConfigError: if the device or a compiler is not there, or for a config or images of another type.
        RunFolderError: if ``out`` holds anything, another process trains in it, or it can't be written.
        TrainingDiverged: if the loss or a weight is no longer finite.
        TrainingInterrupted: after SIGINT or SIGTERM, once the state is written (without ``out``: KeyboardInterrupt).

    Source:
        Deep Weight Factorization (arXiv 2502.02496), Algorithm 2, for ``dwf``.

    Example:
        >>> from sparsenn.training import configure, train
        >>> result = train(configure(dataset="digits", epochs=2, twin=False))
        >>> result.net.total
        50610
    """
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"train: config is of type {type(config).__name__}; it takes a TrainConfig, as configure makes it")
    with session(config):
        if config.compile:
            check_compiler(config.device)  # before there is a folder
        loaded = _load(config, images, pictures=out is not None)
        if config.compression is not None:
            check_compression(config, build_model(config, loaded))  # the same
        home = open_new(out, config) if out is not None else None
        return _run(config, loaded, home, quiet)


def resume(out: str | Path, *, quiet: bool = True, images: ImageData | None = None, **given: Any) -> Result:
    """Go on with the run in ``out`` from its last checkpoint; the end is the same bits as that of a run in one piece.

    A run that is complete already only writes its report anew.

    Args:
        out: the run's folder.
        quiet: as for :func:`train`.
        images: as for :func:`train`; the run must have begun with the same.
        **given: settings that the run was started with; others are refused, but for ``data_root`` and ``checkpoint_every``.

    Raises:
        RunFolderError: if there is no run, another process trains it, or its checkpoint is damaged.
        ConfigError: if ``given`` contradicts the run, or for images of another type.
        Exception: whatever :func:`train` raises.
    """
    home, config = open_again(out, given)
    with session(config):
        return _run(config, _load(config, images, pictures=True), home, quiet)


def _load(config: TrainConfig, images: ImageData | None, pictures: bool) -> ImageData:
    if images is not None and not isinstance(images, ImageData):
        raise ConfigError(f"train: images is of type {type(images).__name__}; it takes an ImageData")
    if pictures:
        require_extra("matplotlib", "drawing the pictures of a run")
    loaded = images if images is not None else datasets.load(config.dataset, config.data_root, download=True)
    return to_device(loaded, config)


def _run(config: TrainConfig, images: ImageData, home: Path | None, quiet: bool) -> Result:
    with nullcontext() if home is None else alone_in(home, go_on(home)):
        with StopSignal() as stop, progress_for(quiet=quiet) as progress:
            result = _train_both(config, images, home, progress, stop)
        return result if home is None else _write(result, images, home)


def _train_both(config: TrainConfig, images: ImageData, home: Path | None, progress: Progress, stop: StopSignal) -> Result:
    net = train_net(config, images, title=config.method, progress=progress, stop=stop, home=home)
    twin = None
    if config.twin:
        twin = train_net(config.dense_twin(), images, title="dense twin", progress=progress, stop=stop, home=home, part=TWIN)
    return Result(outcome(net), outcome(twin) if twin is not None else None, home)


def _write(result: Result, images: ImageData, home: Path) -> Result:
    _write_model(result.net, images, home / MODEL)
    result = dataclasses.replace(result, untraced=_write_artefact(result.net.model, images, home / ARTEFACT))
    if result.twin is not None:
        _write_model(result.twin, images, home / TWIN / MODEL)
    write_json(home / "report.json", result.to_dict())
    write_atomic(home / "report.txt", f"{result}\n".encode())
    write_pictures(result, home)
    return result


def _write_artefact(model: nn.Module, images: ImageData, path: Path) -> str | None:
    """None, or why the artefact has no architecture."""
    about = {"sample": [images.in_channels, images.image_size, images.image_size]}
    try:
        save_artefact(model, path, example_input=images.test_images[:2].cpu(), about=about)
    except ArchitectureError as error:
        save_artefact(model, path, architecture=False, about=about)
        return error.reason
    return None


def _write_model(net: Outcome, images: ImageData, path: Path) -> None:
    about = {
        "model": net.config.model,
        "num_classes": images.num_classes,
        "in_channels": images.in_channels,
        "image_size": images.image_size,
    }
    tensors = {name: tensor.contiguous() for name, tensor in net.model.state_dict().items()}
    write_atomic(path, save(tensors, metadata={"sparsenn": json.dumps(about, sort_keys=True)}))
