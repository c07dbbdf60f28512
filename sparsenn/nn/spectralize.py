"""From plain layers to spectral ones, in place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from sparsenn.nn.selection import Selector, Selectors, check_module, is_named, selected, some_of, walk
from sparsenn.nn.spectral import SpectralConv1d, SpectralConv2d, SpectralLayer, SpectralLinear
from sparsenn.ops.reference import DTYPES

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_SPECTRAL: dict[type[nn.Module], type[SpectralLayer]] = {
    layer.plain: layer for layer in (SpectralLinear, SpectralConv1d, SpectralConv2d)
}


def spectralize(model: ModuleT, *, include: Selectors | None = None, exclude: Selectors = ()) -> ModuleT:
    r"""Give the linear layers and convolutions of a model, in place, their spectral form; the function stays the same.

    .. math:: \varphi = -w, \quad \lambda^{in} = 0, \quad \lambda^{out} = 1
        \qquad\Rightarrow\qquad (\lambda^{in}_i - \lambda^{out}_o)\, \varphi_{oi} = w_{oi}

    ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d`` become :class:`sparsenn.nn.SpectralLinear` and its relatives: φ and λ_out are
    trained, λ_in = 0 is left out, biases stay as they are. The parameters are new, so make the optimizer, wrap the model in DDP
    and compile it *after* this. :func:`collapse` is the way back.

    Args:
        model: The model, changed in place (the objects stay and change their class). Left untouched when an error is raised.
        include: Which layers: a selector or several of them. One is a pattern as in ``fnmatch`` for a layer's qualified name
            (``"encoder.*"``), or a module type (everything inside a module of that type). None means all but those whose weight
            is frozen (``requires_grad=False``), which are taken only where ``include`` selects them; their φ stays frozen.
            Classes that inherit from the three layers are left alone: they may compute in another way.
        exclude: What to leave as it is, in the same form; it wins over ``include``.

    Returns:
        The same model.

    Raises:
        ValueError: for a selector that is neither a pattern nor a module type; a pattern that means no layer; an ``include``
            that selects nothing; a selected layer whose weight is parametrized (factorized, for example), made by a hook (a
            mask of ``torch.nn.utils.prune``), tied to another parameter, not initialized yet (lazy modules), or of another
            dtype than float64, float32, bfloat16 and float16.

    Source: Giambagli et al. 2023, Section 3 (the students S and S_λ start with the same links).

    Example:
        >>> import torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> before = net[0].weight.detach()
        >>> net = sparsenn.spectralize(net, exclude="2")
        >>> [name for name, _ in net.named_parameters()]
        ['0.phi', '0.lambda_out', '0.bias', '2.weight', '2.bias']
        >>> torch.equal(net[0].weight, before)
        True
    """
    check_module("spectralize", model)
    chosen = _select(model, include, exclude)
    owners: dict[int, set[tuple[int, str]]] = {}
    for _, module, _ in walk(model):
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), set()).add((id(module), name))
    for title, layer in chosen:
        if reason := _refusal(layer, owners):
            raise ValueError(f"spectralize: the weight of {title!r} {reason}, or leave the layer out with exclude={title!r}")
    for _, layer in chosen:
        _transform(layer)
    return model


@dataclass
class _Found:
    """A layer, with every path that leads to it and all that it lies in."""

    module: nn.Module
    names: list[str] = field(default_factory=list)
    inside: list[nn.Module] = field(default_factory=list)

    def matches(self, selector: Selector) -> bool:
        if isinstance(selector, type):
            return any(isinstance(module, selector) for module in self.inside)
        return is_named(selector, self.names)

    @property
    def is_trained(self) -> bool:
        """Of a parametrized weight, whether what it is composed of is; what that may be is said where it is refused."""
        return any(p.requires_grad for name, p in self.module.named_parameters() if "bias" not in name)


def _select(model: nn.Module, include: Selectors | None, exclude: Selectors) -> list[tuple[str, nn.Module]]:
    """The layers to change, each with the first path that leads to it."""
    found: dict[int, _Found] = {}
    for path, module, inside in walk(model):
        own = found.setdefault(id(module), _Found(module))
        own.names.append(path)
        own.inside.extend(inside)
    layers = [own for own in found.values() if _spectral_class(own.module) is not None]
    out = selected(layers, exclude, "spectralize: exclude", kinds=())
    wanted = None if include is None else selected(layers, include, "spectralize: include", kinds=())
    chosen = [own for i, own in enumerate(layers) if i not in out and (own.is_trained if wanted is None else i in wanted)]
    if include is not None and not chosen:
        names = some_of([own.names[0] for own in layers]) or "none"
        raise ValueError(f"spectralize: include={include!r} with exclude={exclude!r} selects no layer; the model has {names}")
    return [(own.names[0], own.module) for own in chosen]


def _spectral_class(module: nn.Module) -> type[SpectralLayer] | None:
    """What a layer becomes; None where it is no plain layer. Parametrized and lazy ones have classes of their own."""
    cls = type(module)
    if parametrize.is_parametrized(module) or isinstance(module, nn.modules.lazy.LazyModuleMixin):
        cls = next((base for base in cls.__mro__ if base in _SPECTRAL), cls)
    return _SPECTRAL.get(cls)


def _refusal(layer: nn.Module, owners: dict[int, set[tuple[int, str]]]) -> str | None:
    """Why a layer can't be changed, and the cure; None where it can."""
    if parametrize.is_parametrized(layer):
        return "or bias is parametrized; collapse the model or remove the parametrization first"
    if not {"weight", "bias"} <= layer._parameters.keys():
        return "or bias is made by a hook, such as a mask of torch.nn.utils.prune; remove that first"
    weight = layer._parameters["weight"]
    if weight is None or nn.parameter.is_lazy(weight):
        return "is not initialized yet; run one batch through the model first"
    if weight.dtype not in DTYPES:
        return f"has dtype {weight.dtype}; convert it to float64, float32, bfloat16 or float16"
    if len(owners[id(weight)]) > 1:
        return "is tied to another parameter; give the layer a weight of its own first"
    return None


def _transform(layer: nn.Module) -> None:
    weight = layer.get_parameter("weight")
    layer.__class__ = _SPECTRAL[type(layer)]
    assert isinstance(layer, SpectralLayer)
    layer.adopt(layer, train_phi=weight.requires_grad)
    layer.phi = nn.Parameter(weight.detach().neg(), requires_grad=weight.requires_grad)
    layer.lambda_out.data.fill_(1.0)  # type: ignore[union-attr]
