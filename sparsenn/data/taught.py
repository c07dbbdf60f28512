"""Random inputs with a teacher's answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsenn.init.stream import derived_seed

_STREAM = 0x7461756768740000  # its own, so that a student drawn with the same seed is not made of the same numbers


@torch.no_grad()
def taught(
    teacher: Callable[[Tensor], Tensor], size: int, *, inputs: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    r"""Standard normal inputs and what the teacher makes of them.

    .. math:: x_n \sim N(0, I), \qquad y_n = \mathrm{teacher}(x_n)

    Args:
        teacher: maps (size, inputs) to (size, ...).
        size: N, the number of samples, 1 or more.
        inputs: length of each x, 1 or more.
        seed: any integer; the same x for the same seed, number of samples and number of inputs.
        dtype: of x and of what the teacher is given. The values are drawn in float64 and rounded.

    Returns:
        x of shape (size, inputs), and y, on the CPU.

    Raises:
        ValueError: for a size below 1.

    Source:
        Schulz and Poggio, L1-regularization: The path to sparsity, Section 3.1.

    Example:
        >>> import torch
        >>> from sparsenn.data import taught
        >>> x, y = taught(lambda x: x[:, :1] > 0, 1000, seed=3)
        >>> x.shape, round(float(y.double().mean()), 1)
        (torch.Size([1000, 12]), 0.5)
    """
    for name, count in (("size", size), ("inputs", inputs)):
        if count < 1:
            raise ValueError(f"taught: {name} is {count}; it takes 1 or more")
    generator = torch.Generator().manual_seed(derived_seed(seed, _STREAM))
    x = torch.randn(size, inputs, generator=generator, dtype=torch.float64).to(dtype)
    return x, teacher(x)
