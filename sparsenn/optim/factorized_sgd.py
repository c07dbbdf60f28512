"""SGD on the factors of every weight, in one pass: the model stays dense, the optimizer owns the factors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparsenn.optim import common, plans
from sparsenn.optim.factorized import Batch, Factorized

_ops = torch.ops.sparsenn


class FactorizedSGD(Factorized):
    r"""SGD with momentum on a depth-D factorization of every weight; the induced penalty is :math:`\lambda \|w\|_{2/D}^{2/D}`.

    The model keeps its dense parameters :math:`w = \omega_1 \odot \dots \odot \omega_D`; the factors and their momenta are
    this optimizer's state. With :math:`g = \partial \ell / \partial w`, plus :math:`\mu w` for a ``weight_decay`` of
    :math:`\mu`, a step is

    .. math::
        g_d &= g \odot \bigodot_{k \ne d} \omega_k + \tfrac{2 \lambda}{D}\, \omega_d \\
        v_d &\leftarrow \text{momentum} \cdot v_d + (1 - \text{dampening})\, g_d \\
        \omega_d &\leftarrow \omega_d - \text{lr} \cdot v_d, \qquad w \leftarrow \omega_1 \odot \dots \odot \omega_D

    which is ``torch.optim.SGD(momentum, weight_decay=2 * lam / depth)`` on the factors of the factorized network, without the
    factors' gradients ever being stored. At depth 1 and ``lam=0`` it is ``torch.optim.SGD``. By Theorem 1 of Kolb et al. the
    minimizers are those of the loss plus :math:`\lambda \|w\|_{2/D}^{2/D}`: the lasso's penalty at depth 2. Weights come near
    zero, not to it: ``sparsenn.collapse(model)`` after training makes them exact zeros.

    Constructing the optimizer changes the weights: "preserve" lifts those below 1e-4 in magnitude to it (a weight whose
    factors all are zero could never move), and a drawing ``factor_init`` replaces them all.

    Args:
        params: Parameters or groups of them; float64, float32, bfloat16 or float16. Half types get float32 factors. Under
            FSDP2, give the sharded parameters.
        lr: Step size; a float or a 0-d tensor, which a compiled step reads without being compiled again. Deeper factorizations
            want larger ones.
        depth: Number of factors D ≥ 1, one value for a group.
        lam: λ ≥ 0 in :math:`(\lambda / D) \sum_d \|\omega_d\|^2`; a float or a 0-d tensor. At depth 1 this is a weight decay
            of 2λ.
        momentum: Momentum of the factors, ≥ 0.
        dampening: Dampening of the momentum; not applied at a parameter's first step, as in torch.
        nesterov: Nesterov momentum; needs momentum > 0 and no dampening.
        weight_decay: Plain L2 on the collapsed weight: w times this is added to its gradient before the chain rule.
        factor_init: "preserve" (default) and "root" keep the weights; "dwf", "variance_matching" and "standard" draw factors
            and set the weights to their product, as the paper does. See `sparsenn.init`.
        maximize: Maximize the objective instead.
        generator: Source of the seed for the factors. Factors are drawn per element from that seed, whatever the sharding.
            Without a generator the seed comes from torch's default one and is broadcast from rank 0 where a process group is
            initialized, so every rank must then construct the optimizer. With one, give every rank the same seed.

    Raises:
        ValueError: for an argument out of its range, and parameters of another dtype.
        RuntimeError: from ``step`` where weights were changed behind the optimizer's back (see `resync`), for sparse
            gradients and for a group whose depth was changed; before any parameter moves.

    Note:
        Clipping the gradients of the model clips ∂ℓ/∂w, not the factors' gradients, which are that times products of the
        other factors. A change through ``p.data``, or before a step that is compiled, can't be noticed: call `resync` after it.

    Source: Kolb et al. 2025, Equation 3, Theorem 1, Algorithm 2; with "preserve" in place of their Algorithm 1.

    Example:
        >>> import torch, sparsenn
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = sparsenn.optim.FactorizedSGD(model.parameters(), lr=0.1, depth=3, lam=1e-3, momentum=0.9)
        >>> model(torch.ones(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> w1, w2, w3 = optimizer.factors(model.weight)
        >>> torch.equal(model.weight, w1 * w2 * w3)
        True
    """

    identified_by = ("depth", "seed", "momentum")
    moments = ("momentum",)
    restarted = ("momentum",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        depth: int = 2,
        lam: float | Tensor = 0.0,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        factor_init: str = "preserve",
        maximize: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        options = {
            "lr": lr,
            "depth": depth,
            "lam": lam,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "factor_init": factor_init,
            "maximize": maximize,
        }
        super().__init__(params, options, generator)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        common.check_momentum(self._owner, group)

    def _kept(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.moments if group["momentum"] else ()

    def _add_moments(self, p: Tensor, depth: int, moments: Iterable[str]) -> None:
        super()._add_moments(p, depth, moments)
        self.state[p]["momentum_started"] = False

    def _dampening(self, group: dict[str, Any], state: dict[str, Any]) -> float:
        return common.current_dampening(group, state)

    def _move(self, group: dict[str, Any], batch: Batch, grads: list[Tensor]) -> None:
        _ops.factorized_sgd_.default(
            batch.weights,
            batch.factors,
            batch.moments["momentum"],
            grads,
            self._scalar(group["lr"]),
            self._scalar(group["lam"]),
            group["momentum"],
            batch.dampening,
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
        )

    def _first_step_done(self, group: dict[str, Any], plan: plans.Plan) -> None:
        if group["momentum"]:
            for batch in plan.batches:
                for pieces in batch.pieces:
                    pieces.state["momentum_started"] = True
        plan.first_step_done(group)
