"""SGD on the factors of every weight, in one pass: the model stays dense, the optimizer owns the factors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsenn import init
from sparsenn.ops import hadamard_product
from sparsenn.optim import common, plans, shards
from sparsenn.optim.memory import staggered_zeros
from sparsenn.optim.stepping import quiet_step

_ops = torch.ops.sparsenn
_NAME = "FactorizedSGD"


@dataclass(slots=True)
class _Pieces:
    """One parameter as the kernel takes it: local shards, and the weight's version after the last step (None: check first)."""

    param: Tensor
    depth: int
    state: dict[str, Any]
    weight: Tensor
    factors: list[Tensor]
    momenta: list[Tensor]
    version: int | None


@dataclass(slots=True)
class _Batch(plans.Batch):
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
                _check_parameter(p)
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
                _ops.factorized_sgd_.default(
                    batch.weights,
                    batch.factors,
                    batch.momenta,
                    own,
                    lr,
                    lam,
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
        return loss

    def factors(self, p: Tensor) -> tuple[Tensor, ...]:
        """The D factors of a parameter, in its shape: the tensors that the optimizer moves, not copies.

        Raises:
            ValueError: for a tensor that is not one of the optimizer's parameters, or not factorized yet (it never required
                grad).
        """
        if not self.state.get(p):
            raise ValueError("FactorizedSGD.factors: the tensor is no parameter of this optimizer, or it has no factors yet")
        return tuple(self.state[p][f"factor_{d}"] for d in range(self._group_of(p)["depth"]))

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
        for p in [q for q in common.parameters(self.param_groups) if self.state.get(q)] if params is None else params:
            old = self.factors(p)
            group = self._group_of(p)
            weight = shards.local(p)
            locals_ = [shards.local(factor) for factor in old]
            changed = weight != hadamard_product(locals_).to(weight.dtype)
            fresh = [torch.empty_like(factor) for factor in locals_]
            method = "root" if group["factor_init"] == "root" else "preserve"
            self._fill(fresh, p, method)
            for factor, new in zip(locals_, fresh, strict=True):
                factor.copy_(torch.where(changed, new, factor))
            for d in range(group["depth"]):
                if f"momentum_{d}" in self.state[p]:
                    shards.local(self.state[p][f"momentum_{d}"]).masked_fill_(changed, 0.0)
            weight.copy_(hadamard_product(locals_))
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
                _check_state(saved[index], depths[index], entries)
        super().load_state_dict(state_dict)
        common.restore_precision(self, saved, state_dict, _is_ours)
        self._forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
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

    def _position(self, p: Tensor) -> int:
        return next(i for i, q in enumerate(common.parameters(self.param_groups)) if q is p)

    def _factorize_group(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.requires_grad:
                self._factorize(p, group)

    @torch.no_grad()
    def _factorize(self, p: Tensor, group: dict[str, Any]) -> None:
        depth = group["depth"]
        factors = [staggered_zeros(p, common.state_dtype(p), d) for d in range(depth)]
        self._fill([shards.local(factor) for factor in factors], p, group["factor_init"])
        shards.local(p).copy_(hadamard_product([shards.local(factor) for factor in factors]))
        self.state[p] = {f"factor_{d}": factor for d, factor in enumerate(factors)}
        if group["momentum"]:
            self._add_momenta(p, depth)

    def _add_momenta(self, p: Tensor, depth: int) -> None:
        state = self.state[p]
        state.update({f"momentum_{d}": staggered_zeros(p, common.state_dtype(p), depth + d) for d in range(depth)})
        state["momentum_started"] = False

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
        batches: dict[tuple[torch.device, torch.dtype, float, bool], _Batch] = {}
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
            key = (p.device, p.dtype, damped, sharded)
            batch = batches.get(key)
            if batch is None:
                batch = batches[key] = _Batch(_NAME, damped, sharded)
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
        elif group["momentum"] and "momentum_0" not in self.state[p]:
            self._add_momenta(p, depth)
        state = self.state[p]
        if f"factor_{depth - 1}" not in state or f"factor_{depth}" in state:
            raise RuntimeError(
                f"FactorizedSGD.step: the depth of a group was changed to {depth} after its weights were factorized; make a "
                "new optimizer, or add the parameters to a new group"
            )
        return _Pieces(
            p,
            depth,
            state,
            shards.local(p.detach()) if shards.is_sharded(p) else p,
            [shards.local(state[f"factor_{d}"]) for d in range(depth)],
            [shards.local(state[f"momentum_{d}"]) for d in range(depth)] if group["momentum"] else [],
            None,
        )

    def _check_unchanged(self, pieces: _Pieces) -> None:
        product = hadamard_product(pieces.factors).to(pieces.weight.dtype)
        if not bool(((pieces.weight == product) | (pieces.weight.isnan() & product.isnan())).all()):
            p = pieces.param
            raise RuntimeError(
                f"FactorizedSGD.step: parameter {self._position(p)} (shape {tuple(p.shape)}) was changed outside the optimizer,"
                " so it is no longer the product of its factors. To go on from the changed weights call opt.resync(), which "
                "splits them anew and zeroes their momenta"
            )
        pieces.version = pieces.weight._version


def _check_options(group: dict[str, Any]) -> None:
    for name in ("lr", "lam"):
        common.check_number(_NAME, name, group[name], may_be_tensor=True)
    common.check_momentum(_NAME, group)
    if not isinstance(group["depth"], int) or isinstance(group["depth"], bool) or group["depth"] < 1:
        raise ValueError(f"FactorizedSGD: depth is {group['depth']!r}; it takes an integer >= 1")
    if group["factor_init"] not in init.FACTOR_INITS:
        known = ", ".join(init.FACTOR_INITS)
        raise ValueError(f"FactorizedSGD: factor_init is {group['factor_init']!r}; it takes one of {known}")


def _check_parameter(p: Tensor) -> None:
    common.check_parameter(_NAME, p)
    if p.requires_grad and not p.is_meta and not bool(torch.isfinite(shards.local(p.detach())).all()):
        raise ValueError(f"FactorizedSGD: a parameter of shape {tuple(p.shape)} holds NaN or infinity")


def _is_ours(name: str) -> bool:
    return name.startswith(("factor_", "momentum_"))


def _check_state(p: Tensor, depth: int, entries: dict[str, Any]) -> None:
    names = {f"factor_{d}" for d in range(depth)}
    found = {name for name in entries if name.startswith("factor_")}
    if found != names:
        raise ValueError(f"FactorizedSGD.load_state_dict: depth {depth} needs {sorted(names)}; the state has {sorted(found)}")
    common.check_shapes(_NAME, p, entries, _is_ours)
