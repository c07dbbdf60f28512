"""Weights that are products of factors, which the optimizer owns: what the factorized optimizers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from operator import is_, itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsenn import init
from sparsenn._numbers import whole
from sparsenn.init import stream
from sparsenn.ops import hadamard_product, reference
from sparsenn.ops.splitmix import WEYL
from sparsenn.optim import common, plans, shards
from sparsenn.optim.measures import FactorMeasures, Measured, empty_rows
from sparsenn.optim.memory import staggered_zeros
from sparsenn.optim.pieces import Batch, Pieces, numbered
from sparsenn.optim.places import Place, Places
from sparsenn.optim.stepping import quiet_step


class Factorized(Optimizer):
    """An optimizer of the factors of every weight; the model keeps the products. A subclass says how factors move.

    The state of a parameter has ``factor_0`` ... and, of the subclass's ``moments``, ``momentum_0`` ... in the same way.
    """

    options: ClassVar[tuple[str, ...]] = ("lr", "lam", "depth", "factor_init")  # what is checked
    identified_by: ClassVar[tuple[str, ...]]  # options by which a saved state is known to be of this optimizer
    moments: ClassVar[tuple[str, ...]]  # what a factor may have beside it
    restarted: ClassVar[tuple[str, ...]]  # of these, what a factor that was set anew loses

    _measure_at: float | None  # the threshold, where the next step measures
    _measured: dict[Tensor, Measured]

    def __init__(self, params: Iterable[Any], options: dict[str, Any], generator: torch.Generator | None) -> None:
        self._forget()
        seed = shards.shared_seed(generator)  # a part of the state: a resumed run splits weights as the first would have
        self._constructing = True
        super().__init__(params, {**options, "seed": seed})
        self._constructing = False
        for group in self.param_groups:
            self._factorize_group(group)

    @property
    def _owner(self) -> str:
        return type(self).__name__  # for errors

    def _check_options(self, group: dict[str, Any], known: tuple[Any, ...] = ()) -> None:
        """Refuse options out of their range; numbers and flags become Python's. A subclass has more of them.

        Tensors on another device that are ``known`` to be right are not looked at, not to wait for it.
        """
        owner = self._owner
        lr, lam = group["lr"], group["lam"]
        if not _is_known_elsewhere(lr, known):
            group["lr"] = common.checked_rate(owner, lr)
        if not _is_known_elsewhere(lam, known):
            group["lam"] = common.checked_number(owner, "lam", lam, may_be_tensor=True)
        depth = whole(group["depth"])
        if depth is None or depth < 1:
            raise ValueError(f"{owner}: depth is {group['depth']!r}; it takes an integer >= 1")
        group["depth"] = depth
        if group["factor_init"] not in init.FACTOR_INITS:
            inits = ", ".join(init.FACTOR_INITS)
            raise ValueError(f"{owner}: factor_init is {group['factor_init']!r}; it takes one of {inits}")

    def _check_parameter(self, p: Tensor, group: dict[str, Any]) -> None:
        """Refuse a parameter that can't be factorized with a group's options."""
        common.check_parameter(self._owner, p)
        if p.requires_grad:
            self._check_finite(p)

    def _check_finite(self, p: Tensor) -> None:
        if not p.is_meta and not bool(torch.isfinite(shards.local(p.detach())).all()):
            raise ValueError(f"{self._owner}: a parameter of shape {tuple(p.shape)} holds NaN or infinity")

    def _kept(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Those of ``moments`` that a group's options ask for."""
        raise NotImplementedError

    def _fresh_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter with factors that are still 0, and no moments."""
        return {f"factor_{d}": staggered_zeros(p, common.state_dtype(p), d) for d in range(group["depth"])}

    def _moved(self, state: dict[str, Any]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """What steps move: the factors in a state, or what stands for them, and by their names the moments that are there."""
        moments = {moment: numbered(state, moment) for moment in self.moments}
        return numbered(state, "factor"), {moment: tensors for moment, tensors in moments.items() if tensors}

    def _depth_of(self, state: dict[str, Any]) -> int:
        """How many factors a state has or stands for."""
        return len(self._moved(state)[0])

    def _product(self, factors: list[Tensor], depth: int) -> Tensor:
        """The weight of what is moved."""
        return hadamard_product(factors)

    def _dampening(self, group: dict[str, Any], state: dict[str, Any]) -> float:
        """That of a parameter's next step; parameters of one call have the same."""
        return 0.0

    def _move(self, group: dict[str, Any], batch: Batch, grads: list[Tensor], rows: Tensor | None, threshold: float) -> None:
        """One step of a batch, which fills the rows of its measures where there are some."""
        raise NotImplementedError

    def _first_step_done(self, group: dict[str, Any], plan: plans.Plan) -> None:
        """What is to be noted after the first step by a plan."""
        plan.fresh = False

    def _step_done(self) -> None:
        """What follows a step, but not one that is compiled."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with hyperparameters of their own where given; their weights are factorized at once."""
        param_group = {**self.defaults, **param_group}
        self._check_options(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            common.check_once(self._owner, group["params"])
            for p in group["params"]:
                self._check_parameter(p, group)
        except ValueError:
            self.param_groups.pop()
            raise
        self._checked[len(self.param_groups) - 1] = self._options_of(group), _versions(group)
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
        # All options, gradients and weights are gathered, and checked, before anything is moved.
        if not compiling:
            self._check_changed_options()
        work = [(group, *self._planned(index, group, compiling)) for index, group in enumerate(self.param_groups)]
        measure_at = None
        if not compiling:
            measure_at, self._measure_at, self._measured = self._measure_at, None, {}
        threshold = measure_at or 0.0
        for group, plan, grads in work:
            for batch, own in zip(plan.batches, grads, strict=True):
                rows = empty_rows(batch.weights) if measure_at is not None else None
                self._move(group, batch, own, rows, threshold)
                if not compiling:
                    torch.autograd.graph.increment_version(batch.weights)
                    for pieces in batch.pieces:
                        pieces.version = pieces.weight._version
                if rows is not None:
                    for pieces, row in zip(batch.pieces, rows, strict=True):
                        self._measured[pieces.param] = Measured(threshold, pieces.weight, pieces.weight._version, row)
            if plan.fresh:
                self._first_step_done(group, plan)
        if not compiling:
            self._step_done()
        return loss

    def _check_changed_options(self) -> None:
        """Check options that were written into groups, and CPU tensors among them that were changed in place.

        Other devices are not waited for: a tensor there is looked at when it comes into a group.
        """
        for index, group in enumerate(self.param_groups):
            options = self._options_of(group)
            known, versions = self._checked.get(index, ((), ()))
            if len(known) != len(options) or not all(map(is_, options, known)) or _versions(group) != versions:
                self._check_options(group, known)
                self._checked[index] = self._options_of(group), _versions(group)

    def factors(self, p: Tensor) -> tuple[Tensor, ...]:
        """The D factors of a parameter, in its shape: the tensors that the optimizer moves, not copies.

        Raises:
            ValueError: for a tensor that is not one of the optimizer's parameters, or not factorized yet (it never required
                grad).
        """
        self._chosen([p], "factors")
        return tuple(self._moved(self.state[p])[0])

    def measure_next(self, threshold: float = 0.0) -> None:
        """Let the next step measure what it leaves of the weights and factors while it has them at hand.

        `measures` says then what was found, without another pass over them. A step that is compiled does not measure, and
        leaves this to the next one that is not.

        Args:
            threshold: Up to which magnitude a weight counts as zero.

        Raises:
            ValueError: for a threshold that is no finite number ≥ 0.
        """
        self._measure_at = common.checked_number(self._owner, "threshold", threshold)

    @torch.no_grad()
    def measures(self, threshold: float | None = None) -> dict[Tensor, FactorMeasures]:
        """How sparse each factorized parameter is, its norm, and what its factors cost and would cost in balance.

        Numbers that the last step has found (see `measure_next`) are taken where they are for this threshold and the weights
        are still those that it left; others are formed now, which takes as long as tens of steps. Sums are in float64,
        and the same for any number of threads. A change that no version tells of (through ``p.data``, by a replayed graph) is
        not noticed.

        Args:
            threshold: Up to which magnitude a weight counts as zero; by default that of the last step, or 0.

        Raises:
            ValueError: for a threshold that is no finite number ≥ 0.
            RuntimeError: where weights were changed behind the optimizer's back; see `resync`.

        Example:
            >>> import torch, sparsenn
            >>> weight = torch.nn.Parameter(torch.tensor([4.0, 0.0]))
            >>> optimizer = sparsenn.optim.FactorizedSGD([weight], lr=0.1, depth=2, lam=1e-3, factor_init="root")
            >>> optimizer.measure_next(1e-6)
            >>> weight.square().sum().backward()
            >>> optimizer.step()
            >>> found = optimizer.measures()[weight]
            >>> found.kept, found.misalignment
            (1, 0.0)
        """
        if threshold is None:
            threshold = next((own.threshold for own in self._measured.values()), 0.0)
        threshold = common.checked_number(self._owner, "threshold", threshold)
        found = {}
        for p in self._factorized():
            own = self._measured.get(p)
            row = own.row.tolist() if own is not None and own.holds(threshold) else self._measured_now(p, threshold)
            found[p] = FactorMeasures.of_row(row)
        return found

    def _measured_now(self, p: Tensor, threshold: float) -> list[float]:
        """The same by the reference, in pieces so small that memory is bounded, and no sum is split over threads."""
        pieces = self._pieces_of(p, self._group_of(p))
        if pieces.version != pieces.weight._version:
            self._check_unchanged(pieces)
        total, rows = empty_rows([pieces.weight]).zero_(), empty_rows([pieces.weight])
        for piece in stream.pieces(pieces.weight.shape, 1 << 14):
            reference.measure(rows[0], pieces.weight[piece], [factor[piece] for factor in pieces.factors], threshold)
            total += rows
        return total[0].tolist()

    @torch.no_grad()
    def resync(self, params: Iterable[Tensor] | None = None) -> None:
        """Split weights anew that were changed from outside (pruned, averaged, loaded), and zero their momenta.

        Element by element: a weight that still is the product of its factors keeps them and their momenta. A weight that was
        set to 0 is lifted to ±1e-4 (a zero could never move), as at construction; at ``factor_init="root"`` it stays 0. A
        parameter that `FactorizedSGD` went on with as one root gets factors again, unless it began so.

        Args:
            params: The parameters to look at; all by default. Under FSDP2 every rank must call with the same ones.

        Raises:
            ValueError: for a tensor that is not one of the optimizer's factorized parameters, and weights that are not finite;
                before anything is changed.
            RuntimeError: for a group whose depth was changed.
        """
        chosen = self._chosen(params, "resync")
        for p in chosen:
            self._check_depth(self.state[p], self._group_of(p)["depth"])
            self._check_finite(p)
        for p in chosen:
            group, weight = self._group_of(p), shards.local(p)
            changed = weight != self._product_of(p)
            self._before_split(p, changed)
            own, moments = self._moved(self.state[p])
            factors = [shards.local(factor) for factor in own]
            fresh = [torch.empty_like(factor) for factor in factors]
            self._fill(fresh, p, "root" if group["factor_init"] == "root" else "preserve")
            for factor, new in zip(factors, fresh, strict=True):
                factor.copy_(torch.where(changed, new, factor))
            for tensor in (tensor for moment in self.restarted for tensor in moments.get(moment, ())):
                shards.local(tensor).masked_fill_(changed, 0.0)
            weight.copy_(self._product_of(p))
            self._pieces.pop(p, None)
        self._plans.clear()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, and write the weights that it stands for; factors and momenta stay float32 for half precision.

        So the model may be loaded before this optimizer is made, before this call or after it. Weights that something else has
        written since this optimizer last did, as a loaded model, stay as they are: where they are not those of the state, the
        next step asks for `resync`. What was changed before the optimizer was made is not known, and is overwritten.

        Raises:
            ValueError: where the groups don't fit, or a parameter's factors are not of its shape or not ``depth`` many.
        """
        saved_groups = state_dict["param_groups"]
        for name in self.identified_by:
            if not all(name in group for group in saved_groups):
                raise ValueError(
                    f"{self._owner}.load_state_dict: the state is that of another optimizer (its groups have no {name})"
                )
        saved = common.saved_parameters(self, state_dict)
        depths = {index: g["depth"] for g in saved_groups for index in g["params"]}
        for index, entries in state_dict["state"].items():
            if index in saved:
                self._check_state(saved[index], depths[index], entries)
        written = {p for p in self._factorized() if not self._is_product(p)}
        super().load_state_dict(state_dict)
        common.restore_precision(self, saved, state_dict, self._is_ours)
        self._forget()
        for p in self._factorized():
            if p not in written:
                shards.local(p).copy_(self._product_of(p))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        self._constructing = False

    def _forget(self) -> None:
        """Drop what was derived from the groups and the state."""
        self._pieces: dict[Tensor, Pieces] = {}
        self._places = Places()
        self._plans: dict[int, plans.Plan] = {}
        self._scalar = common.Scalars()
        self._options_of = itemgetter(*self.options)
        self._checked: dict[int, tuple[tuple[Any, ...], tuple[int, ...]]] = {}  # options, and the versions of tensors
        self._measure_at = None
        self._measured = {}

    def _group_of(self, p: Tensor) -> dict[str, Any]:
        return self.param_groups[self._place_of(p).group]

    def _position(self, p: Tensor) -> int:
        return self._place_of(p).position

    def _place_of(self, p: Tensor) -> Place:
        place = self._places.of(p, self.param_groups)
        if place is None:
            raise ValueError(f"{self._owner}: the tensor is no parameter of this optimizer")
        return place

    def _factorized(self) -> list[Tensor]:
        """The parameters that have factors, each once."""
        return [p for p in dict.fromkeys(common.parameters(self.param_groups)) if self.state.get(p)]

    def _chosen(self, params: Iterable[Tensor] | None, method: str) -> list[Tensor]:
        """Those of ``params``, each once; all that have factors for None."""
        if params is None:
            return self._factorized()
        chosen = list(dict.fromkeys(params))
        if not all(self.state.get(p) for p in chosen):
            raise ValueError(f"{self._owner}.{method}: a tensor is no parameter of this optimizer, or has no factors yet")
        return chosen

    def _before_split(self, p: Tensor, changed: Tensor) -> None:
        """What is to be done before the changed weights of a parameter are split anew."""

    def _factorize_group(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.requires_grad:
                self._factorize(p, group)

    @torch.no_grad()
    def _factorize(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self._fresh_state(p, group)
        factors = [shards.local(factor) for factor in self._moved(state)[0]]
        self._fill(factors, p, group["factor_init"])
        self.state[p] = state
        shards.local(p).copy_(self._product_of(p))
        if moments := self._kept(group):
            self._add_moments(p, group["depth"], moments)

    def _product_of(self, p: Tensor) -> Tensor:
        """What a parameter's weights are by its factors."""
        factors = [shards.local(factor) for factor in self._moved(self.state[p])[0]]
        return self._product(factors, self._group_of(p)["depth"]).to(p.dtype)

    def _is_product(self, p: Tensor) -> bool:
        weight, product = shards.local(p), self._product_of(p)
        return bool(((weight == product) | (weight.isnan() & product.isnan())).all())

    def _add_moments(self, p: Tensor, depth: int, moments: Iterable[str]) -> None:
        for moment in moments:
            slot = (1 + self.moments.index(moment)) * depth
            zeros = {f"{moment}_{d}": staggered_zeros(p, common.state_dtype(p), slot + d) for d in range(depth)}
            self.state[p].update(zeros)

    def _fill(self, factors: list[Tensor], p: Tensor, method: str) -> None:
        """Factors of a parameter's shard, or what stands for them, drawn as the same elements of the whole parameter are."""
        weight = shards.local(p).to(factors[0].dtype)
        init.fill_(
            factors,
            weight,
            method,
            std=max(shards.root_mean_square(p), init.MIN_WEIGHT) if shards.is_sharded(p) else None,
            seed=(self._group_of(p)["seed"] + self._position(p) * WEYL) % 2**63,
            index=shards.global_index(p),
        )

    def _planned(self, index: int, group: dict[str, Any], compiling: bool) -> tuple[plans.Plan, list[list[Tensor]]]:
        """A group's plan, a new one where the last doesn't hold any more, with the gradients of each batch."""
        shape = (group["depth"], self._kept(group), group.get("dampening"))
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
        batches: dict[tuple[torch.device, torch.dtype, float, bool, int], Batch] = {}
        idle = []
        for p in group["params"]:
            if p.grad is None:
                idle.append(p)
                continue
            pieces = self._pieces_of(p, group)
            for tensor in chain(pieces.factors, *pieces.moments.values()):
                common.check_state_fits(self._owner, self._position, p, tensor)
            damped, sharded = self._dampening(group, pieces.state), shards.is_sharded(p)
            key = (p.device, p.dtype, damped, sharded, len(pieces.factors))
            batch = batches.get(key)
            if batch is None:
                batch = batches[key] = Batch(self._owner, damped, sharded, p.dtype, moments={m: [] for m in self.moments})
            batch.params.append(p)
            batch.weights.append(pieces.weight)
            batch.pieces.append(pieces)
            batch.factors += pieces.factors
            for moment, tensors in pieces.moments.items():
                batch.moments[moment] += tensors
        return plans.Plan(shape, list(group["params"]), self.state, len(self.state), idle, list(batches.values()))

    def _pieces_of(self, p: Tensor, group: dict[str, Any]) -> Pieces:
        compiling = torch.compiler.is_compiling()  # what is remembered would be guarded, and compiled anew when it changes
        pieces = None if compiling else self._pieces.get(p)
        if pieces is None or pieces.depth != group["depth"] or tuple(pieces.moments) != self._kept(group):
            pieces = self._collect(p, group)
            if not compiling:
                self._pieces[p] = pieces
        return pieces

    def _collect(self, p: Tensor, group: dict[str, Any]) -> Pieces:
        depth, kept = group["depth"], self._kept(group)
        if not self.state.get(p):
            if not torch.compiler.is_compiling():
                self._check_parameter(p, group)
            self._factorize(p, group)
        state = self.state[p]
        self._check_depth(state, depth)
        if missing := [moment for moment in kept if moment not in self._moved(state)[1]]:
            self._add_moments(p, depth, missing)
        factors, moments = self._moved(state)
        return Pieces(
            p,
            depth,
            state,
            shards.local(p.detach()) if shards.is_sharded(p) else p,
            [shards.local(factor) for factor in factors],
            {moment: [shards.local(tensor) for tensor in moments[moment]] for moment in kept},
            None,
        )

    def _check_depth(self, state: dict[str, Any], depth: int) -> None:
        if self._depth_of(state) != depth:
            raise RuntimeError(
                f"{self._owner}: the depth of a group was changed to {depth} after its weights were factorized; make a new "
                "optimizer, or add the parameters to a new group"
            )

    def _check_unchanged(self, pieces: Pieces) -> None:
        p = pieces.param
        if not self._is_product(p):
            raise RuntimeError(
                f"{self._owner}: parameter {self._position(p)} (shape {tuple(p.shape)}) was changed outside the optimizer, so "
                "it is no longer the product of its factors. To go on from the changed weights call opt.resync(), which splits "
                "them anew and zeroes their momenta"
            )
        pieces.version = pieces.weight._version

    def _is_ours(self, name: str) -> bool:
        return name.startswith(tuple(f"{stem}_" for stem in ("factor", *self.moments)))

    def _check_state(self, p: Tensor, depth: int, entries: dict[str, Any]) -> None:
        owner = self._owner
        for stem in ("factor", *self.moments):
            names = [f"{stem}_{d}" for d in range(depth)]
            found = [name for name in entries if name.removeprefix(f"{stem}_").isdigit()]
            if sorted(found) != sorted(names) and (found or stem == "factor"):
                raise ValueError(f"{owner}.load_state_dict: depth {depth} needs {names}; the state has {sorted(found)}")
        common.check_shapes(owner, p, entries, self._is_ours)


def _is_known_elsewhere(value: Any, known: tuple[Any, ...]) -> bool:
    return isinstance(value, Tensor) and not value.is_cpu and any(value is x for x in known)


def _versions(group: dict[str, Any]) -> tuple[int, ...]:
    return tuple(x._version for x in (group["lr"], group["lam"]) if isinstance(x, Tensor) and x.is_cpu)
