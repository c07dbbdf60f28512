"""Adam on the factors of every weight, in one pass: the model stays dense, the optimizer owns the factors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparsenn._numbers import plain
from sparsenn.optim import common
from sparsenn.optim.factorized import Factorized
from sparsenn.optim.pieces import Batch

_ops = torch.ops.sparsenn
_LEAST_EPS = torch.finfo(torch.float32).tiny


class FactorizedAdam(Factorized):
    r"""Adam on a depth-D factorization of every weight; the induced penalty is :math:`\lambda \|w\|_{2/D}^{2/D}`.

    The model keeps its dense parameters :math:`w = \omega_1 \odot \dots \odot \omega_D`; the factors, with the two moments of
    each, are this optimizer's state. With :math:`g = \partial \ell / \partial w`, plus :math:`\mu w` for a ``weight_decay`` of
    :math:`\mu`, step t is

    .. math::
        g_d &= g \odot \bigodot_{k \ne d} \omega_k + \tfrac{2 \lambda}{D}\, \omega_d \\
        m_d &\leftarrow \beta_1 m_d + (1 - \beta_1)\, g_d, \qquad v_d \leftarrow \beta_2 v_d + (1 - \beta_2)\, g_d^2 \\
        \omega_d &\leftarrow \omega_d - \text{lr} \cdot \frac{m_d / (1 - \beta_1^t)}{\sqrt{v_d / (1 - \beta_2^t)} + \epsilon},
        \qquad w \leftarrow \omega_1 \odot \dots \odot \omega_D

    which is ``torch.optim.Adam(betas, eps, weight_decay=2 * lam / depth)`` on the factors of the factorized network, without
    the factors' gradients ever being stored. At depth 1 and ``lam=0`` it is ``torch.optim.Adam``.

    **Where the penalty enters.** By default it is a part of the gradient, and the preconditioner scales loss and penalty alike.
    What a step leaves where it is has :math:`g_d = 0` then, whatever :math:`v_d`: a stationary point of the loss plus
    :math:`(\lambda / D) \sum_d \|\omega_d\|^2`, hence by Theorem 1 of Kolb et al. of the loss plus :math:`\lambda
    \|w\|_{2/D}^{2/D}`. With ``decoupled=True`` the factors shrink beside the gradient instead, as AdamW's weights do:

    .. math:: \omega_d \leftarrow (1 - \text{lr} \cdot \tfrac{2\lambda}{D})\, \omega_d \quad\text{and}\quad
        g_d = g \odot \bigodot_{k \ne d} \omega_k

    This is ``torch.optim.AdamW`` on the factors. It has other fixed points, where :math:`m_d / \sqrt{v_d} = -2 \lambda \omega_d
    / D`. There the product of the other factors cancels, as it scales :math:`m_d` and :math:`\sqrt{v_d}` alike: with gradient
    noise of size :math:`\sigma` the pull on w is :math:`2 \lambda \sigma |w|^{1/D} / D`, which vanishes at 0, and without noise
    it only bounds :math:`|\omega_d|` by :math:`D / 2 \lambda`. So it decays weights and **makes none sparse**; it is offered to
    be compared with.

    Adam moves a factor by at most about lr a step, so a weight needs about :math:`\min_d |\omega_d| / \text{lr}` steps to die,
    which is :math:`|w|^{1/D} / \text{lr}` from balance, whatever λ: with a small learning rate in a short run nothing does.
    Weights come near zero, not to it: ``sparsenn.collapse(model)`` after training makes them exact zeros.

    Constructing the optimizer changes the weights: "preserve" lifts those below 1e-4 in magnitude to it (a weight whose
    factors all are zero could never move), and a drawing ``factor_init`` replaces them all.

    Args:
        params: Parameters or groups of them; float64, float32, bfloat16 or float16. Half types get float32 factors. Under
            FSDP2, give the sharded parameters.
        lr: Step size; a float or a 0-d tensor, which a compiled step reads without being compiled again.
        depth: Number of factors D ≥ 1, one value for a group.
        lam: λ ≥ 0 in :math:`(\lambda / D) \sum_d \|\omega_d\|^2`; a float or a 0-d tensor. At depth 1 this is a weight decay
            of 2λ.
        betas: Decay rates β₁ and β₂ of the two moments, in [0, 1).
        eps: ε, at least 1.2e-38 (float32's smallest normal number): dead weights have no gradient, and 0/0 is no number.
        amsgrad: Divide by the largest :math:`v_d` so far, as in torch.
        decoupled: λ shrinks the factors beside the gradient, as in AdamW; see above.
        weight_decay: Plain L2 on the collapsed weight: w times this is added to its gradient before the chain rule.
        factor_init: "preserve" (default) and "root" keep the weights; "dwf", "variance_matching" and "standard" draw factors
            and set the weights to their product. See `sparsenn.init`.
        maximize: Maximize the objective instead.
        generator: Source of the seed for the factors, as in `FactorizedSGD`.

    Raises:
        ValueError: for an argument out of its range, and parameters of another dtype, sparse, expanded or twice in a group.
            From ``step`` too, where an option of a group was changed to such a value; a tensor that is changed in place is
            looked at again on the CPU alone.
        RuntimeError: from ``step`` where weights were changed behind the optimizer's back (see `resync`), for sparse
            gradients and for a group whose depth was changed; before any parameter moves.

    Note:
        `resync` zeroes the first moments of factors that it sets anew; their second moments stay, and steps are counted on.
        Every parameter counts its own steps, in ``state[p]["step"]`` on its device, so that a captured CUDA graph counts too.
        On the CPU the bits are those of ``torch.optim.Adam(fused=True)`` at depth 1; its loop's root is less exact.

    Source: Kingma and Ba 2015, Algorithm 1; Reddi et al. 2018 (AMSGrad); Loshchilov and Hutter 2019, Algorithm 2 (decoupled);
    Kolb et al. 2025, Theorem 1. That AdamW without noise solves a problem with bounded weights is Xie and Li 2024.

    Example:
        >>> import torch, sparsenn
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = sparsenn.optim.FactorizedAdam(model.parameters(), lr=1e-3, depth=3, lam=1e-3)
        >>> model(torch.ones(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> w1, w2, w3 = optimizer.factors(model.weight)
        >>> torch.equal(model.weight, w1 * w2 * w3)
        True
    """

    options = (*Factorized.options, "betas", "eps", "weight_decay", "amsgrad", "decoupled", "maximize")
    identified_by = ("depth", "seed", "betas")
    moments = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    restarted = ("exp_avg",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        depth: int = 2,
        lam: float | Tensor = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        amsgrad: bool = False,
        decoupled: bool = False,
        weight_decay: float = 0.0,
        factor_init: str = "preserve",
        maximize: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        options = {
            "lr": lr,
            "depth": depth,
            "lam": lam,
            "betas": betas,
            "eps": eps,
            "amsgrad": amsgrad,
            "decoupled": decoupled,
            "weight_decay": weight_decay,
            "factor_init": factor_init,
            "maximize": maximize,
        }
        super().__init__(params, options, generator)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `FactorizedSGD.load_state_dict`, with moments in the place of momenta.

        Raises:
            ValueError: where the groups don't fit, or a parameter's factors and moments are not of its shape or not ``depth``
                many.
        """
        super().load_state_dict(state_dict)
        for p, state in self.state.items():  # a copy, where a step counts: the saved one is someone else's
            state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32, device=p.device)

    def _check_options(self, group: dict[str, Any], known: tuple[Any, ...] = ()) -> None:
        super()._check_options(group, known)
        for name in ("weight_decay", "eps"):
            group[name] = common.checked_number(self._owner, name, group[name])
        for name in ("amsgrad", "decoupled", "maximize"):
            group[name] = common.checked_flag(self._owner, name, group[name])
        betas = group["betas"]
        rates = [plain(beta) for beta in betas] if isinstance(betas, tuple | list) else []
        if len(rates) != 2 or not all(rate is not None and 0 <= rate < 1 for rate in rates):
            raise ValueError(f"{self._owner}: betas is {betas!r}; it takes two numbers of at least 0 and below 1")
        group["betas"] = tuple(rates)
        if group["eps"] < _LEAST_EPS:
            raise ValueError(
                f"{self._owner}: eps is {group['eps']!r}; it takes at least {_LEAST_EPS:.2g}, or dead weights, whose gradients"
                " are 0, would become NaN"
            )

    def _kept(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.moments if group["amsgrad"] else self.moments[:2]

    def _add_moments(self, p: Tensor, depth: int, moments: Iterable[str]) -> None:
        super()._add_moments(p, depth, moments)
        if "step" not in self.state[p]:
            self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)

    def _move(self, group: dict[str, Any], batch: Batch, grads: list[Tensor], rows: Tensor | None, threshold: float) -> None:
        _ops.factorized_adam_.default(
            batch.weights,
            batch.factors,
            *batch.moments.values(),
            [pieces.state["step"] for pieces in batch.pieces],
            grads,
            self._scalar(group["lr"]),
            self._scalar(group["lam"]),
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["decoupled"],
            group["maximize"],
            rows,
            threshold,
        )

    def _check_state(self, p: Tensor, depth: int, entries: dict[str, Any]) -> None:
        super()._check_state(p, depth, entries)
        names = {f"{moment}_{d}" for moment in self.moments[:2] for d in range(depth)} | {"step"}
        if missing := sorted(names - set(entries)):
            raise ValueError(f"{self._owner}.load_state_dict: depth {depth} needs {sorted(names)}; the state lacks {missing}")
