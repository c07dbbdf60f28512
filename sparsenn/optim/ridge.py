"""The norm of a ridge net by proximal steps: exact zeros, and neurons that are gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsenn.nn.ridge import RidgeBlock, check_plain, check_scales, found_blocks
from sparsenn.optim.proximal import Proximal
from sparsenn.penalties import L1, ElasticNet, Penalty, SquaredL1
from sparsenn.penalties.base import single_nonnegative

FORMS = ("path", "squares")


def ridge_proximal(
    net: nn.Module, base: Callable[[list[dict[str, Any]]], Optimizer], lam: float | Tensor, *, form: str = "path"
) -> Proximal:
    r"""Any optimizer and proximal steps for a net of ridge blocks: minimises loss + λ ‖f‖ with exact zeros.

    With ``form="path"`` what is minimised is the loss plus
    :math:`\lambda (2 \sum_k \|v_k\|_1 \|w_k\|_2 + \sum_j \|c_j\|_1)`, in the scaling with :math:`\|w_k\|_2 = 1`: V and C get
    soft thresholds of 2λ and λ. The gradient of each :math:`w_k` loses its part along :math:`w_k` before a step, and after it
    :math:`(v, w, b)` is rescaled to unit :math:`w_k` without a change to the function. A neuron is gone while the whole of its
    :math:`v_k` is 0, and comes back where the loss asks for it by more than 2λ. At the end `RidgeNet.balance_` clears the w
    and b of those that are gone.

    With ``form="squares"`` it is Equation 2 itself,
    :math:`\lambda (\sum_j \|c_j\|_1 + \sum_k \|v_k\|_1^2 + \|w_k\|_2^2)`, by the proximal map of each term.
    Weights of V and C become exactly 0; those of W only shrink.

    Biases, and all parameters outside of ridge blocks, are free.

    Args:
        net: a module with ridge blocks. For "path" their activations must be positively homogeneous.
        base: makes the base optimizer from parameter groups, as ``lambda groups: torch.optim.Adam(groups, lr=1e-3)``.
        lam: λ ≥ 0 for all blocks: a number, or a tensor with one element whose value at this moment counts.
        form: "path" or "squares".

    Returns:
        The optimizer. The λ of the three kinds of weights stand in its groups: 2λ, λ and, for "squares", twice λ at W, whose
        penalty is an `ElasticNet` without L1.

    Raises:
        ValueError: for a net without ridge blocks, another form, a λ that is negative or not finite, and for "path" an
            activation that is not positively homogeneous or a W or V that another layer shares; for a W or V that is composed
            of other parameters (collapse those first).

    Source: Parhi, Wolf and Nowak 2021, Equation 2 and Section 2.

    Example:
        >>> import torch, sparsenn
        >>> net = sparsenn.nn.RidgeNet(4, 1, width=32)
        >>> optimizer = sparsenn.optim.ridge_proximal(net, lambda groups: torch.optim.Adam(groups, lr=1e-2), lam=1e-3)
        >>> net(torch.rand(81, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> bool(torch.allclose(net[0].inner.weight.norm(dim=1), torch.ones(32)))
        True
    """
    if form not in FORMS:
        raise ValueError(f"ridge_proximal: form is {form!r}; it takes {' or '.join(map(repr, FORMS))}")
    blocks = found_blocks("ridge_proximal", net)
    if form == "path":
        check_scales("ridge_proximal", net)
    else:  # nothing is rescaled
        for block in blocks:
            check_plain("ridge_proximal", block)
    strength = float(single_nonnegative("ridge_proximal", "lam", lam))
    inner: Penalty | None = ElasticNet(2 * strength, l1_ratio=0.0) if form == "squares" else None
    outer = SquaredL1(strength, "columns") if form == "squares" else L1(2 * strength)
    groups: list[dict[str, Any]] = [
        {"params": [b.inner.weight for b in blocks], "penalty": inner},
        {"params": [b.outer.weight for b in blocks], "penalty": outer},
        {"params": [b.skip.weight for b in blocks if b.skip is not None], "penalty": L1(strength)},
    ]
    penalised = {id(p) for group in groups for p in group["params"]}
    groups.append({"params": [p for p in net.parameters() if id(p) not in penalised], "penalty": None})
    if form == "path":
        for block in blocks:
            block.normalize_()
    optimizer = base([group for group in groups if group["params"]])
    return OnSpheres(optimizer, blocks) if form == "path" else Proximal(optimizer)


class OnSpheres(Proximal):
    """Proximal steps that hold the rows w of ridge blocks at unit length. The blocks are a part of what is copied and pickled.

    Gradients lose their part along w: there the penalty pulls, and the norm is held.
    """

    _blocks: list[RidgeBlock]

    def __init__(self, base_optimizer: Optimizer, blocks: list[RidgeBlock]) -> None:
        super().__init__(base_optimizer)
        self._blocks = blocks

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        """A proximal step on tangential gradients, which a closure makes in the step, and the way back to unit length."""
        if closure is None:
            self._drop_radial_parts()
            loss = super()._step(None)
        else:
            loss = super()._step(lambda: self._tangential(closure))
        for block in self._blocks:
            block.normalize_()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_blocks": self._blocks}

    @property
    def held(self) -> list[Tensor]:
        """The matrices whose rows have unit length, but for those that are 0."""
        return [block.inner.weight for block in self._blocks]

    def _tangential(self, closure: Callable[[], Any]) -> Any:
        loss = closure()
        self._drop_radial_parts()
        return loss

    @torch.no_grad()
    def _drop_radial_parts(self) -> None:
        for w in self.held:
            if w.grad is not None:
                w.grad.sub_(radial_part(w, w.grad))


def radial_part(w: Tensor, grad: Tensor) -> Tensor:
    """The part of a gradient along the rows of w, which have unit length or are 0."""
    return w * (grad * w).sum(1, keepdim=True)
