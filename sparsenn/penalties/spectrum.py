"""The penalty under which spectral layers lose their nodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsenn.nn.selection import check_module
from sparsenn.nn.spectral import SpectralGate, SpectralLayer
from sparsenn.ops.reference import accumulator
from sparsenn.penalties.base import single_nonnegative

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def spectral(
    model: nn.Module,
    *,
    alpha_lambda: float | Tensor = 0.0,
    alpha_phi: float | Tensor = 0.0,
    alpha_w: float | Tensor = 0.0,
    layers: Sequence[str] | None = None,
) -> Tensor:
    r"""L2 penalties on eigenvalues, eigenvectors and plain weights, each with a strength of its own: a term of the loss.

    .. math::
        \alpha_\lambda \sum_k \|\lambda^{(k)}\|^2 + \alpha_\varphi \sum_k \|\varphi^{(k)}\|^2 + \alpha_w \sum_k \|w^{(k)}\|^2

    The first two sums run over the spectral layers (λ_in and λ_out where they are there; of a `SpectralGate` λ alone), the
    third over plain linear layers and convolutions. There is no factor ½, so that a weight decay that does the same is 2α.
    Biases are free, and a tensor that several layers share counts once. The sums over λ and φ of a node are smallest, for a
    given row w of its weights, at :math:`2 \sqrt{\alpha_\lambda \alpha_\varphi}\,\|w\|_2`: a group lasso, which is why nodes
    die. A strength that is the number 0 makes no term, and no gradients.

    Args:
        model: The model or a single layer. Under ``torch.func.functional_call`` its substituted parameters count.
        alpha_lambda: α_λ ≥ 0; the paper's code has 5e-4.
        alpha_phi: α_φ ≥ 0; the paper's code has 1e-2.
        alpha_w: α_w ≥ 0; the paper's code has 1e-2 on the first layer of the net without spectral layers.
        layers: Names of the layers that count; ``""`` is the model itself. Default: all. A frozen layer that counts adds a
            constant.

    Returns:
        A 0-d tensor (float32 for half types) through which autograd flows.

    Raises:
        ValueError: for a strength that is negative, not finite or no single number, a name that is no such layer, a model
            without any, and strengths none of which counts anything (eigenvalues in a net without spectral layers).

    Source: Giambagli et al. 2023, Equations 7 and 8. The equations penalise both hidden layers, the public code the first
    alone (``layers=["0"]``).

    Example:
        >>> import torch, sparsenn
        >>> net = torch.nn.Sequential(sparsenn.nn.SpectralLinear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 1))
        >>> x, y = torch.randn(5, 10), torch.randn(5, 1)
        >>> loss = (net(x) - y).square().mean()
        >>> loss = loss + sparsenn.penalties.spectral(net, alpha_lambda=5e-4, alpha_phi=1e-2)
        >>> loss.backward()
        >>> sparsenn.penalties.spectral(sparsenn.nn.SpectralLinear(10, 20), alpha_lambda=5e-4)  # 20 eigenvalues of 1
        tensor(0.0100, grad_fn=<SumBackward0>)
    """
    check_module("spectral", model)
    given = {"lambda": alpha_lambda, "phi": alpha_phi, "w": alpha_w}
    strengths = {kind: single_nonnegative("spectral", f"alpha_{kind}", value) for kind, value in given.items()}
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, (SpectralLayer, SpectralGate, *_PLAIN))}
    for name in layers if layers is not None else ():
        if name not in found:
            known = ", ".join(repr(own) for own in found) or "none"
            raise ValueError(f"spectral: layers holds {name!r}; it takes names of linear layers and convolutions: {known}")
    if not found:
        raise ValueError(f"spectral: model is a {type(model).__name__}, which has no linear layer and no convolution")
    chosen = (found[name] for name in (found if layers is None else dict.fromkeys(layers)))
    active = {kind: strength for kind, strength in strengths.items() if isinstance(strength, Tensor) or strength}
    counted = {
        id(tensor): (kind, tensor)
        for layer in chosen
        for name, kind in _kinds(layer)
        if kind in active and (tensor := getattr(layer, name, None)) is not None
    }
    if active and not counted and layers is None:
        names = " and ".join(f"alpha_{kind}" for kind in active)
        raise ValueError(f"spectral: no layer has what {names} would count; spectralize makes spectral layers of plain ones")
    terms = [active[kind] * accumulator(tensor).square().sum() for kind, tensor in counted.values()]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _kinds(layer: nn.Module) -> tuple[tuple[str, str], ...]:
    """The names of the tensors that may count, each with its strength."""
    if not isinstance(layer, SpectralLayer | SpectralGate):
        return (("weight", "w"),)
    return ("lambda_in", "lambda"), ("lambda_out", "lambda"), ("phi", "phi")
