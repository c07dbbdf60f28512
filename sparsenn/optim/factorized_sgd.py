"""SGD on the factors of every weight, in one pass: the model stays dense, the optimizer owns the factors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsenn import init
from sparsenn.ops import hadamard_product
from sparsenn.optim import balance, common, plans, shards
from sparsenn.optim.balance import BalanceSwitch
from sparsenn.optim.stepping import quiet_step

_ops = torch.ops.sparsenn
_log = logging.getLogger(__name__)
_NAME = "FactorizedSGD"


@dataclass(slots=True)
class _Pieces:
    """One parameter as the kernel takes it: local shards, and the weight's version after the last step (None: check first)."""

    param: Tensor
    depth: int
    state: dict[str, Any]
    weight: Tensor
    factors: list[Tensor]  # of a balanced parameter its root alone, and the momentum of that
    momenta: list[Tensor]
    version: int | None


@dataclass(slots=True)
class _Batch(plans.Batch):
    balanced: bool = False
    pieces: list[_Pieces] = field(default_factory=list)
    factors: list[Tensor] = field(default_factory=list)
    momenta: list[Tensor] = field(default_factory=list)


class FactorizedSGD(Optimizer):
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
        balanced: Whether factors of one magnitude, which stay so (Lemma 4), are kept as one signed root r a weight,
            :math:`w = r |r|^{D-1}`, with one momentum: 2 words of state a weight instead of 2D, and a quicker step. False keeps
            the factors. True takes ``factor_init="root"``, from where nothing else changes: up to depth 4 the weights have the
            same bits. ``"auto"`` starts so from "root"; from another start it looks every 100 steps whether the factors of a
            whole parameter have become balanced to ``balance_tolerance``, and goes on with their root: see `balance`. It takes
            parameters that are not sharded, and a compiled step does not look.
        balance_tolerance: How far from balance, relative to their norm, factors and momenta of a parameter may be then.
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
        self._forget()
        defaults = {
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
            "seed": shards.shared_seed(generator),  # a part of the state: a resumed run splits weights as the first would have
        }
        self._constructing = True
        super().__init__(params, defaults)
        self._constructing = False
        for group in self.param_groups:
            self._factorize_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with hyperparameters of their own where given; their weights are factorized at once."""
        _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for p in group["params"]:
                _check_parameter(p, group)
        except ValueError:
            self.param_groups.pop()
            raise
        if not self._constructing:  # when all groups are found to be right, none is left half-way
            self._factorize_group(group)

    @quiet_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the factors of every parameter that has a gradient, and set the parameters to their new products."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        compiling = torch.compiler.is_compiling()
        # Everything is gathered, and so checked, before anything is written.
        work = [(group, *self._planned(index, group, compiling)) for index, group in enumerate(self.param_groups)]
        for group, plan, grads in work:
            lr, lam = self._scalar(group["lr"]), self._scalar(group["lam"])
            for batch, own in zip(plan.batches, grads, strict=True):
                operator = _ops.balanced_sgd_.default if batch.balanced else _ops.factorized_sgd_.default
                operator(
                    batch.weights,
                    batch.factors,
                    batch.momenta,
                    own,
                    lr,
                    lam,
                    *([group["depth"]] if batch.balanced else []),
                    group["momentum"],
                    batch.dampening,
                    group["weight_decay"],
                    group["nesterov"],
                    group["maximize"],
                )
                if not compiling:
                    torch.autograd.graph.increment_version(batch.weights)
                    for pieces in batch.pieces:
                        pieces.version = pieces.weight._version
            if plan.fresh:
                if group["momentum"]:
                    for batch in plan.batches:
                        for pieces in batch.pieces:
                            pieces.state["momentum_started"] = True
                plan.first_step_done(group)
        if not compiling:
            self._balance_if_due()
        return loss

    def factors(self, p: Tensor) -> tuple[Tensor, ...]:
        """The D factors of a parameter, in its shape: the tensors that the optimizer moves, not copies.

        Of a balanced parameter the first is the root that it moves; the others are one new tensor, the root's magnitude.

        Raises:
            ValueError: for a tensor that is not one of the optimizer's parameters, or not factorized yet (it never required
                grad).
        """
        if not self.state.get(p):
            raise ValueError("FactorizedSGD.factors: the tensor is no parameter of this optimizer, or it has no factors yet")
        own, _ = balance.moved(self.state[p])
        return tuple(balance.factors_of(own[0], self._group_of(p)["depth"]) if balance.is_balanced(self.state[p]) else own)

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
            ValueError: for a tensor that is not one of the optimizer's factorized parameters, and sharded ones with factors.
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
        chosen = self._factorized() if params is None else list(params)
        for p in chosen:
            self.factors(p)
            if shards.is_sharded(p) and not balance.is_balanced(self.state[p]):
                raise ValueError(f"FactorizedSGD.balance: parameter {self._position(p)} is sharded; {_WHOLE}")
        waiting = [self._unchanged(p) for p in chosen if not balance.is_balanced(self.state[p])]
        measured = [balance.imbalances(pieces.factors, pieces.momenta) for pieces in waiting]
        found: list[BalanceSwitch] = []
        for pieces, measurement in zip(waiting, measured, strict=True):
            p, imbalance = pieces.param, measurement.tolist()
            limit = self._group_of(p)["balance_tolerance"] if tolerance is None else tolerance
            if all(x <= limit for x in imbalance):  # no NaN either
                balance.switch(p, self.state[p], pieces.depth, imbalance)
                self._pieces.pop(p, None)
                found += balance.report(self._position(p), p, self.state[p])
                _log.info("FactorizedSGD: %s goes on with one root a weight", found[-1])
        if found:
            self._plans.clear()
        return found

    def switches(self) -> list[BalanceSwitch]:
        """What `balance`, or ``balanced="auto"``, has done so far, in the order of the parameters; a part of the state."""
        return [found for p in self._factorized() for found in balance.report(self._position(p), p, self.state[p])]

    @torch.no_grad()
    def resync(self, params: Iterable[Tensor] | None = None) -> None:
        """Split weights anew that were changed from outside (pruned, averaged, loaded), and zero their momenta.

        Element by element: a weight that still is the product of its factors keeps them and their momenta. A weight that was
        set to 0 is lifted to ±1e-4 (a zero could never move), as at construction; at ``factor_init="root"`` it stays 0.

        Args:
            params: The parameters to look at; all by default. Under FSDP2 every rank must call with the same ones.

        Raises:
            ValueError: for a tensor that is not one of the optimizer's factorized parameters.
        """
        for p in self._factorized() if params is None else params:
            self.factors(p)
            group = self._group_of(p)
            depth, weight = group["depth"], shards.local(p)
            factors, momenta = ([shards.local(x) for x in own] for own in balance.moved(self.state[p]))
            changed = weight != balance.product(factors, depth).to(weight.dtype)
            fresh = [torch.empty_like(factors[0]) for _ in range(depth)]
            self._fill(fresh, p, "root" if group["factor_init"] == "root" else "preserve")
            if balance.is_balanced(self.state[p]) and group["factor_init"] != "root":
                balance.fill_root_(fresh[0], hadamard_product(fresh), depth)  # of the weight, lifted where it was 0
            for factor, new in zip(factors, fresh, strict=False):
                factor.copy_(torch.where(changed, new, factor))
            for momentum in momenta:
                momentum.masked_fill_(changed, 0.0)
            weight.copy_(balance.product(factors, depth))
            self._pieces.pop(p, None)
        self._plans.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; factors and momenta stay float32 for half-precision parameters.

        The model may be loaded before or after: the next step checks that its weights are the products of the factors.

        Raises:
            ValueError: where the groups don't fit, or a parameter's factors are not of its shape or not ``depth`` many.
        """
        saved_groups = state_dict["param_groups"]
        if not all("depth" in group and "seed" in group for group in saved_groups):
            raise ValueError("FactorizedSGD.load_state_dict: the state is that of another optimizer (its groups have no depth)")
        saved = common.saved_parameters(self, state_dict)
        depths = {index: g["depth"] for g in saved_groups for index in g["params"]}
        for index, entries in state_dict["state"].items():
            if index in saved:
                balance.check_state(_NAME, saved[index], depths[index], entries)
        super().load_state_dict(state_dict)
        common.restore_precision(self, saved, state_dict, balance.is_tensor_of)
        self._forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of a state from before there were these
            for name, value in (("balanced", False), ("balance_tolerance", 1e-3), ("balance_steps", 0)):
                group.setdefault(name, value)
        self._forget()
        self._constructing = False

    def _forget(self) -> None:
        """Drop what was derived from the groups and the state."""
        self._pieces: dict[Tensor, _Pieces] = {}
        self._plans: dict[int, plans.Plan] = {}
        self._scalar = common.Scalars()

    def _group_of(self, p: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(p is q for q in group["params"]):
                return group
        raise ValueError("FactorizedSGD: the tensor is no parameter of this optimizer")

    def _factorized(self) -> list[Tensor]:
        return [p for p in common.parameters(self.param_groups) if self.state.get(p)]

    def _balance_if_due(self) -> None:
        for group in self.param_groups:
            if group["balanced"] == "auto":
                group["balance_steps"] += 1
                if group["balance_steps"] % balance.EVERY == 0:
                    self.balance([p for p in group["params"] if self.state.get(p)])

    def _position(self, p: Tensor) -> int:
        return next(i for i, q in enumerate(common.parameters(self.param_groups)) if q is p)

    def _factorize_group(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.requires_grad:
                self._factorize(p, group)

    @torch.no_grad()
    def _factorize(self, p: Tensor, group: dict[str, Any]) -> None:
        depth = group["depth"]
        balanced = bool(group["balanced"]) and group["factor_init"] == "root"
        state = balance.zeros(p, depth, balanced=balanced)
        factors = [shards.local(factor) for factor in balance.moved(state)[0]]
        if balanced:
            balance.fill_root_(factors[0], shards.local(p.detach()), depth)
        else:
            self._fill(factors, p, group["factor_init"])
        shards.local(p).copy_(balance.product(factors, depth))
        self.state[p] = state
        if group["momentum"]:
            balance.add_momenta(p, state)

    def _fill(self, factors: list[Tensor], p: Tensor, method: str) -> None:
        """Factors of a parameter's shard, drawn as the same elements of the whole parameter are."""
        weight = shards.local(p).to(factors[0].dtype)
        init.fill_(
            factors,
            weight,
            method,
            std=max(shards.root_mean_square(p), init.MIN_WEIGHT) if shards.is_sharded(p) else None,
            seed=(self._group_of(p)["seed"] + self._position(p) * 0x9E3779B97F4A7C15) % 2**63,
            index=shards.global_index(p),
        )

    def _planned(self, index: int, group: dict[str, Any], compiling: bool) -> tuple[plans.Plan, list[list[Tensor]]]:
        """A group's plan, a new one where the last doesn't hold any more, with the gradients of each batch."""
        shape = (group["depth"], bool(group["momentum"]), group["dampening"])
        plan = None if compiling else self._plans.get(index)
        grads = None
        if plan is not None and plan.shape == shape and plan.holds(group["params"], self.state):
            grads = plan.gradients()
        if plan is None or grads is None:
            plan = self._make_plan(group, shape)
            grads = plan.gradients() or []
            if not compiling:
                self._plans[index] = plan
        for batch in () if compiling else plan.batches:
            for pieces in batch.pieces:
                if pieces.version != pieces.weight._version:
                    self._check_unchanged(pieces)
        return plan, grads

    def _make_plan(self, group: dict[str, Any], shape: tuple[Any, ...]) -> plans.Plan:
        batches: dict[tuple[torch.device, torch.dtype, float, bool, bool], _Batch] = {}
        idle = []
        depth, momentum = group["depth"], group["momentum"]
        compiling = torch.compiler.is_compiling()  # what is remembered would be guarded, and compiled anew when it changes
        for p in group["params"]:
            if p.grad is None:
                idle.append(p)
                continue
            pieces = None if compiling else self._pieces.get(p)
            if pieces is None or pieces.depth != depth or bool(momentum) != bool(pieces.momenta):
                pieces = self._collect(p, group)
                if not compiling:
                    self._pieces[p] = pieces
            damped, sharded = common.current_dampening(group, pieces.state), shards.is_sharded(p)
            balanced = balance.is_balanced(pieces.state)
            key = (p.device, p.dtype, damped, sharded, balanced)
            batch = batches.get(key)
            if batch is None:
                batch = batches[key] = _Batch(_NAME, damped, sharded, balanced=balanced)
            batch.params.append(p)
            batch.weights.append(pieces.weight)
            batch.pieces.append(pieces)
            batch.factors += pieces.factors
            batch.momenta += pieces.momenta
        return plans.Plan(shape, list(group["params"]), self.state, len(self.state), idle, list(batches.values()))

    def _collect(self, p: Tensor, group: dict[str, Any]) -> _Pieces:
        depth = group["depth"]
        if not self.state.get(p):
            self._factorize(p, group)
        elif group["momentum"] and not balance.moved(self.state[p])[1]:
            balance.add_momenta(p, self.state[p])
        state = self.state[p]
        if balance.depth_of(state) != depth:
            raise RuntimeError(
                f"FactorizedSGD.step: the depth of a group was changed to {depth} after its weights were factorized; make a "
                "new optimizer, or add the parameters to a new group"
            )
        factors, momenta = ([shards.local(x) for x in own] for own in balance.moved(state))
        weight = shards.local(p.detach()) if shards.is_sharded(p) else p
        return _Pieces(p, depth, state, weight, factors, momenta if group["momentum"] else [], None)

    def _unchanged(self, p: Tensor) -> _Pieces:
        """A parameter's pieces, when its weights are found to be those that the optimizer left."""
        pieces = self._pieces.get(p) or self._collect(p, self._group_of(p))
        if pieces.version != pieces.weight._version:
            self._check_unchanged(pieces)
        return pieces

    def _check_unchanged(self, pieces: _Pieces) -> None:
        product = balance.product(pieces.factors, pieces.depth).to(pieces.weight.dtype)
        if not bool(((pieces.weight == product) | (pieces.weight.isnan() & product.isnan())).all()):
            p = pieces.param
            raise RuntimeError(
                f"FactorizedSGD: parameter {self._position(p)} (shape {tuple(p.shape)}) was changed outside the optimizer,"
                " so it is no longer the product of its factors. To go on from the changed weights call opt.resync(), which "
                "splits them anew and zeroes their momenta"
            )
        pieces.version = pieces.weight._version


_WHOLE = "balance is looked for in whole parameters; take balanced=True with factor_init='root', or False"


def _check_options(group: dict[str, Any]) -> None:
    for name in ("lr", "lam"):
        common.check_number(_NAME, name, group[name], may_be_tensor=True)
    common.check_momentum(_NAME, group)
    if not isinstance(group["depth"], int) or isinstance(group["depth"], bool) or group["depth"] < 1:
        raise ValueError(f"FactorizedSGD: depth is {group['depth']!r}; it takes an integer >= 1")
    if group["factor_init"] not in init.FACTOR_INITS:
        known = ", ".join(init.FACTOR_INITS)
        raise ValueError(f"FactorizedSGD: factor_init is {group['factor_init']!r}; it takes one of {known}")
    balance.check_options(_NAME, group)


def _check_parameter(p: Tensor, group: dict[str, Any]) -> None:
    common.check_parameter(_NAME, p)
    if group["balanced"] == "auto" and shards.is_sharded(p):
        raise ValueError(f"FactorizedSGD: balanced is 'auto' and a parameter of shape {tuple(p.shape)} is sharded; {_WHOLE}")
    if p.requires_grad and not p.is_meta and not bool(torch.isfinite(shards.local(p.detach())).all()):
        raise ValueError(f"FactorizedSGD: a parameter of shape {tuple(p.shape)} holds NaN or infinity")
