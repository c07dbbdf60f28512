"""From plain modules to factorized ones and back, in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsenn.nn.factorized import FactorizedLayer
from sparsenn.nn.parametrizations import (
    GROUPS,
    GroupProduct,
    HadamardProduct,
    adapt_class,
    factors_of,
    hadamard_parametrizations_of,
    own_class,
    parametrizations_of,
)
from sparsenn.nn.selection import Selector, Selectors, check_module, join, names_parameter, selected, some_of, walk
from sparsenn.nn.spectral import SPECTRUM, SpectralGate, SpectralLayer
from sparsenn.ops.reference import DTYPES

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_ORDER = "_sparsenn_parameter_order"


def factorize(
    model: ModuleT,
    depth: int,
    factor_init: str = "preserve",
    *,
    include: Selectors | None = None,
    exclude: Selectors = (),
    groups: str | None = None,
) -> ModuleT:
    r"""Replace every parameter of a model, in place, by the product of D factors.

    .. math:: w \;\to\; \omega_1 \odot \dots \odot \omega_D

    With any optimizer, a weight decay of 2λ/D on the factors then trains the model under the penalty λ‖w‖_{2/D}^{2/D}. The
    factors become the parameters, so make the optimizer, wrap the model in DDP and compile it *after* this. :func:`collapse` is
    the way back. :class:`sparsenn.optim.FactorizedSGD` trains an unchanged model in the same way.

    Any module will do, its weights and its biases alike: linear and convolution, normalization, embeddings, attention,
    recurrent nets, ``ParameterList`` and ``ParameterDict``, parameters of your own modules. Where a module reads a weight
    several times in one forward pass (LSTM, GRU, attention), ``with torch.nn.utils.parametrize.cached():`` around it saves
    products. An average of the model (``torch.optim.swa_utils.AveragedModel``) averages factors, not products. Save the
    ``state_dict``: torch pickles no parametrized module.

    Tied parameters, one ``Parameter`` under several names, stay tied: their factors are one, and one parametrization stands
    under both names. ``torch.func.functional_call`` needs ``tie_weights=False`` then: it would put values in its place twice,
    and leave the first ones in the model.

    With ``groups`` all factors but one are a number for each row, column, filter or channel, as in
    :class:`sparsenn.nn.GroupProduct`: the penalty is then :math:`\lambda \sum_G \|w_G\|_2^{2/D}`, and whole groups die. Only
    weights that have such groups are factorized, matrices for rows and columns, weights of 3 to 5 dimensions for filters and
    channels; leave out the last layer where its rows are the outputs. A second call may factorize the others in another way.

    Args:
        model: The model, changed in place. Left untouched when an error is raised.
        depth: D, the number of factors, an int ≥ 1.
        factor_init: How a weight becomes factors, one of :data:`sparsenn.init.FACTOR_INITS`. ``"preserve"`` and ``"root"`` keep
            the function of the model (``"preserve"`` but for a floor of 1e-4 on |w| at D ≥ 2, so that zeros can learn); for the
            others each weight becomes the product of what was drawn. After a balanced start (``"root"``) a zero stays zero
            and, at even D, a weight keeps its sign.
        include: What to factorize: a selector or several of them. One is a kind or a pattern as for
            :func:`sparsenn.optim.param_groups` (``"bias"``, ``"norm"``, ``"embedding"``; ``"encoder.*"``, ``"*.weight"``), or a
            module type: everything *inside* a module of that type, where ``param_groups`` takes what it owns itself. None means
            all but frozen parameters (``requires_grad=False``), which are factorized only where ``include`` selects them. Only
            floating parameters are ever factorized; buffers never.
        exclude: What to leave as it is, in the same form; it wins over ``include``.
        groups: None for factors of the weight's shape; ``"rows"``, ``"columns"``, ``"filters"`` or ``"channels"`` for factors
            that these share. ``"preserve"`` and ``"root"`` are the inits then, and both keep zeros.

    Returns:
        The same model.

    Raises:
        ValueError: for a depth that is not an int ≥ 1; an unknown ``factor_init``, or one that groups do not take; unknown
            groups, or a model without a weight that has such; a selector that is neither a string nor a module type; a pattern
            that means no parameter; an ``include`` that selects nothing; a tied parameter of which only some names are
            selected; a selected parameter that is already factorized or parametrized otherwise, is not initialized yet (lazy
            modules), has another dtype than float64, float32, bfloat16 and float16, belongs to an embedding with ``sparse`` or
            ``max_norm`` (which need the stored weight itself) or to a scripted module, or has a name that a parametrization
            cannot carry; a weight that ``factor_init`` refuses, such as one that holds NaN.

    Source: Kolb et al. 2025, Definition 2.

    Example:
        >>> import torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> net = sparsenn.factorize(net, depth=3, exclude="bias")
        >>> [name for name, _ in net[2].named_parameters()]  # doctest: +NORMALIZE_WHITESPACE
        ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1',
         'parametrizations.weight.original2']
        >>> opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2 * 1e-4 / 3)
    """
    check_module("factorize", model)
    make = functools.partial(_product_of, depth, factor_init, groups)
    make()
    slots = _slots(model)
    if groups is not None and not any(slot.may_have(groups) for slot in slots):
        dims = " or ".join(map(str, GROUPS[groups][0]))
        raise ValueError(f"factorize: the model has no weight with {groups}; these take {dims} dimensions")
    chosen = _select(slots, include, exclude, groups)
    for slot in chosen:
        if reason := _refusal(slot):
            raise ValueError(f"factorize: {slot.title!r} {reason}, or leave it out with exclude={slot.title!r}")
    _all_or_nothing(_ties(slots, chosen), make)
    return model


def _product_of(depth: int, factor_init: str, groups: str | None) -> HadamardProduct:
    return HadamardProduct(depth, factor_init) if groups is None else GroupProduct(depth, groups, factor_init)


def collapse(model: ModuleT, threshold: float = torch.finfo(torch.float32).eps) -> ModuleT:
    r"""Turn a model, in place, into plain modules with exact zeros.

    .. math:: w_i = \begin{cases} 0 & |\omega_{1,i} \cdots \omega_{D,i}| \le \tau \\
                                  \omega_{1,i} \cdots \omega_{D,i} & \text{otherwise} \end{cases}

    Every factorized parameter becomes a plain one that holds its product, and ``Hadamard*`` layers become the plain layers of
    torch. The threshold then acts on all floating parameters of plain modules too, as for a model trained with
    :class:`sparsenn.optim.FactorizedSGD`: factors only come near zero, this makes the zeros exact. A zero is +0; NaN stays NaN.
    Tied parameters stay tied, frozen ones stay frozen, and the parameters stand in the order they had before
    :func:`factorize`. Buffers and parameters behind other parametrizations are left alone. Make a new optimizer afterwards.

    ``Spectral*`` layers become plain ones that hold the composed weight. The threshold acts neither on φ and λ nor on what is
    composed of them, unless φ or λ were factorized themselves; a ``SpectralGate`` stays as it is. Layers with a common φ get a
    weight each.

    Args:
        model: The model, changed in place (the object stays, so a lone ``HadamardLinear`` changes its class).
        threshold: τ ≥ 0. The default is the machine epsilon of float32, 1.19e-7, as in the paper; 0 only gives a zero its sign.

    Returns:
        The same model.

    Raises:
        TypeError: for anything else than a module.
        ValueError: for a negative or NaN threshold, a factorized parameter with another parametrization on top, or a spectral
            layer under a mask of ``torch.nn.utils.prune``; the model is then untouched.

    Source: Kolb et al. 2025, Definition 2 and Section 4.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.HadamardLinear(3, 1, bias=False, depth=2, factor_init="root")
        >>> layer.weight = torch.tensor([[0.25, 1e-9, -4.0]])
        >>> sparsenn.collapse(layer).weight.tolist()
        [[0.25, 0.0, -4.0]]
    """
    check_module("collapse", model)
    if not threshold >= 0:
        raise ValueError(f"collapse: threshold is {threshold!r}; it takes a number >= 0")
    modules = {id(module): (path, module) for path, module, _ in walk(model)}
    for path, module in modules.values():
        _refuse_chains(path, module)
        _refuse_masks(path, module)
    products: dict[tuple[int, ...], nn.Parameter] = {}
    with torch.no_grad():
        for _, module in modules.values():
            collapse_module(module, threshold, products)
    return model


@functools.singledispatch
def collapse_module(module: nn.Module, threshold: float, products: dict[tuple[int, ...], nn.Parameter]) -> None:
    """The rule of :func:`collapse` for one module without its children; `products` holds what tied factors have become.

    A class whose parameters are not weights, so that the threshold must not touch them, registers a rule of its own:
    ``@collapse_module.register``.
    """
    _multiply_out(module, products)
    _zero_below(threshold, _own(module).values())
    if isinstance(module, FactorizedLayer):
        module.become_plain()


@collapse_module.register
def _(module: SpectralLayer, threshold: float, products: dict[tuple[int, ...], nn.Parameter]) -> None:
    """The composed weight takes the spectrum's place as it is; small is only what was factorized."""
    factorized = {name for name, _ in hadamard_parametrizations_of(module)}
    _multiply_out(module, products)
    if type(module).__dict__.get("plain") is not None and not parametrize.is_parametrized(module):
        module.become_plain(module.weight)
    small = {"weight" if name in SPECTRUM else name for name in factorized}
    _zero_below(threshold, (p for name, p in _own(module).items() if name in small))


@collapse_module.register
def _(module: SpectralGate, threshold: float, products: dict[tuple[int, ...], nn.Parameter]) -> None:
    """A gate stays: the eigenvalues of what lies before it are no weights of its own."""
    _multiply_out(module, products)


def _multiply_out(module: nn.Module, products: dict[tuple[int, ...], nn.Parameter]) -> None:
    """Put products in the place of factors."""
    for name, parametrization in list(hadamard_parametrizations_of(module)):
        key = tuple(id(factor) for factor in factors_of(parametrization))
        if key not in products:
            products[key] = _product(parametrization)
        _unregister(module, name, products[key])
    _restore_order(module)


def _zero_below(threshold: float, parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        if _has_values(parameter):
            parameter.masked_fill_(parameter.abs() <= threshold, 0.0)


def _product(parametrization: parametrize.ParametrizationList) -> nn.Parameter:
    trainable = any(factor.requires_grad for factor in factors_of(parametrization))
    return nn.Parameter(parametrization(), requires_grad=trainable)


def _has_values(parameter: Tensor) -> bool:
    return parameter.dtype in DTYPES and not nn.parameter.is_lazy(parameter)


def _refuse_chains(path: str, module: nn.Module) -> None:
    for name, parametrization in hadamard_parametrizations_of(module):
        if len(parametrization) > 1:
            title = join(path, name)
            raise ValueError(
                f"collapse: {title!r} carries {type(parametrization[1]).__name__} on top of its factors; remove it first with "
                f"torch.nn.utils.parametrize.remove_parametrizations"
            )


def _refuse_masks(path: str, module: nn.Module) -> None:
    known = {*module._parameters, *(name for name, _ in parametrizations_of(module))}
    for name in SPECTRUM if isinstance(module, SpectralLayer) else ():
        if name not in known:
            raise ValueError(
                f"collapse: {join(path, name)!r} is made by a hook, such as a mask of torch.nn.utils.prune; remove that first"
            )


@dataclass
class _Slot:
    """A parameter's place: a module and a name in it."""

    module: nn.Module
    name: str
    parameter: nn.Parameter | None  # None where a parametrization stands in its place
    names: list[str] = field(default_factory=list)  # by every path that leads there
    inside: list[nn.Module] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.names[0]

    @property
    def parametrization(self) -> parametrize.ParametrizationList | None:
        return dict(parametrizations_of(self.module)).get(self.name)

    @property
    def stored(self) -> list[Tensor]:
        """The floating parameters behind this slot; none for a parametrized buffer."""
        parametrization = self.parametrization
        tensors = [self.parameter] if parametrization is None else parametrization.parameters(recurse=False)
        return [tensor for tensor in tensors if tensor is not None and tensor.is_floating_point()]

    def may_have(self, groups: str | None) -> bool:
        """Whether it is floating and has such groups, or may have them once it is initialized."""
        if not self.stored:
            return False
        first = self.stored[0]  # of factors, which has the shape of the product
        return groups is None or nn.parameter.is_lazy(first) or first.dim() in GROUPS[groups][0]

    def matches(self, selector: Selector) -> bool:
        if isinstance(selector, type):
            return any(isinstance(module, selector) for module in self.inside)
        return names_parameter(selector, self.names, (self.module,))


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _slots(model: nn.Module) -> list[_Slot]:
    slots: dict[tuple[int, str], _Slot] = {}
    for path, module, inside in walk(model):
        own = _own(module)
        for name in [*dict(parametrizations_of(module)), *own]:
            slot = slots.setdefault((id(module), name), _Slot(module, name, own.get(name)))
            slot.names.append(join(path, name))
            slot.inside.extend(inside)
    return list(slots.values())


def _select(slots: list[_Slot], include: Selectors | None, exclude: Selectors, groups: str | None) -> list[_Slot]:
    """What to factorize. A selector may name any parameter of the model, be it one without groups or of integers."""
    out = selected(slots, exclude, "factorize: exclude")
    if include is None:
        wanted = {i for i, slot in enumerate(slots) if any(tensor.requires_grad for tensor in slot.stored)}
    else:
        wanted = selected(slots, include, "factorize: include")
    chosen = [slot for i, slot in enumerate(slots) if i in wanted and i not in out and slot.may_have(groups)]
    if include is not None and not chosen:
        names = some_of([slot.title for slot in slots if slot.may_have(groups)])
        rules = f"include={include!r} with exclude={exclude!r}"
        raise ValueError(f"factorize: {rules} selects no parameter; the model has {names or 'none'}")
    return chosen


def _ties(slots: list[_Slot], wanted: list[_Slot]) -> list[list[_Slot]]:
    """The selected slots, those of one parameter together; refuses a parameter of which only some slots are selected."""
    ties: dict[int, list[_Slot]] = {}
    for slot in slots:
        if slot.parameter is not None:
            ties.setdefault(id(slot.parameter), []).append(slot)
    chosen = {id(slot) for slot in wanted}
    groups = []
    for tie in ties.values():
        inside = [slot for slot in tie if id(slot) in chosen]
        outside = [slot for slot in tie if id(slot) not in chosen]
        if inside and outside:
            raise ValueError(
                f"factorize: {inside[0].title!r} and {outside[0].title!r} are one tied parameter, but only the first is "
                f"selected; select both or neither"
            )
        if inside:
            groups.append(inside)
    return groups


def _refusal(slot: _Slot) -> str | None:
    """Why a selected parameter cannot be factorized, and the cure; None where it can."""
    module, parameter = slot.module, slot.parameter
    if slot.parametrization is not None:
        first = slot.parametrization[0]
        if isinstance(first, HadamardProduct):
            return f"is already factorized (depth {first.depth}); collapse the model first"
        return f"carries the parametrization {type(first).__name__}; remove it first"
    if parameter is None or nn.parameter.is_lazy(parameter):
        return "is not initialized yet; run one batch through the model first"
    if parameter.dtype not in DTYPES:
        return f"has dtype {parameter.dtype}; convert it to float64, float32, bfloat16 or float16"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (module.sparse or module.max_norm is not None):
        return "belongs to an embedding with sparse or max_norm, which needs the stored weight itself; turn these off"
    if isinstance(module, torch.jit.ScriptModule):
        return "belongs to a scripted module; use the module that was scripted"
    if hasattr(type(module), slot.name) or hasattr(nn.ModuleDict(), slot.name):
        return "has the name of an attribute of its module or of nn.ModuleDict, which holds parametrizations; rename it"
    return None


def _all_or_nothing(groups: list[list[_Slot]], make: Callable[[], HadamardProduct]) -> None:
    done: list[tuple[_Slot, Any]] = []
    try:
        for group in groups:
            parameter = group[0].parameter
            for slot in group:
                _register(slot, group[0], make)
                done.append((slot, parameter))
    except BaseException as error:
        for slot, parameter in reversed(done):
            _unregister(slot.module, slot.name, parameter)
            _restore_order(slot.module)
        if isinstance(error, ValueError):
            raise ValueError(f"factorize: {group[0].title!r} cannot be split: {error}") from error
        raise


def _register(slot: _Slot, first: _Slot, make: Callable[[], HadamardProduct]) -> None:
    """Put factors in the place of a parameter; the second name of a tied parameter gets the factors of the first."""
    module, name = slot.module, slot.name
    order = tuple(module._parameters)
    own_class(module)
    parametrize.register_parametrization(module, name, make() if slot is first else nn.Identity())
    if slot is not first:
        module.parametrizations[name] = first.parametrization  # type: ignore[operator, index, assignment]
    module.__dict__.setdefault(_ORDER, order)
    adapt_class(module)


def _unregister(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a plain parameter in the place of a parametrization."""
    own_class(module)
    parametrize.remove_parametrizations(module, name)
    delattr(module, name)  # torch leaves a buffer where the factors are frozen
    module.register_parameter(name, parameter)


def _restore_order(module: nn.Module) -> None:
    """Sort the parameters as they were before `factorize`: optimizers count on their order."""
    order = module.__dict__.get(_ORDER, ())
    for name in order:
        if name in module._parameters:
            module._parameters[name] = module._parameters.pop(name)
    if not any(hadamard_parametrizations_of(module)):
        module.__dict__.pop(_ORDER, None)
