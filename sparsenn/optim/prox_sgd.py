"""SGD with a proximal step for the L1 norm, in one pass: weights become exactly zero while they train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsenn.optim import common, plans, shards
from sparsenn.optim.memory import staggered_zeros
from sparsenn.optim.stepping import quiet_step

_ops = torch.ops.sparsenn
_NAME = "ProxSGD"
_BUFFER, _STARTED = "momentum_buffer", "momentum_started"
_UNCHECKED = object()
_Moved = tuple[list[Tensor], list[Tensor]]  # momenta and gradients


def _no_counts() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(slots=True)
class _Setting:
    """A group's options as they were last checked, and as the operator takes them."""

    options: tuple[Any, ...]
    tensors: list[Tensor]  # lr and lam, where they are tensors
    versions: list[int]
    lr: Tensor
    lams: list[Tensor]  # one number for the group; empty where lam has one for each element
    shape: tuple[Any, ...]  # what a plan depends on


@dataclass(slots=True)
class _Batch(plans.Batch):
    states: list[dict[str, Any]] = field(default_factory=list)  # empty without momentum
    lams: list[Tensor] = field(default_factory=list)  # one for each weight; empty where the group has one for all
    zeros: Tensor = field(default_factory=_no_counts)

    def moved(self) -> _Moved | None:
        """Momenta and gradients as the operator takes them; None where a parameter has lost one of them."""
        grads = self.gradients()
        try:
            momenta = [state[_BUFFER] for state in self.states]
        except KeyError:  # a state was emptied
            return None
        if grads is None:
            return None
        return [shards.local(x) for x in momenta] if self.sharded else momenta, grads


def _moved(plan: plans.Plan) -> list[_Moved] | None:
    """What each batch's step takes; None where a parameter has lost its gradient or its state."""
    moved = []
    for batch in plan.batches:
        pair = batch.moved()
        if pair is None:
            return None
        moved.append(pair)
    return moved


class ProxSGD(Optimizer):
    r"""SGD with momentum and soft thresholding: minimises loss + :math:`\lambda \|w\|_1`, with exact zeros at every step.

    With :math:`g = \partial \ell / \partial w + \nu w` for a ``weight_decay`` of :math:`\nu`, momentum :math:`\mu` and
    dampening :math:`\tau`, a step is

    .. math::
        v &\leftarrow \mu v + (1 - \tau)\, g \\
        w &\leftarrow S\Big(w - \text{lr} \cdot v,\; \text{lr}\, \lambda\, \frac{1 - \tau}{1 - \mu}\Big), \qquad
        S(x, t) = \operatorname{sign}(x) \max(|x| - t, 0)

    with :math:`g + \mu v` in the place of :math:`v` for Nesterov momentum. The factor of the threshold is the one by which
    momentum lengthens a step in the long run. With it, and only with it, a point that the step leaves where it is solves
    :math:`0 \in \nabla \ell + \nu w + \lambda\, \partial |w|`; with a threshold of :math:`\text{lr}\, \lambda`, momentum 0.9
    solves the problem of :math:`\lambda / 10`. At ``lam=0`` the step is ``torch.optim.SGD`` to the last bit in float32 and
    float64 (half types keep their momenta in float32).

    The exact zeros are counted in the same pass: see `zeros` and `sparsity`. Parameters without a gradient are not touched,
    not even shrunk.

    Args:
        params: Parameters or groups of them; float64, float32, bfloat16 or float16. Half types get float32 momenta.
            Under FSDP2, give the sharded parameters.
        lr: Step size, ≥ 0; a float or a 0-d tensor, which a compiled step reads without being compiled again.
        lam: λ ≥ 0, in units of the loss per unit of weight; a float, a 0-d tensor, or a tensor that broadcasts to every
            parameter of its group: one λ for each element, or for each row in the shape (out, 1). Of a sharded parameter give
            the whole tensor, the same on every rank, or a DTensor in the parameter's own shape and placements.
        momentum: 0 ≤ momentum < 1.
        dampening: Dampening of the momentum, < 1 where there is a penalty; not applied at a parameter's first step, as in
            torch; that step's threshold has none either.
        nesterov: Nesterov momentum; needs momentum > 0 and no dampening.
        weight_decay: Plain L2, added to the gradient: with it the penalty is that of the elastic net.
        maximize: Maximise the loss, less the penalty, instead.

    Raises:
        ValueError: for an argument out of its range, a λ whose shape doesn't fit a parameter, and parameters that are complex,
            sparse, expanded or twice in a group. From ``step`` too, where an option of a group was changed to such a value.
        RuntimeError: from ``step`` for sparse gradients. Nothing has been written when an error is raised.

    Note:
        The values of lr and λ tensors are looked at when they come into a group, and on the CPU again when they have changed;
        a change in place on another device, or before a step that is compiled, is taken as it is.

    Source: Parikh and Boyd 2014, *Proximal Algorithms*, Sections 4.2 and 6.5.2; the threshold under momentum is derived in
    docs/math/proximal_l1.md.

    Example:
        >>> import torch, sparsenn
        >>> weight = torch.nn.Parameter(torch.tensor([0.3, -0.02, 2.0]))
        >>> optimizer = sparsenn.optim.ProxSGD([weight], lr=0.5, lam=0.1)
        >>> weight.grad = torch.tensor([0.2, 0.0, -1.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([0.1500, 0.0000, 2.4500])
        >>> optimizer.zeros(weight)
        tensor(1)
        >>> round(optimizer.sparsity(), 3)
        0.333
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        lam: float | Tensor = 0.0,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        self._scalar = common.Scalars()
        self._forget()
        defaults = {
            "lr": lr,
            "lam": lam,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with hyperparameters of their own where given."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            common.check_once(_NAME, group["params"])
            for p in group["params"]:
                common.check_parameter(_NAME, p)
            self._settings[len(self.param_groups) - 1] = self._make_setting(group)
        except ValueError:
            self.param_groups.pop()
            raise
        if group["momentum"]:
            for p in group["params"]:
                if p.requires_grad and not p.is_meta:
                    self._momentum_state(p)

    @quiet_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move and shrink every parameter that has a gradient, and count the zeros that are left in it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        compiling = torch.compiler.is_compiling()
        if compiling:
            self._last_step["compiled"] = True
        elif self._last_step["compiled"]:
            self._forget()
        # Everything is gathered, and so checked, before anything is written.
        work = []
        for index, group in enumerate(self.param_groups):
            setting = self._checked_setting(index, group)
            plan, moved = self._planned(index, group, setting)
            work.append((group, setting, plan, moved))
        for group, setting, plan, moved in work:
            for batch, (momenta, grads) in zip(plan.batches, moved, strict=True):
                _ops.prox_sgd_.default(
                    batch.weights,
                    momenta,
                    grads,
                    batch.lams or setting.lams,
                    batch.zeros,
                    setting.lr,
                    group["momentum"],
                    batch.dampening,
                    group["weight_decay"],
                    group["nesterov"],
                    group["maximize"],
                )
                if not compiling:
                    torch.autograd.graph.increment_version(batch.weights)
            if plan.fresh:
                self._first_step_done(plan, group)
        return loss

    @torch.no_grad()
    def zeros(self, p: Tensor) -> Tensor:
        """How many elements of a parameter are exactly zero, as a 0-d int64 tensor on its device.

        The step has counted them, so nothing is read and the device is not waited for. Where no eager step has counted yet,
        or the last step was a compiled one, they are counted now. Of a sharded parameter the zeros of all ranks are summed: a
        collective, which every rank must call.

        Raises:
            ValueError: for a tensor that is no parameter of this optimizer.
        """
        if not any(p is q for q in common.parameters(self.param_groups)):
            raise ValueError("ProxSGD.zeros: the tensor is no parameter of this optimizer")
        return shards.summed(self._count(p).clone(), p)

    @torch.no_grad()
    def sparsity(self) -> float:
        """The fraction of exact zeros among all elements of the optimizer's parameters, as `zeros` counts them.

        A number in [0, 1], 0 where there are no elements. It waits for the device once, however many parameters there are;
        for sharded parameters it is a collective.
        """
        counts: dict[tuple[Any, ...], list[Tensor]] = {}
        first: dict[tuple[Any, ...], Tensor] = {}
        for p in common.parameters(self.param_groups):
            key = (p.device, *shards.placement(p))
            counts.setdefault(key, []).append(self._count(p))
            first.setdefault(key, p)
        total = sum(p.numel() for p in common.parameters(self.param_groups))
        found = sum(int(shards.summed(torch.stack(own).sum(), first[key])) for key, own in counts.items())
        return found / total if total else 0.0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; momenta stay float32 for half-precision parameters.

        Raises:
            ValueError: for the state of another optimizer, or where groups or shapes don't fit.
        """
        known = {_BUFFER, _STARTED}
        if not all(self.defaults.keys() <= group.keys() for group in state_dict["param_groups"]) or not all(
            entries.keys() <= known for entries in state_dict["state"].values()
        ):
            raise ValueError("ProxSGD.load_state_dict: the state is that of another optimizer")
        saved = common.saved_parameters(self, state_dict)
        for index, entries in state_dict["state"].items():
            if index in saved:
                common.check_shapes(_NAME, saved[index], entries, _is_ours)
        super().load_state_dict(state_dict)
        common.restore_precision(self, saved, state_dict, _is_ours)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._scalar = common.Scalars()
        self._forget()

    def _forget(self) -> None:
        """Drop what was derived from the groups and the state."""
        self._settings: dict[int, _Setting] = {}
        self._plans: dict[int, plans.Plan] = {}
        self._counts: dict[Tensor, Tensor] = {}
        # Whether it was a compiled one, which counts nothing; in a dict, for torch.compile drops what it sets on an optimizer.
        self._last_step = {"compiled": False}

    def _count(self, p: Tensor) -> Tensor:
        counted = None if self._last_step["compiled"] else self._counts.get(p)
        return (shards.local(p) == 0).sum() if counted is None else counted

    def _momentum_state(self, p: Tensor) -> dict[str, Any]:
        """A parameter's state with its momentum: as it is, or from zeros; these follow a parameter that was moved or cast."""
        state = self.state[p]
        dtype = common.state_dtype(p)
        buffer = state.get(_BUFFER)
        if buffer is None or ((buffer.device != p.device or buffer.dtype != dtype) and not state.get(_STARTED)):
            state[_BUFFER], state[_STARTED] = staggered_zeros(p, dtype, 0), False
        common.check_state_fits(_NAME, self._position, p, state[_BUFFER])
        return state

    def _position(self, p: Tensor) -> int:
        return next(i for i, q in enumerate(common.parameters(self.param_groups)) if q is p)

    def _checked_setting(self, index: int, group: dict[str, Any]) -> _Setting:
        if torch.compiler.is_compiling():
            return self._make_setting(group)
        setting = self._settings.get(index)
        if (
            setting is None
            or not all(map(is_, _options(group), setting.options))
            or (setting.tensors and [x._version for x in setting.tensors] != setting.versions)
        ):
            setting = self._settings[index] = self._make_setting(group, setting)
        return setting

    def _make_setting(self, group: dict[str, Any], old: _Setting | None = None) -> _Setting:
        versions = []
        if not torch.compiler.is_compiling():
            _check_options(group, old)
            versions = [x._version for x in _options(group)[:2] if isinstance(x, Tensor)]
        options = _options(group)
        tensors = [x for x in options[:2] if isinstance(x, Tensor)]
        lam = group["lam"]
        spread = isinstance(lam, Tensor) and lam.dim() > 0
        shape = (bool(group["momentum"]), group["dampening"], lam if spread else None, versions[-1:] if spread else None)
        if old is not None and old.shape[:2] == shape[:2] and old.shape[2] is shape[2] and old.shape[3] == shape[3]:
            shape = old.shape
        return _Setting(options, tensors, versions, self._scalar(group["lr"]), [] if spread else [self._scalar(lam)], shape)

    def _planned(self, index: int, group: dict[str, Any], setting: _Setting) -> tuple[plans.Plan, list[_Moved]]:
        """A group's plan, a new one where the last doesn't hold any more, with the momenta and gradients of each batch."""
        if torch.compiler.is_compiling():
            plan = self._make_plan(group, setting)
            return plan, _moved(plan) or []
        known = self._plans.get(index)
        if known is not None and known.shape is setting.shape and known.holds(group["params"], self.state):
            moved = _moved(known)
            if moved is not None:
                return known, moved
        plan = self._plans[index] = self._make_plan(group, setting)
        return plan, _moved(plan) or []

    def _make_plan(self, group: dict[str, Any], setting: _Setting) -> plans.Plan:
        compiling = torch.compiler.is_compiling()
        batches: dict[tuple[torch.device, torch.dtype, float, bool], _Batch] = {}
        idle = []
        for p in group["params"]:
            if p.grad is None:
                idle.append(p)
                continue
            dampening = 0.0
            if group["momentum"]:
                state = self._momentum_state(p)
                dampening = common.current_dampening(group, state)
            sharded = shards.is_sharded(p)
            key = (p.device, p.dtype, dampening, sharded)
            batch = batches.get(key)
            if batch is None:
                batch = batches[key] = _Batch(_NAME, dampening, sharded, p.dtype)
            batch.add(p)
            if group["momentum"]:
                batch.states.append(state)
            if not setting.lams:
                batch.lams.append(_fitted(group["lam"], p))
        for batch in batches.values():
            if not compiling:  # where the counts would be made anew in every step
                batch.zeros = torch.zeros(len(batch.params), dtype=torch.int64, device=batch.weights[0].device)
        return plans.Plan(setting.shape, list(group["params"]), self.state, len(self.state), idle, list(batches.values()))

    def _first_step_done(self, plan: plans.Plan, group: dict[str, Any]) -> None:
        for batch in plan.batches:
            for state in batch.states:
                state[_STARTED] = True
            if not torch.compiler.is_compiling():
                self._counts.update(zip(batch.params, batch.zeros, strict=True))
        plan.first_step_done(group)


def _options(group: dict[str, Any]) -> tuple[Any, ...]:
    return (
        group["lr"],
        group["lam"],
        group["momentum"],
        group["dampening"],
        group["weight_decay"],
        group["nesterov"],
        group["maximize"],
    )


def _is_ours(name: str) -> bool:
    return name == _BUFFER


def _changed(value: Any, known: Any, version: int | None) -> bool:
    """Whether an option must be checked again; changes in place on another device are not looked at, not to wait for it."""
    if value is not known or not isinstance(value, Tensor):
        return value is not known
    return value.device.type == "cpu" and value._version != version


def _check_options(group: dict[str, Any], old: _Setting | None) -> None:
    """Refuse options out of their range; numbers become Python's."""
    lr, lam = group["lr"], group["lam"]
    known = dict(zip(map(id, old.tensors), old.versions, strict=True)) if old else {}
    old_lr, old_lam = old.options[:2] if old else (_UNCHECKED, _UNCHECKED)
    if _changed(lr, old_lr, known.get(id(lr))):
        group["lr"] = common.checked_rate(_NAME, lr)
    if _changed(lam, old_lam, known.get(id(lam))):
        group["lam"] = lam = _checked_lam(lam, group["params"])
    common.check_momentum(_NAME, group)
    if group["momentum"] >= 1:
        raise ValueError(f"{_NAME}: momentum is {group['momentum']!r}; it takes a number below 1")
    if group["dampening"] >= 1 and (isinstance(lam, Tensor) or lam > 0):
        raise ValueError(f"{_NAME}: dampening is {group['dampening']!r}; it takes a number below 1 where there is a penalty")


def _checked_lam(lam: Any, params: list[Tensor]) -> Any:
    if not isinstance(lam, Tensor) or lam.dim() == 0:
        return common.checked_number(_NAME, "lam", lam, may_be_tensor=not shards.is_sharded(lam))
    if lam.dtype not in common.DTYPES or lam.layout is not torch.strided:
        raise ValueError(
            f"{_NAME}: lam is a {lam.dtype} tensor of layout {lam.layout}; it takes dense ones of a floating dtype"
        )
    for p in params:
        _check_fit(lam, p)
    values = shards.local(lam)
    if not lam.is_meta and not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError(f"{_NAME}: lam, of shape {tuple(lam.shape)}, has an element that is negative, infinite or NaN")
    return lam


def _check_fit(lam: Tensor, p: Tensor) -> None:
    if shards.is_sharded(lam):
        if lam.shape != p.shape or shards.placement(lam) != shards.placement(p):
            raise ValueError(
                f"{_NAME}: lam is a DTensor of shape {tuple(lam.shape)}, placed as {shards.placement(lam)[1:]}; for a parameter"
                f" of shape {tuple(p.shape)}, placed as {shards.placement(p)[1:]}, it takes one like it, or the whole tensor"
            )
    elif lam.dim() > p.dim() or any(a not in (1, b) for a, b in zip(lam.shape[::-1], p.shape[::-1], strict=False)):
        raise ValueError(
            f"{_NAME}: lam has shape {tuple(lam.shape)}, which doesn't broadcast to a parameter of {tuple(p.shape)}"
        )


def _fitted(lam: Tensor, p: Tensor) -> Tensor:
    """One λ for each element of this rank's part of a parameter, as the operator takes it."""
    _check_fit(lam, p)
    own = shards.local(lam).to(device=p.device, dtype=common.state_dtype(p))
    return own if shards.is_sharded(lam) or not shards.is_sharded(p) else shards.part(own.expand(p.shape), p)
