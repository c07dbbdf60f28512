"""What tells the methods apart once PyTorch is there: the optimizer, the masks, and which final weights count as zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from sparsenn import prune
from sparsenn.data import ImageData
from sparsenn.optim import FactorizedAdam, FactorizedSGD, ProxSGD, TargetSparsity
from sparsenn.optim.groups import named_parameters, param_groups, selected
from sparsenn.training.batches import epoch_order
from sparsenn.training.config import TrainConfig
from sparsenn.training.errors import ConfigError
from sparsenn.training.evaluate import loss_of
from sparsenn.training.presets import FACTORIZED

_EPSILON = torch.finfo(torch.float32).eps
_HOVERING = 1e-4
_NEXT_TO_ZERO = 1e-12  # what leaves an exact zero when lr has fallen to nothing is above it

_BALANCED: dict[str, bool | str] = {"never": False, "auto": "auto", "always": True}

CONTROL_UPDATES = 300  # of λ in a run, where it is sought


def zero_threshold(config: TrainConfig) -> float:
    """A weight of at most this magnitude becomes exactly 0 at the end; 0.0 where a method leaves nothing to do.

    Factors come near zero by float32's epsilon (Kolb et al. 2025, Appendix G); the subgradient hovers, and 1e-4 is what its
    authors count as zero. Proximal steps and masks make exact zeros.
    """
    return {**dict.fromkeys(FACTORIZED, _EPSILON), "l1-subgradient": _HOVERING}.get(config.method, 0.0)


def make_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """The optimizer of ``config.method`` over all weights and biases; the first of its groups is penalised, if any is."""
    common: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum}
    if config.method in FACTORIZED:
        params = _by_start(config, model)
        factors: dict[str, Any] = {"depth": config.depth, "lam": config.lam, "factor_init": config.factor_init}
        factors["generator"] = torch.Generator().manual_seed(config.seed)
        if config.method == "dwf":
            return FactorizedSGD(params, **factors, **common, balanced=_BALANCED[config.balanced])
        return FactorizedAdam(params, lr=config.lr, betas=(config.momentum, 0.999), **factors)
    groups = param_groups(model, lam=config.lam, exclude=_unpenalized(config))
    if config.method == "prox":
        return ProxSGD(groups, **common)
    optimizer = SGD(groups, **common)
    if config.method == "l1-subgradient":
        optimizer.register_step_pre_hook(_add_l1_subgradient)
    return optimizer


def _unpenalized(config: TrainConfig) -> tuple[str, ...]:
    return () if config.penalize_biases else ("bias", "norm")


def _by_start(config: TrainConfig, model: nn.Module) -> list[dict[str, Any]]:
    """All parameters, in groups by how their factors start.

    Normalization is apart where factors are drawn: its scales are 1, and a draw would put them next to 0. What is not
    penalised has one factor, itself.
    """
    parameters = named_parameters(model)
    free = selected(parameters, _unpenalized(config), "penalize_biases")
    drawn = config.factor_init not in ("preserve", "root")
    kept = selected(parameters, ("norm",), "factor_init") - free if drawn else set()
    groups: list[dict[str, Any]] = [
        {"params": [p.tensor for i, p in enumerate(parameters) if i not in kept | free]},
        {"params": [p.tensor for i, p in enumerate(parameters) if i in kept], "factor_init": "preserve"},
        {"params": [p.tensor for i, p in enumerate(parameters) if i in free], "factor_init": "root", "depth": 1, "lam": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_control(config: TrainConfig, optimizer: Optimizer, updates: int) -> TargetSparsity | None:
    """What finds λ in a run of so many updates, and holds the share in the last 40 % of them; None where λ is given."""
    if config.target_sparsity is None:
        return None
    threshold = _hovering if config.method == "l1-subgradient" else zero_threshold(config) or _NEXT_TO_ZERO
    return TargetSparsity(optimizer, config.target_sparsity, updates=max(3 * updates // 5, 1), threshold=threshold)


def _hovering(group: Mapping[str, Any]) -> float:
    """How far the subgradient throws weights that are zero but for it: three of the longest steps."""
    return max(_HOVERING, 3 * group["lr"] * group["lam"] / (1 - group["momentum"]))


@torch.no_grad()
def _add_l1_subgradient(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Adds λ sign(w) to every gradient before a step, as λ‖w‖₁ in the loss would, and after any clipping of the loss's own."""
    for group in optimizer.param_groups:
        if weights := [p for p in group["params"] if p.grad is not None]:
            torch._foreach_add_([p.grad for p in weights], torch._foreach_sign(weights), alpha=group["lam"])


def check_compression(config: TrainConfig, model: nn.Module) -> None:
    """Refuse a compression that a pruning method can't reach on this net, before anything is trained.

    Raises:
        ConfigError: with the largest one that is possible.
    """
    limit = prune.compression_limit(model, exclude=_how_many(config)["exclude"])
    if config.compression is not None and config.compression > limit:
        raise ConfigError(
            f"compression is {config.compression:g}; {config.model} takes at most {limit:.6g} as long as biases and "
            "normalization stay; prune-biases ranks them too"
        )


def put_masks(config: TrainConfig, model: nn.Module, data: ImageData) -> prune.Pruning:
    """Prune by ``config.method``; SNIP sees the first batch of the epoch that begins."""
    if config.method == "snip":
        chosen = epoch_order(len(data.train_labels), config.seed, config.prune_epoch)[: config.batch_size]
        chosen = chosen.to(data.train_images.device)
        batch = (data.train_images[chosen], data.train_labels[chosen])
        return prune.snip(model, batch=batch, loss_fn=loss_of, **_how_many(config))
    if config.method == "synflow":
        return prune.synflow(model, input_shape=data.train_images.shape[1:], **_how_many(config))
    if config.method == "random":
        return prune.random(model, generator=torch.Generator().manual_seed(config.seed), **_how_many(config))
    return prune.magnitude(model, **_how_many(config))


def _how_many(config: TrainConfig) -> dict[str, Any]:
    return {"compression": config.compression, "exclude": () if config.prune_biases else ("bias", "norm")}
