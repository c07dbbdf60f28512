"""The norm of a ridge net's function as a penalty on its weights: Equation 2, its path form, and weight decay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsenn.nn.ridge import RidgeBlock, found_blocks
from sparsenn.nn.selection import check_module
from sparsenn.ops import ridge_norm
from sparsenn.ops.reference import accumulator


def rbv2(module: nn.Module) -> Tensor:
    r"""The penalty of deep ridge nets that is the norm of the function at its minimum, to be multiplied by λ.

    .. math:: \sum_{\text{blocks}} \Big( \sum_j \|c_j\|_1 + \sum_k \|v_k\|_1^2 + \|w_k\|_2^2 \Big)

    with the rows :math:`w_k` of W, the columns :math:`v_k` of V and the columns :math:`c_j` of C; biases are free. Autograd
    gives the subgradient that is 0 at a zero weight.

    Args:
        module: a :class:`~sparsenn.nn.RidgeBlock`, or a module with such blocks, each of which counts once.

    Returns:
        A 0-d tensor; float32 for half types.

    Raises:
        ValueError: for a module without such a block.

    Source: Parhi, Wolf and Nowak 2021, Equation 2.

    Example:
        >>> import torch, sparsenn
        >>> block = sparsenn.nn.RidgeBlock(2, 1, 2)
        >>> with torch.no_grad():
        ...     _ = block.inner.weight.copy_(torch.tensor([[3.0, 4.0]]))
        ...     _ = block.outer.weight.copy_(torch.tensor([[1.0], [-2.0]]))
        ...     _ = block.skip.weight.fill_(0.5)
        >>> sparsenn.penalties.rbv2(block).item()  # (1 + 2)^2 + 5^2 + 4 * 0.5
        36.0
    """
    blocks = found_blocks("rbv2", module)
    skips = [b.skip.weight for b in blocks if b.skip is not None]
    return ridge_norm([b.outer.weight for b in blocks], [b.inner.weight for b in blocks], skips)


def rbv2_path(module: nn.Module) -> Tensor:
    r"""The least value of `rbv2` over all rescalings of the neurons, which leave the function as it is.

    .. math:: \sum_{\text{blocks}} \Big( \sum_j \|c_j\|_1 + 2 \sum_k \|v_k\|_1 \|w_k\|_2 \Big)

    For a positively homogeneous activation :math:`(v, w, b) \to (a v, w / a, b / a)` changes nothing, and the least of
    :math:`a^2 \|v\|_1^2 + \|w\|_2^2 / a^2` is :math:`2 \|v\|_1 \|w\|_2`. `RidgeNet.balance_` goes where the two agree.

    Args:
        module: as for `rbv2`.

    Returns:
        A 0-d tensor; float32 for half types. The gradient by a zero row of W is 0.

    Raises:
        ValueError: for a module without a ridge block, or a block whose activation is not positively homogeneous.

    Source: Parhi, Wolf and Nowak 2021, Section 2 (the seminorm of a shallow net, for one output Σ|v_k| ‖w_k‖₂).

    Example:
        >>> import torch, sparsenn
        >>> net = sparsenn.nn.RidgeNet(4, 1, width=8)
        >>> bool(sparsenn.penalties.rbv2_path(net) <= sparsenn.penalties.rbv2(net))
        True
    """
    blocks = found_blocks("rbv2_path", module)
    for block in blocks:
        if not block.homogeneous:
            kind = type(block.activation).__name__
            raise ValueError(f"rbv2_path: {kind} is not positively homogeneous; it takes ReLU, LeakyReLU, PReLU, Identity")
    return torch.stack([_path(b) for b in blocks]).sum()


def weight_decay(module: nn.Module) -> Tensor:
    r"""The squared Euclidean norm of all parameters, biases too: :math:`\sum_p \|p\|_2^2`, to be multiplied by λ.

    Args:
        module: any module; parameters that it shares count once.

    Returns:
        A 0-d tensor; float32 for half types, and 0 for a module without parameters.

    Source: Parhi, Wolf and Nowak 2021, Section 3.

    Example:
        >>> import torch, sparsenn
        >>> sparsenn.penalties.weight_decay(torch.nn.PReLU(2)).item()
        0.125
    """
    check_module("weight_decay", module)
    return sum((accumulator(p).square().sum() for p in module.parameters()), torch.zeros(()))


def _path(block: RidgeBlock) -> Tensor:
    v, w = accumulator(block.outer.weight), accumulator(block.inner.weight)
    neurons = 2 * (v.abs().sum(0) * torch.linalg.vector_norm(w, dim=1)).sum()
    return neurons if block.skip is None else neurons + accumulator(block.skip.weight).abs().sum()
