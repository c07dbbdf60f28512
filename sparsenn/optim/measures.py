"""What a step on factors says of the weights and factors that it leaves."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sparsenn.ops import reference


class FactorMeasures(NamedTuple):
    r"""What a step has left of one parameter, under FSDP2 of this rank's part of it; see `FactorizedSGD.measures`.

    Attributes:
        kept: How many weights are above the threshold in magnitude.
        norm: :math:`\|w\|_2`.
        factor_decay: :math:`\frac1D \sum_d \|\omega_d\|_2^2`, to be multiplied by λ, as `sparsenn.penalties.factor_decay`.
        misalignment: What that exceeds its minimum :math:`\|w\|_{2/D}^{2/D}` by, as `sparsenn.metrics.misalignment`.

    Example:
        >>> from sparsenn.optim import FactorMeasures
        >>> FactorMeasures(kept=1, norm=6.0, factor_decay=6.5, misalignment=0.5).kept
        1
    """

    kept: int
    norm: float
    factor_decay: float
    misalignment: float

    @classmethod
    def of_row(cls, row: list[float]) -> FactorMeasures:
        """The numbers as a kernel has them."""
        kept, squares, factor_decay, misalignment = row
        return cls(int(kept), math.sqrt(squares), factor_decay, misalignment)


class Measured(NamedTuple):
    """What the last step has found of one parameter, as it was for a threshold and this version of the weight."""

    threshold: float
    weight: Tensor
    version: int
    row: Tensor

    def holds(self, threshold: float) -> bool:
        """Whether it still is so."""
        return self.threshold == threshold and self.version == self.weight._version


def empty_rows(weights: list[Tensor]) -> Tensor:
    """Room for what a step measures of some weights."""
    return torch.empty(len(weights), reference.MEASURES, dtype=torch.float64, device=weights[0].device)
