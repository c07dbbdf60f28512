"""Any optimizer, then a proximal step in the metric that the optimizer moves in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsenn.optim import common, runs, shards, steps
from sparsenn.penalties import Penalty
from sparsenn.penalties.base import broadcasts_to
from sparsenn.penalties.separable import Separable

StepSize = Callable[[dict[str, Any], dict[str, Any], Tensor], float | Tensor]
StepFor = Callable[..., float | Tensor]  # from the tensors that S is made of


class Proximal(Optimizer):
    r"""Any optimizer, then the proximal map of any penalty: minimises loss + P(w).

    .. math:: w \leftarrow \operatorname{prox}^{S}_P\big(\text{base step}(w)\big), \qquad
        S_i = \text{how far the base optimizer goes in the long run for each unit of a constant gradient}

    This S, and no other, makes a point that the step leaves where it is a stationary point of loss + P. For
    ``torch.optim.SGD`` it is lr · (1 − dampening) / (1 − momentum), with or without Nesterov; the plain lr would solve the
    problem of a penalty weaker by (1 − momentum) / (1 − dampening). Adaptive optimizers have one S for each weight, such as
    :math:`\text{lr} / (\sqrt{\hat v} + \epsilon)` for Adam with the :math:`\hat v` of the same step, and the proximal map is
    taken in the metric of S. Known are SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop and Adagrad; for others give
    ``step_size``.

    Weight decay that is a part of the gradient (SGD, Adam) adds :math:`\tfrac{\nu}{2} \|w\|^2` to what is minimised. The
    decoupled decay of AdamW acts at lr · ν whatever S is: at a fixed point
    :math:`-g_i - \nu (\sqrt{\hat v_i} + \epsilon) w_i` is a subgradient of P, an L2 penalty that weighs each weight by the
    size of its gradient. For a minimizer of loss + P leave it at 0.

    Penalties belong to parameter groups. A group may have its own under the key ``"penalty"`` (None for none), as
    `param_groups` makes them; the others get the one given here. The strength in use is ``group["lam"]``: a group without this
    key gets it from its penalty, and schedules or you may change it between steps; it wins over the penalty's own. At
    ``lam`` 0, and in groups without a penalty, the base optimizer's step is all. Parameters without a gradient are not touched;
    a weight whose gradient has always been 0 goes far for each unit of it under an adaptive optimizer, and so to 0 at once.

    The groups, the state and `state_dict` are those of the base optimizer, with "lam" beside its options; penalties are not
    saved. Learning rate schedulers, hooks, closures and ``GradScaler`` work on this object.

    Args:
        base_optimizer: A constructed optimizer. It must not be stepped by itself any more.
        penalty: For the groups that have no ``"penalty"`` of their own.
        step_size: ``step_size(group, state, p)`` gives S for a parameter after the base optimizer's step, a number or a tensor
            that broadcasts to it, with the base optimizer's group and state. For base optimizers that are not known.

    Raises:
        ValueError: for a base optimizer that is not known without ``step_size``; for a penalty that a parameter can't have, and
            a "lam" that is negative, not finite or of a wrong shape, here or in ``step``; before anything is written. After a
            change in place the values of a "lam" tensor are looked at on the CPU alone, and not in a compiled step.

    Source: Parikh and Boyd 2014, Section 4.2; in a diagonal metric Yun, Lozano and Yang 2021 (Algorithm 1).

    Example:
        >>> import torch, sparsenn
        >>> from sparsenn.penalties import GroupL1
        >>> net = torch.nn.Linear(4, 2, bias=False)
        >>> adam = torch.optim.Adam(net.parameters(), lr=0.01)
        >>> optimizer = sparsenn.optim.Proximal(adam, GroupL1(10.0, "rows"))
        >>> net(torch.ones(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["lam"]
        10.0
    """

    base_optimizer: Optimizer
    _default: Penalty | None
    _step_size: StepSize | None
    _penalties: list[Penalty | None]

    # GradScaler then unscales the gradients itself and does not call a step that it must skip; a fused base optimizer, to which
    # it would hand the scale otherwise, steps as usual.
    _step_supports_amp_scaling = False

    def __init__(self, base_optimizer: Optimizer, penalty: Penalty | None = None, *, step_size: StepSize | None = None) -> None:
        if not isinstance(base_optimizer, Optimizer) or isinstance(base_optimizer, Proximal):
            raise ValueError(f"Proximal: base_optimizer is a {type(base_optimizer).__name__}; it takes a torch.optim.Optimizer")
        if penalty is not None and not isinstance(penalty, Penalty):
            raise ValueError(f"Proximal: penalty is {penalty!r}; it takes a sparsenn.penalties.Penalty")
        if step_size is None:
            known = steps.RULES.get(type(base_optimizer))
            if known is None:
                raise ValueError(
                    f"Proximal: how far {type(base_optimizer).__name__} steps for a gradient is not known, and a wrong step"
                    " would solve another problem; give step_size, or use one of "
                    + ", ".join(rule.__name__ for rule in steps.RULES)
                )
        # the hooks of an optimizer, without groups and state of its own
        super().__setstate__({"base_optimizer": base_optimizer, "_default": penalty, "_step_size": step_size})
        self._penalties = [self._penalty_for(group, i) for i, group in enumerate(base_optimizer.param_groups)]
        for group, own in zip(base_optimizer.param_groups, self._penalties, strict=True):
            _hand_over(group, own)
        self._current()

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's groups themselves."""
        return self.base_optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state itself."""
        return self.base_optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base optimizer's default options."""
        return self.base_optimizer.defaults

    @property
    def penalties(self) -> tuple[Penalty | None, ...]:
        """The penalty of each group at the strength that the group has now; None where it has none."""
        return tuple(self._current())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, with its own "penalty" and "lam" where given."""
        self.base_optimizer.add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            own = self._penalty_for(group, len(self._penalties))
        except ValueError:
            self.param_groups.pop()
            raise
        self._penalties.append(own)
        _hand_over(group, own)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of the base optimizer, then the proximal map for every parameter that has a gradient."""
        return self._step(closure)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        """The step itself, for a subclass: were ``step`` called once more, its hooks would be too."""
        penalties = self._current()  # checked before the base optimizer writes
        loss = self.base_optimizer.step(closure) if closure is not None else self.base_optimizer.step()
        self._shrink_all(penalties)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = self.base_optimizer.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base optimizer's state, its own or one saved under this object; a saved "lam" is taken over.

        Raises:
            ValueError: where the groups don't fit.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        lams = [group["lam"] for group in self.param_groups]
        self.base_optimizer.load_state_dict(state_dict)
        for group, lam in zip(self.param_groups, lams, strict=True):
            group.setdefault("lam", lam)
            group.pop("penalty", None)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base optimizer does it."""
        self.base_optimizer.zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        names = ("base_optimizer", "_default", "_step_size", "_penalties")
        return {name: self.__dict__[name] for name in names}

    def __repr__(self) -> str:
        return f"{type(self).__name__} (\n{self.base_optimizer!r}\npenalties: {list(self.penalties)}\n)"

    def _penalty_for(self, group: dict[str, Any], index: int) -> Penalty | None:
        """A group's penalty at the group's strength, found to fit every parameter."""
        penalty = group.get("penalty", self._default)
        if penalty is not None and not isinstance(penalty, Penalty):
            raise ValueError(
                f"Proximal: group {index} has the penalty {penalty!r}; it takes a sparsenn.penalties.Penalty or None"
            )
        return None if penalty is None else _fitted(penalty, group, index)

    def _current(self) -> list[Penalty | None]:
        for index, (group, penalty) in enumerate(zip(self.param_groups, self._penalties, strict=True)):
            if self._step_size is None and group.get("momentum", 0) >= 1:
                raise ValueError(f"Proximal: group {index} has momentum {group['momentum']}; it takes a number below 1")
            if penalty is None:
                continue
            lr = group.get("lr")
            if isinstance(lr, float) and lr < 0:
                group["lr"] = common.checked_rate("Proximal", lr)
            if group["lam"] is not penalty.lam:
                self._penalties[index] = fitted = _fitted(penalty, group, index)
                group["lam"] = fitted.lam  # NumPy's number is Python's now
            elif isinstance(penalty.lam, Tensor) and penalty.lam.is_cpu and not torch.compiler.is_compiling():
                penalty.with_lam(penalty.lam)  # it may have been changed in place; elsewhere a look would wait for the device
        return self._penalties

    # In a compiled step Dynamo would read the state of a group's first parameter for the others too.
    @torch.compiler.disable
    @torch.no_grad()
    def _shrink_all(self, penalties: list[Penalty | None]) -> None:
        for group, penalty in zip(self.param_groups, penalties, strict=True):
            if penalty is None or (not isinstance(penalty.lam, Tensor) and penalty.lam == 0):
                continue
            for rows, step_for in self._alike(group):
                work = _shrinking(penalty, step_for)
                if isinstance(penalty, Separable) and not getattr(penalty.lam, "shape", ()):
                    runs.over(rows, work)
                else:
                    for row in rows:
                        work(*row)

    def _alike(self, group: dict[str, Any]) -> Iterator[tuple[list[runs.Row], StepFor]]:
        """The moved parameters that share a rule for S, each with what the rule reads by element, as this rank has them."""
        params = [p for p in group["params"] if p.grad is not None]
        if self._step_size is not None:
            for p in params:
                step, weight = self._step_size(group, self.state[p], p), shards.local(p)
                if not isinstance(step, Tensor):
                    yield [(weight,)], _always(step)
                    continue
                step = shards.local(step)
                if not broadcasts_to(step, weight):
                    raise ValueError(
                        f"Proximal: step_size gives a tensor of shape {tuple(step.shape)}; it takes one that broadcasts to the"
                        f" parameter, of shape {tuple(weight.shape)}"
                    )
                yield [(weight, step.expand(weight.shape))], _itself
            return
        rule = steps.RULES[type(self.base_optimizer)]
        found: dict[tuple[Any, ...], tuple[list[runs.Row], StepFor]] = {}
        for p in params:
            numbers, tensors = steps.read(self.state[p])
            key = (p.dtype, p.device, *numbers.values(), *tensors)
            if key not in found:
                found[key] = [], _by_rule(rule, group, numbers, list(tensors))
            found[key][0].append((shards.local(p), *map(shards.local, tensors.values())))
        yield from found.values()


def _shrinking(penalty: Penalty, step_for: StepFor) -> Callable[..., None]:
    def shrink(weight: Tensor, *own: Tensor) -> None:
        weight.copy_(penalty.prox(weight, step_for(*own)))

    return shrink


def _by_rule(rule: steps.Rule, group: dict[str, Any], numbers: dict[str, float | Tensor], names: list[str]) -> StepFor:
    return lambda *own: rule(group, {**numbers, **dict(zip(names, own, strict=True))})


def _always(step: float | Tensor) -> StepFor:
    return lambda: step


def _itself(step: Tensor) -> Tensor:
    return step


def _hand_over(group: dict[str, Any], penalty: Penalty | None) -> None:
    """Penalties are ours and not part of the base optimizer's options, which go into its state dict: numbers only."""
    group.pop("penalty", None)
    if penalty is None:
        group.setdefault("lam", 0.0)
    else:
        group["lam"] = penalty.lam


def _fitted(penalty: Penalty, group: dict[str, Any], index: int) -> Penalty:
    penalty = penalty.with_lam(group.get("lam", penalty.lam))
    for position, p in enumerate(group["params"]):
        name = f"parameter {position} of group {index}"
        penalty.check_fits(p, name)
        if shards.is_sharded(p) and (not isinstance(penalty, Separable) or math.prod(getattr(penalty.lam, "shape", ())) != 1):
            raise ValueError(
                f"Proximal: {name} is sharded; {penalty!r} needs it whole. It takes a separable penalty with one number for lam"
            )
    return penalty
