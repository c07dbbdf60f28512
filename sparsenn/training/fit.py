"""One net on its way through the epochs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sparsenn import models, prune
from sparsenn.data import ImageData, augment
from sparsenn.optim.factorized import Factorized
from sparsenn.optim.strength import Strength
from sparsenn.training.batches import batch_count, batches, epoch_order
from sparsenn.training.config import TrainConfig
from sparsenn.training.diagnostics import figures, switches_of
from sparsenn.training.evaluate import evaluate, loss_of
from sparsenn.training.logging import Record
from sparsenn.training.methods import (
    CONTROL_UPDATES,
    check_compression,
    make_control,
    make_optimizer,
    put_masks,
    zero_threshold,
)
from sparsenn.training.presets import PRUNERS
from sparsenn.training.schedules import SCHEDULES, make_scheduler


class Fit:
    """A net, its optimizer and schedule, and how far they are: ``epoch`` full epochs and ``batch`` batches of the next.

    The net and its factors start from ``config.seed`` alone, and so does the order of the images; together with
    :meth:`state_dict` that makes a continued run the same bits as one in a single piece.

    A pruning method puts its masks on at the beginning of epoch ``config.prune_epoch``; from there on optimizer and schedule
    begin anew.

    Args:
        config: the run.
        data: images on ``config.device`` in ``config.dtype``.

    Raises:
        ConfigError: for a compression that the net does not allow.
    """

    def __init__(self, config: TrainConfig, data: ImageData) -> None:
        self.config = config
        self.data = data
        self.model = build_model(config, data)
        self._net = _compiled(self.model) if config.compile else self.model
        if config.method in PRUNERS:
            check_compression(config, self.model)
        self.batches = batch_count(len(data.train_labels), config.batch_size)
        self.epoch = 0
        self.batch = 0
        self.control_every = max(config.epochs * self.batches // CONTROL_UPDATES, 1)
        self._make_optimizer()
        self.history: list[Record] = []
        self.seconds = 0.0
        self._clear_totals()

    def _make_optimizer(self) -> None:
        """Optimizer, schedule and control of the part of the run that the net is in, before or after its masks."""
        config = self.config
        epochs = config.prune_epoch if self.epoch < config.prune_epoch else config.epochs - config.prune_epoch
        if config.retrain_lr is not None and self.epoch >= config.prune_epoch:
            config = replace(config, lr=config.retrain_lr)
        self.optimizer = make_optimizer(config, self.model)
        self.scheduler = self._scheduler(epochs)
        self._strength = Strength("Fit", self.optimizer) if config.lam else None
        self.control = make_control(config, self.optimizer, config.epochs * self.batches // self.control_every)

    def _scheduler(self, epochs: int) -> LambdaLR:
        config = self.config
        return make_scheduler(self.optimizer, config.schedule, epochs * self.batches, config.warmup * self.batches)

    def _prune_if_due(self) -> None:
        config = self.config
        if config.method in PRUNERS and (self.epoch, self.batch) == (config.prune_epoch, 0) and not prune.masks(self.model):
            put_masks(config, self.model, self.data)
            self._make_optimizer()

    def _clear_totals(self) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=self.data.train_images.device)
        self._right = torch.zeros((), dtype=torch.int64, device=self.data.train_images.device)

    @property
    def done(self) -> bool:
        """Whether all epochs are behind."""
        return self.epoch >= self.config.epochs

    def begin_with(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Begin with a trained net: factors start from its weights, masks go on at once.

        A pruning method stands before epoch ``config.prune_epoch`` then, as if the epochs before it were trained here.
        """
        self.model.load_state_dict(weights)
        self.epoch, self.batch = self.config.prune_epoch, 0
        self._make_optimizer()

    def begin_again(self, lam: float) -> None:
        """Train the net on for as many epochs at another λ: the schedule begins anew, the optimizer's state goes on.

        Raises:
            ValueError: if the run began with λ = 0, where nothing is known to be penalised.
        """
        if self._strength is None:
            raise ValueError("begin_again: the run began with lam 0; it takes one above 0")
        self.config = replace(self.config, lam=lam)
        self.epoch, self.batch = 0, 0
        self.scheduler = self._scheduler(self.config.epochs)

    def train_epoch(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end of the epoch, or to the first batch after which ``stop()``; returns whether the end was reached."""
        data, size = self.data, self.config.batch_size
        order = epoch_order(len(data.train_labels), self.config.seed, self.epoch)
        began = time.perf_counter()
        self.model.train()
        self._prune_if_due()
        for images, labels in batches(data.train_images, data.train_labels, order, size, first=self.batch):
            self._step(images, labels)
            if stop():
                break
        self.seconds += time.perf_counter() - began
        return self.batch == self.batches

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        if self.config.augment:
            images = augment(images)
        if self.config.input_noise:
            images = images + self.config.input_noise * torch.randn_like(images)
        logits = self._net(images)
        loss = loss_of(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if self._strength is not None and self.control is None:
            self._strength.value = self.config.lam * self._lam_factor
        if self.batch + 1 == self.batches and self._is_evaluated(self.epoch + 1) and isinstance(self.optimizer, Factorized):
            self.optimizer.measure_next(zero_threshold(self.config))
        self.optimizer.step()
        self.scheduler.step()
        self.batch += 1
        if self.control is not None and self._steps_behind % self.control_every == 0:
            self.control.step()
        self._loss += loss.detach() * len(labels)
        self._right += (logits.detach().argmax(dim=1) == labels).sum()

    @property
    def _steps_behind(self) -> int:
        return self.epoch * self.batches + self.batch

    def _is_evaluated(self, epoch: int) -> bool:
        return epoch % self.config.eval_every == 0 or epoch >= self.config.epochs

    @property
    def _lam_factor(self) -> float:
        return SCHEDULES[self.config.lam_schedule](self._steps_behind, self.config.epochs * self.batches)

    def is_finite(self) -> bool:
        """Whether the losses since the epoch began and all weights are finite numbers."""
        parameters = [p.detach() for p in self.model.parameters()]
        return all(bool(torch.isfinite(t).all()) for t in (self._loss, *parameters))

    def end_epoch(self) -> Record | None:
        """Count the epoch; evaluate and remember it where that is due.

        Returns:
            The figures of the evaluation, those of ``diagnostics.figures`` among them, and where ``balanced`` is auto the names
            of what has become one root in training; or None.
        """
        seen = len(self.data.train_labels)
        train_loss, train_accuracy = float(self._loss) / seen, int(self._right) / seen
        self.epoch, self.batch = self.epoch + 1, 0
        self._clear_totals()
        if not self._is_evaluated(self.epoch):
            return None
        test_loss, test_accuracy = evaluate(self.model, self.data.test_images, self.data.test_labels)
        record: Record = {
            "epoch": self.epoch,
            "lr": float(self.scheduler.get_last_lr()[0]),
            "lam": float(self.optimizer.param_groups[0]["lam"]),
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            **figures(self.model, self.optimizer, zero_threshold(self.config)),
        }
        if self.config.balanced == "auto":
            record["switched"] = list(switches_of(self.model, self.optimizer))
        self.history.append(record)
        return record

    def state_dict(self) -> dict[str, Any]:
        """All that a new :class:`Fit` of the same configuration needs to go on with the same bits.

        Of a state from between the last batch and :meth:`end_epoch` the epoch's figures are the same to rounding.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "control": self.control.state_dict() if self.control is not None else None,
            "epoch": self.epoch,
            "batch": self.batch,
            "loss": self._loss,
            "right": self._right,
            "history": self.history,
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.config.device) if self.config.device.startswith("cuda") else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to the moment of :meth:`state_dict`."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        if masks := prune.stored_masks(state["model"]):
            prune.apply_masks(self.model, masks)
            self._make_optimizer()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.control is not None:
            self.control.load_state_dict(state["control"])
        self._loss, self._right = state["loss"], state["right"]
        self.history, self.seconds = state["history"], state["seconds"]
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.config.device)


def _compiled(net: nn.Module) -> Callable[..., torch.Tensor]:
    """The net with kernels that depend on nothing but itself and the shape of a batch, so that a run repeats its bits."""
    torch.compiler.reset()  # what a process has compiled before counts towards a limit, beyond which nothing is compiled
    compiled: Callable[..., torch.Tensor] = torch.compile(net, dynamic=False)
    return compiled


def build_model(config: TrainConfig, data: ImageData) -> nn.Module:
    """The net of ``config`` for the images of ``data``, drawn from ``config.seed`` on the CPU, whatever the device."""
    torch.manual_seed(config.seed)
    net = models.build(config.model, num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size)
    return net.to(data.train_images.device, data.train_images.dtype)
