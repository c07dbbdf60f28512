"""The penalty's strength as one number for a whole optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Strength:
    """λ of the penalised groups of an optimizer: the largest entry of them all, by which the others are set in proportion.

    Groups with ``lam`` 0 are left alone. Numbers are replaced; tensors are written in place, so that a compiled step sees it.
    """

    def __init__(self, where: str, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        groups = optimizer.param_groups
        if not all("lam" in group for group in groups):
            raise ValueError(
                f"{where}: a group of the optimizer has no 'lam'; it takes ProxSGD, FactorizedSGD, FactorizedAdam, Proximal, or"
                " another one that reads its penalty's strength there"
            )
        whole = max(_largest(group["lam"]) for group in groups)
        if not whole > 0:
            raise ValueError(
                f"{where}: every group of the optimizer has lam 0; give the penalised ones a starting value above 0"
            )
        self._shares = {i: _share(group["lam"], whole) for i, group in enumerate(groups) if _largest(group["lam"]) > 0}

    def groups(self) -> Iterator[dict[str, Any]]:
        """The penalised groups, as the optimizer has them now."""
        return (self._optimizer.param_groups[i] for i in self._shares)

    @property
    def value(self) -> float:
        """The largest λ that is in use."""
        return max(_largest(group["lam"]) for group in self.groups())

    @value.setter
    def value(self, lam: float) -> None:
        for i, share in self._shares.items():
            group = self._optimizer.param_groups[i]
            if isinstance(group["lam"], Tensor):
                with torch.no_grad():
                    group["lam"].copy_(torch.as_tensor(share * lam))
            else:
                group["lam"] = float(share * lam)


def _largest(lam: float | Tensor) -> float:
    return float(lam.detach().max()) if isinstance(lam, Tensor) else float(lam)


def _share(lam: float | Tensor, whole: float) -> float | Tensor:
    return (lam.detach() if isinstance(lam, Tensor) else lam) / whole
