"""How much signal each path through two layers carries."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsenn.ops.reference import accumulator


@torch.no_grad()
def path_magnitudes(first: Tensor, second: Tensor, points: int | None = None) -> Tensor:
    r"""The products of weights along all paths from an input through a hidden node to an output, in ascending order.

    .. math:: \Gamma^{i_1}_{i_0 i_2} = w^{(1)}_{i_1 i_0}\, w^{(2)}_{i_2 i_1}

    There are N0 · N1 · N2 of them. Sorted they no longer depend on the order of the hidden nodes, and interpolated to a fixed
    number of points two nets of different width can be compared.

    Args:
        first: The weights of the first layer, (N1, N0).
        second: Those of the second, (N2, N1).
        points: Length P ≥ 2 of the result, by linear interpolation between the sorted products at equal steps. Default: all.

    Returns:
        (N0 · N1 · N2,) or (P,), in the dtype of the product of both (float32 for half types). Without any path and with
        ``points``, zeros: a net without nodes transmits nothing.

    Raises:
        ValueError: for weights that are no matrices or do not fit, and fewer than 2 points.

    Source: Giambagli et al. 2023, Equation 11 and Figure 4. The number of paths given below the equation is a slip.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.metrics.path_magnitudes(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[2.0, -1.0]]))
        tensor([-4., -3., -0.,  2.])
    """
    if first.dim() != 2 or second.dim() != 2 or first.shape[0] != second.shape[1]:
        raise ValueError(
            f"path_magnitudes: first has shape {tuple(first.shape)} and second {tuple(second.shape)}; "
            f"it takes (N1, N0) and (N2, N1)"
        )
    if points is not None and points < 2:
        raise ValueError(f"path_magnitudes: points is {points}; it takes 2 or more")
    products = accumulator(first).T[:, :, None] * accumulator(second).T[None]
    ordered = products.flatten().sort().values
    if points is None:
        return ordered
    if ordered.numel() == 0:
        return ordered.new_zeros(points)
    place = torch.linspace(0, ordered.numel() - 1, points, dtype=torch.float64, device=ordered.device)
    below = place.floor().long()
    above = (below + 1).clamp(max=ordered.numel() - 1)
    return torch.lerp(ordered[below], ordered[above], (place - below).to(ordered.dtype))
