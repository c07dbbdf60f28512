"""What may differ between the runs of a stack, and what comes out of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsenn.training.checks import ABOVE_0, BELOW_1, DEPTH, NOT_NEGATIVE, SEED, Check, is_int, one_of, shown
from sparsenn.training.errors import ConfigError
from sparsenn.training.presets import OPTIMIZERS, PENALTIES

if TYPE_CHECKING:
    from torch import Tensor

STATUS = ACTIVE, FINISHED, DIVERGED = "active", "finished", "diverged"


@dataclass(frozen=True, kw_only=True)
class Run:
    r"""One student of a stack: everything that may differ between runs but weights, activations and data.

    The penalty is part of what early stopping looks at, and of what is minimised; ``weight_decay`` of the latter alone:

    ========================= ===========================================================================================
    ``sgd``, ``adam``         ``penalty``: nothing, :math:`\lambda \sum |w|` (subgradient, 0 at 0) or :math:`\lambda \sum w^2`
    ``prox``                  :math:`\lambda \sum |w|`, by the steps of ``sparsenn.optim.ProxSGD``
    ``factorized``            :math:`(\lambda / D) \sum_d \sum \omega_d^2`, by those of ``sparsenn.optim.FactorizedSGD``
    ========================= ===========================================================================================

    Attributes:
        seed: of the order of the samples, and of the factors of ``factorized``; 0 ≤ seed < 2^63.
        lr: learning rate, > 0.
        optimizer: ``sgd``, ``prox``, ``factorized`` or ``adam``.
        momentum: of all optimizers but ``adam``, which has none; 0 ≤ momentum < 1.
        lam: λ ≥ 0. Of ``sgd`` and ``adam`` it needs a penalty.
        penalty: ``none``, ``l1`` or ``l2``, in the loss of ``sgd`` and ``adam``.
        depth: number of factors, for ``factorized``, 1 to 64.
        betas: the two decay rates of ``adam``.
        eps: what ``adam`` adds to the root.
        weight_decay: κ ≥ 0, which adds κ w to the gradient, as in ``torch.optim``; no part of the loss.
        clipping: weights with \|w\| < clipping become 0 after each step; not for ``factorized``, whose zeros could never move.
        data: which of the stack's data sets the run learns.

    Raises:
        ConfigError: for a value out of range, and for settings that would have no effect.

    Example:
        >>> from sparsenn.training.stacked import Run
        >>> Run(seed=3, lr=0.01, lam=1e-5, penalty="l1").momentum
        0.9
    """

    seed: int = 0
    lr: float = 0.005
    optimizer: str = "sgd"
    momentum: float = 0.9
    lam: float = 0.0
    penalty: str = "none"
    depth: int = 2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clipping: float = 0.0
    data: int = 0

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if not check.fits(value):
                raise ConfigError(f"Run: {name} is {shown(value)}; it takes {check.takes}")
        if self.penalty != "none" and self.optimizer in ("prox", "factorized"):
            raise ConfigError(
                f"Run: penalty is {self.penalty!r}; optimizer {self.optimizer} has a penalty of its own, of strength lam, and "
                "takes penalty 'none'"
            )
        if self.lam and self.penalty == "none" and self.optimizer in ("sgd", "adam"):
            raise ConfigError(f"Run: lam is {self.lam!r} and has no effect; optimizer {self.optimizer} takes penalty l1 or l2")
        if self.clipping and self.optimizer == "factorized":
            raise ConfigError(f"Run: clipping is {self.clipping!r}; optimizer factorized takes 0")


@dataclass(frozen=True)
class Outcome:
    """Where a run stands.

    Attributes:
        run: its settings.
        status: ``active``, ``finished`` or ``diverged`` (a loss or a weight is no longer a finite number).
        epochs: epochs that it has behind it.
        data_loss: mean over the batches of its last epoch of the loss without penalty; NaN before the first epoch is over.
        loss: the same with the penalty.
        best_loss: the smallest of its epochs' mean losses with penalty; infinity before the first epoch is over.
        weights: its parameters by their names in the module, as of its last epoch.
    """

    run: Run
    status: str
    epochs: int
    data_loss: float
    loss: float
    best_loss: float
    weights: dict[str, Tensor]


_CHECKS: dict[str, Check] = {
    "seed": SEED,
    "lr": ABOVE_0,
    "optimizer": one_of(OPTIMIZERS),
    "momentum": BELOW_1,
    "lam": NOT_NEGATIVE,
    "penalty": one_of(PENALTIES),
    "depth": DEPTH,
    "betas": Check(
        lambda value: isinstance(value, tuple | list) and len(value) == 2 and all(map(BELOW_1.fits, value)),
        "two numbers from 0 up to, but not, 1",
    ),
    "eps": ABOVE_0,
    "weight_decay": NOT_NEGATIVE,
    "clipping": NOT_NEGATIVE,
    "data": Check(lambda value: is_int(value) and value >= 0, "the index of a data set"),
}
