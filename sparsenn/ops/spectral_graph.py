"""The spectral layer as its paper has it: matrices of a graph of neurons, written out to be read and tested against.

A linear layer is a directed bipartite graph from its inputs to its outputs. A state of the graph has one number for each
neuron, inputs first. Nothing here is meant to be fast.
"""

from __future__ import annotations

import torch
from torch import Tensor


def eigenvectors(phi: Tensor) -> Tensor:
    r"""Φ: ones on the diagonal, φ from inputs to outputs (Giambagli et al. 2023, Equation A.3).

    The square of the part below the diagonal is 0, so that :math:`\Phi^{-1} = 2I - \Phi`.

    Args:
        phi: (out, in).

    Returns:
        (in + out, in + out), lower triangular.
    """
    outputs, inputs = phi.shape
    matrix = torch.eye(inputs + outputs, dtype=phi.dtype, device=phi.device)
    matrix[inputs:, :inputs] = phi
    return matrix


def adjacency(phi: Tensor, lambda_in: Tensor, lambda_out: Tensor) -> Tensor:
    r"""The graph's matrix :math:`\tilde A = \Phi \Lambda \Phi^{-1}`, Λ = diag(λ_in, λ_out) (Equations A.3 and A.4).

    Below its diagonal, which holds the eigenvalues, is the weight of the spectral layer.

    Args:
        phi: (out, in).
        lambda_in: (in,).
        lambda_out: (out,).

    Returns:
        (in + out, in + out), lower triangular.
    """
    vectors = eigenvectors(phi)
    inverse = 2 * torch.eye(len(vectors), dtype=phi.dtype, device=phi.device) - vectors
    return vectors @ torch.diag(torch.cat([lambda_in, lambda_out])) @ inverse


def transfer(matrix: Tensor, x: Tensor) -> Tensor:
    """What a graph's matrix makes of a state with x on the inputs and nothing on the outputs, read at the outputs (Equation 3).

    Args:
        matrix: (in + out, in + out).
        x: (in,).

    Returns:
        (out,).
    """
    state = torch.cat([x, x.new_zeros(len(matrix) - len(x))])
    return (matrix @ state)[len(x) :]


def convolution_spectrum(weight: Tensor, size: tuple[int, int], stride: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """One filter as eigenvalues: a binary φ on duplicated inputs (Appendix B.1 and Figure B.3).

    Each input is repeated once for each output that reads it, so that every column of the convolution's matrix holds one
    number. Then φ says which output reads it, and λ_in, with λ_out = 0, is the number: a weight of the filter.

    Args:
        weight: (kernel height, kernel width): the filter.
        size: (height, width) of the image.
        stride: By how much the filter moves.

    Returns:
        ``phi``, (outputs, duplicated inputs), of zeros and ones; ``lambda_in``, (duplicated inputs,); and ``duplicates``, which
        input each of them is, in row-major order of the image.
    """
    patches = torch.arange(size[0] * size[1]).view(size).unfold(0, weight.shape[0], stride).unfold(1, weight.shape[1], stride)
    duplicates = patches.reshape(-1, weight.numel())  # of each output, the inputs that it reads
    phi = torch.block_diag(*torch.ones(len(duplicates), 1, weight.numel(), dtype=weight.dtype))
    return phi, weight.flatten().repeat(len(duplicates)), duplicates.flatten()
