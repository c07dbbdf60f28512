"""From the first epoch to the last, with checkpoints on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsenn.data import ImageData
from sparsenn.training.checkpoint import NAME, load_checkpoint, save_checkpoint
from sparsenn.training.config import TrainConfig
from sparsenn.training.errors import RunFolderError, TrainingDiverged, TrainingInterrupted
from sparsenn.training.fit import Fit
from sparsenn.training.folder import go_on
from sparsenn.training.logging import MetricsLog, Progress
from sparsenn.training.session import StopSignal, check_compiler

METRICS = "metrics.jsonl"


def train_net(
    config: TrainConfig,
    data: ImageData,
    *,
    title: str,
    progress: Progress,
    stop: StopSignal,
    home: Path | None = None,
    part: str = "",
    start: Mapping[str, Tensor] | None = None,
    checkpoint_seconds: float = math.inf,
) -> Fit:
    """Train one net, from the checkpoint in its folder if there is one, else from the start.

    Args:
        config: the run.
        data: images on the run's device, in its dtype.
        title: what the progress bar calls it.
        progress: who watches.
        stop: asked after every step.
        home: the run's folder; None keeps the run in memory.
        part: the net's place in it, for metrics and checkpoints.
        start: the state of a trained net to begin with, see ``Fit.begin_with``; None for one as ``config.seed`` draws it.
        checkpoint_seconds: write a checkpoint whenever so much time has gone by since the last, within an epoch too.

    Raises:
        ConfigError: if nothing can be compiled and the run wants it.
        TrainingDiverged: if a loss or a weight is no longer finite; the checkpoint before it stays.
        TrainingInterrupted: after a signal, once the state is written.
        KeyboardInterrupt: after a signal, for a run in memory.
    """
    fit = Fit(config, data)
    if start is not None:
        fit.begin_with(start)
    folder = home / part if home is not None else None
    if folder is not None:
        folder.mkdir(exist_ok=True)
        _restore(fit, folder / NAME)
    if config.compile and not fit.done:
        check_compiler(config.device)
    log = MetricsLog(folder / METRICS, fit.history) if folder is not None else None
    progress.begin(title, config.epochs, fit.epoch)
    saved = time.monotonic()

    def late() -> bool:
        return folder is not None and time.monotonic() - saved >= checkpoint_seconds

    while not fit.done:
        try:
            complete = fit.train_epoch(lambda: stop.wanted() or late())
        except Exception:
            if config.compile and stop.wanted():  # the signal ended the compiler too: the checkpoint before this step counts
                _interrupt(stop, home)
            raise
        _require_finite(fit.is_finite(), fit, fit.epoch + 1, folder)
        if complete:
            record = fit.end_epoch()
            _require_finite(record is None or math.isfinite(record["test_loss"]), fit, fit.epoch, folder)
            if record is not None and log is not None:
                log.append(record)
            progress.advance(fit.epoch, record)
        if folder is not None and (stop.wanted() or fit.done or _due(fit) or late()):
            save_checkpoint(folder / NAME, fit.state_dict())
            saved = time.monotonic()
        if stop.wanted() and not fit.done:
            _interrupt(stop, home)
    return fit


def _due(fit: Fit) -> bool:
    return fit.batch == 0 and fit.epoch % fit.config.checkpoint_every == 0


def _restore(fit: Fit, path: Path) -> None:
    if not path.exists():
        return
    state = load_checkpoint(path, fit.config.device)
    try:
        fit.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path}: the checkpoint does not fit this run ({error}); delete it to train from the start"
        ) from error


def _require_finite(finite: bool, fit: Fit, epoch: int, folder: Path | None) -> None:
    if finite:
        return
    checkpoint = folder / NAME if folder is not None and (folder / NAME).exists() else None
    if checkpoint is None:
        kept = "there is no checkpoint from before"
    else:
        kept = f"the last good checkpoint, after epoch {load_checkpoint(checkpoint)['epoch']}, is {checkpoint}"
    config = fit.config
    hint = f"lower --lr (it is {config.lr:g})"
    if fit.control is not None:
        hint += f" or take more --epochs (it is {config.epochs}; the search for the target was at λ = {fit.control.lam:.3g})"
    elif config.lam:
        hint += f" or --lam (it is {config.lam:g})"
    raise TrainingDiverged(
        f"the loss is not a finite number in epoch {epoch}; {kept}; {hint} and start anew with another --out", epoch, checkpoint
    )


def _interrupt(stop: StopSignal, home: Path | None) -> None:
    if home is None or stop.number is None:
        raise KeyboardInterrupt
    raise TrainingInterrupted(f"stopped after a whole step; go on with: {go_on(home)}", stop.number, home)


def to_device(data: ImageData, config: TrainConfig) -> ImageData:
    """The images where the run needs them, in its dtype."""
    return data.to(config.device, getattr(torch, config.dtype))
