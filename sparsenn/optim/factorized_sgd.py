"""SGD on the factors of every weight, in one pass: the model stays dense, the optimizer owns the factors."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparsenn.ops import hadamard_product
from sparsenn.optim import balance, common, plans, shards
from sparsenn.optim.balance import BalanceSwitch
from sparsenn.optim.factorized import Factorized
from sparsenn.optim.pieces import Batch

_ops = torch.ops.sparsenn
_log = logging.getLogger(__name__)


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
        lr: Step size; a float or a 0-d tensor, which a compiled step reads without being compiled again. Drawn
            factors want larger ones the deeper they are, "preserve" smaller ones.
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
        balanced: Whether factors of one magnitude, which stay so (Lemma 4), are kept as one signed root r a weight,
            :math:`w = r |r|^{D-1}`, with one momentum: 2 words of state a weight instead of 2D, and a quicker step. False keeps
            the factors. True takes ``factor_init="root"``, from where nothing else changes: up to depth 4 the weights have the
            same bits, but for the signs of zeros. ``"auto"`` starts so from "root"; from another start it looks every 100 steps
            whether the factors of a whole parameter that has a gradient have become balanced to ``balance_tolerance``, and goes
            on with their root: see `balance`. It takes parameters that are not sharded, and a compiled step does not look.
        balance_tolerance: How far from balance, relative to their norm, factors and momenta of a parameter may be then.
        generator: Source of the seed for the factors. Factors are drawn per element from that seed, whatever the sharding.
            Without a generator the seed comes from torch's default one and is broadcast from rank 0 where a process group is
            initialized, so every rank must then construct the optimizer. With one, give every rank the same seed.

    Raises:
        ValueError: for an argument out of its range, and parameters of another dtype, sparse, expanded or twice in a group.
            From ``step`` too, where an option of a group was changed to such a value; a tensor that is changed in place is
            looked at again on the CPU alone.
        RuntimeError: from ``step`` where weights were changed behind the optimizer's back (see `resync`), for sparse
            gradients and for a group whose depth was changed; before any parameter moves.

    Note:
        Clipping the gradients of the model clips ∂ℓ/∂w, not the factors' gradients, which are that times products of the
        other factors. A change through ``p.data``, or before a step that is compiled, can't be noticed: call `resync` after it.

    Source: Kolb et al. 2025, Equation 3, Theorem 1, Algorithm 2, Lemma 4; with "preserve" in place of their Algorithm 1.

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

    options = (
        *Factorized.options,
        *("momentum", "dampening", "nesterov", "weight_decay", "maximize", "balanced", "balance_tolerance"),
    )
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
        balanced: bool | str = False,
        balance_tolerance: float = 1e-3,
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
            "balanced": balanced,
            "balance_tolerance": balance_tolerance,
            "balance_steps": 0,  # since the construction, where balanced is "auto"
        }
        super().__init__(params, options, generator)

    def factors(self, p: Tensor) -> tuple[Tensor, ...]:
        """The D factors of a parameter, in its shape: the tensors that the optimizer moves, not copies.

        Of a balanced parameter the first is the root that it moves; the others are one new tensor, the root's magnitude.

        Raises:
            ValueError: for a tensor that is not one of the optimizer's parameters, or not factorized yet (it never required
                grad).
        """
        own, state = super().factors(p), self.state[p]
        return tuple(balance.factors_of(own[0], balance.depth_of(state))) if balance.is_balanced(state) else own

    @torch.no_grad()
    def balance(self, params: Iterable[Tensor] | None = None, *, tolerance: float | None = None) -> list[BalanceSwitch]:
        r"""Go on with one root a weight where the factors of a whole parameter, and their momenta, are balanced to a tolerance.

        With :math:`\bar\omega = \frac1D \sum_d |\omega_d|` and
        :math:`\bar v = \frac1D \sum_d \operatorname{sign}(\omega_d) v_d`, their distances from the nearest balanced ones are

        .. math:: e_\omega^2 = \frac{\sum_d \||\omega_d| - \bar\omega\|^2}{\sum_d \|\omega_d\|^2}, \qquad
            e_v^2 = \frac{\sum_d \|\operatorname{sign}(\omega_d) v_d - \bar v\|^2}{\sum_d \|v_d\|^2}

        with norms over the parameter; 0/0 is 0. Where both are at most the tolerance, the root becomes
        :math:`\operatorname{sign}(w) |w|^{1/D}`, which keeps the weights to rounding, its momentum
        :math:`\operatorname{sign}(w)\, \bar v`, and the memory of factors and momenta is freed. From then on a weight that is 0
        stays 0, and at even D the others keep their signs, as balanced factors do.

        Args:
            params: The parameters to look at; all that have factors by default.
            tolerance: Instead of the group's ``balance_tolerance``; infinity takes all.

        Returns:
            One `BalanceSwitch` for each parameter that was switched now, which says by how much its weights have jumped; the
            same is logged as INFO. See `switches` for all of them.

        Raises:
            ValueError: for a tensor that is not one of the optimizer's factorized parameters, sharded ones with factors, and
                a tolerance that is no number ≥ 0.
            RuntimeError: where weights were changed behind the optimizer's back; see `resync`.

        Example:
            >>> import torch, sparsenn
            >>> weight = torch.nn.Parameter(torch.tensor([0.5, -2.0]))
            >>> optimizer = sparsenn.optim.FactorizedSGD([weight], lr=0.1, depth=2)
            >>> optimizer.balance(), len(optimizer.balance(tolerance=2.0))
            ([], 1)
            >>> optimizer.switches()[0].jump < 1e-6
            True
        """
        chosen = self._chosen(params, "balance")
        limits = {p: self._group_of(p)["balance_tolerance"] if tolerance is None else tolerance for p in chosen}
        balance.check_tolerances(self._owner, limits.values())
        waiting = [p for p in chosen if not balance.is_balanced(self.state[p])]
        for p in waiting:
            balance.check_whole(f"{self._owner}.balance: parameter {self._position(p)}", p)
        measured = [self._imbalance(p) for p in waiting]
        found: list[BalanceSwitch] = []
        for p, measurement in zip(waiting, measured, strict=True):
            imbalance = measurement.tolist()
            if all(x <= limits[p] for x in imbalance):  # no NaN either
                factors, moments = self._moved(self.state[p])
                balance.switch(p, self.state[p], factors, moments.get("momentum", []), imbalance)
                self._pieces.pop(p, None)
                found += balance.report(self._position(p), p, self.state[p])
                _log.info("%s: %s goes on with one root a weight", self._owner, found[-1])
        if found:
            self._plans.clear()
        return found

    def switches(self) -> list[BalanceSwitch]:
        """What `balance`, or ``balanced="auto"``, has done so far, in the order of the parameters; a part of the state."""
        return [found for p in self._factorized() for found in balance.report(self._position(p), p, self.state[p])]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of a state from before there were these
            for name, value in (("balanced", False), ("balance_tolerance", 1e-3), ("balance_steps", 0)):
                group.setdefault(name, value)

    def _check_options(self, group: dict[str, Any], known: tuple[Any, ...] = ()) -> None:
        super()._check_options(group, known)
        common.check_momentum(self._owner, group)
        balance.check_options(self._owner, group)

    def _check_parameter(self, p: Tensor, group: dict[str, Any]) -> None:
        super()._check_parameter(p, group)
        if group["balanced"] == "auto":
            balance.check_whole(f"{self._owner}: balanced is 'auto' and a parameter of shape {tuple(p.shape)}", p)

    def _kept(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.moments if group["momentum"] else ()

    def _fresh_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        balanced = group["balanced"] and group["factor_init"] == "root"
        return balance.fresh_state(p, group["depth"]) if balanced else super()._fresh_state(p, group)

    def _moved(self, state: dict[str, Any]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        return balance.moved(state) if balance.is_balanced(state) else super()._moved(state)

    def _depth_of(self, state: dict[str, Any]) -> int:
        return balance.depth_of(state) if balance.is_balanced(state) else super()._depth_of(state)

    def _product(self, factors: list[Tensor], depth: int) -> Tensor:
        return balance.product(factors, depth)

    def _before_split(self, p: Tensor, changed: Tensor) -> None:
        """A root whose weight was changed becomes factors again, which can change signs; one that was a start stays."""
        if self._group_of(p)["factor_init"] != "root" and balance.is_balanced(self.state[p]) and bool(changed.any()):
            balance.switch_back(self.state[p])

    def _fill(self, factors: list[Tensor], p: Tensor, method: str) -> None:
        depth = self._group_of(p)["depth"]
        if len(factors) == depth:
            super()._fill(factors, p, method)
            return
        weight = shards.local(p)
        if method != "root":
            split = [torch.empty_like(factors[0]) for _ in range(depth)]
            super()._fill(split, p, method)
            weight = hadamard_product(split)  # lifted where it was 0
        balance.fill_root_(factors[0], weight, depth)

    def _add_moments(self, p: Tensor, depth: int, moments: Iterable[str]) -> None:
        if balance.is_balanced(self.state[p]):
            balance.add_momentum(p, self.state[p])
        else:
            super()._add_moments(p, depth, moments)
        self.state[p]["momentum_started"] = False

    def _dampening(self, group: dict[str, Any], state: dict[str, Any]) -> float:
        return common.current_dampening(group, state)

    def _move(self, group: dict[str, Any], batch: Batch, grads: list[Tensor], rows: Tensor | None, threshold: float) -> None:
        roots = len(batch.factors) < group["depth"] * len(batch.weights)  # at depth 1 a root is the factor
        operator = _ops.balanced_sgd_.default if roots else _ops.factorized_sgd_.default
        operator(
            batch.weights,
            batch.factors,
            batch.moments["momentum"],
            grads,
            self._scalar(group["lr"]),
            self._scalar(group["lam"]),
            *([group["depth"]] if roots else []),
            group["momentum"],
            batch.dampening,
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
            rows,
            threshold,
        )

    def _first_step_done(self, group: dict[str, Any], plan: plans.Plan) -> None:
        if group["momentum"]:
            for batch in plan.batches:
                for pieces in batch.pieces:
                    pieces.state["momentum_started"] = True
        plan.first_step_done(group)

    def _step_done(self) -> None:
        due = []
        for group in self.param_groups:
            if group["balanced"] == "auto":
                group["balance_steps"] += 1
                if group["balance_steps"] % balance.EVERY == 0:
                    due += [p for p in group["params"] if p.grad is not None]  # that were moved, and so are their products
        if due:
            self.balance(due)

    def _imbalance(self, p: Tensor) -> Tensor:
        """That of a parameter's factors and momenta, when its weights are found to be those that the optimizer left."""
        pieces = self._pieces_of(p, self._group_of(p))
        if pieces.version != pieces.weight._version:
            self._check_unchanged(pieces)
        factors, moments = self._moved(self.state[p])  # momenta too that the options don't ask for any more
        return balance.imbalances(factors, moments.get("momentum", []))

    def _is_ours(self, name: str) -> bool:
        return super()._is_ours(name) or balance.is_tensor_of(name)

    def _check_state(self, p: Tensor, depth: int, entries: dict[str, Any]) -> None:
        if balance.is_balanced(entries):
            balance.check_state(self._owner, depth, entries)
            common.check_shapes(self._owner, p, entries, self._is_ours)
        else:
            super()._check_state(p, depth, entries)
        if entries.get("momentum_started") and not self._moved(entries)[1]:
            raise ValueError(f"{self._owner}.load_state_dict: the state has begun with a momentum, and lacks it")
