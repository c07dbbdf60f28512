"""What each operation that is no layer does to units, and which operations there are.

An operation is one of four kinds. It works on each unit alone (activations, pooling); it joins units (sums, concatenation,
flattening); it mixes them, so that all must be at their places (softmax, layer normalization, attention); or it is unknown, and
compaction refuses it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from sparsenn.nn.spectral import SpectralGate
from sparsenn.prune.layers import Dense, Site, batch_norm, dense, gate, prelu
from sparsenn.prune.units import Trace, Units, live_units, map_nested

Rule = Callable[..., Any]


def units_in(*values: Any) -> list[Units]:
    """The units among arguments, however nested."""
    found: list[Units] = []

    def look(value: Any) -> Any:
        if isinstance(value, Units):
            found.append(value)
        return value

    map_nested(values, look)
    return found


def opaque(trace: Trace, result: Any) -> Any:
    """A result, however nested, with units of which nothing is known in the place of its tensors."""
    return map_nested(result, lambda value: trace.opaque(value) if isinstance(value, Tensor) else value)


def mixing(trace: Trace, site: Site, *args: Any, **kwargs: Any) -> Any:
    """Everything that goes in is needed as it was."""
    for units in units_in(args, kwargs):
        trace.demand(units)
    return opaque(trace, site.result)


def transformer(trace: Trace, site: Site, *args: Any, **kwargs: Any) -> Any:
    """PyTorch's own transformers: attention mixes, and between the two linear layers of a block are neurons.

    A block's fast path reads the weights of its linear layers, so these stay plain.
    """
    for block in site.module.modules():
        if isinstance(block, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            _neurons(trace, site, block)
    return mixing(trace, site, *args, **kwargs)


def _neurons(trace: Trace, site: Site, block: Any) -> None:
    inner, outer, activation = block.linear1, block.linear2, block.activation
    rule = MODULES.get(type(activation)) if isinstance(activation, nn.Module) else FUNCTIONS.get(activation)
    done = any(getattr(layer, "module", None) is inner for layer in trace.layers)
    if (
        done
        or rule is None
        or not {inner, outer}.isdisjoint(trace.whole)
        or any(map(parametrize.is_parametrized, (inner, outer)))
    ):
        return
    x, y, z = (torch.empty(1, width, device="meta") for width in (inner.in_features, inner.out_features, outer.out_features))
    neurons = Dense(trace, replace(site, module=inner, result=y), trace.opaque(x), plain=True).out
    active = rule(trace, replace(site, module=activation, result=y), neurons)
    trace.demand(Dense(trace, replace(site, module=outer, result=z), active, plain=True).out)


def unchanged(trace: Trace, site: Site, x: Units, *args: Any, **kwargs: Any) -> Units:
    """Dropout in eval mode, changes of memory."""
    return x


def _cast(trace: Trace, site: Site, x: Units, *args: Any, **kwargs: Any) -> Any:
    """A change of dtype, which rounds the constants too."""
    if not site.result.is_floating_point():
        return mixing(trace, site, x)
    return trace.like(x, x.known.to(site.result.dtype).double())


def _each(function: Callable[..., Tensor]) -> Rule:
    """A function of one number, finite wherever its argument is."""

    def rule(trace: Trace, site: Site, x: Units, *args: Any, **kwargs: Any) -> Any:
        if units_in(args, kwargs):
            return mixing(trace, site, x, *args, **kwargs)
        made = function(torch.where(x.live, 0.0, x.known), *args, **kwargs)
        return trace.like(x, torch.where(x.live, torch.nan, made))

    return rule


def _each_module(trace: Trace, site: Site, x: Units) -> Units:
    return trace.like(x, torch.where(x.live, torch.nan, site.module(torch.where(x.live, 0.0, x.known))))


def _dropout(trace: Trace, site: Site, x: Units, p: float = 0.5, training: bool = True, inplace: bool = False) -> Units:
    if training and p:
        raise site.error("is random in eval mode too; pass it training=self.training, or use nn.Dropout")
    return x


def _pool(dimensions: int, keeps: Callable[[dict[str, Any]], bool] = lambda settings: True) -> Rule:
    """Pooling over the last dimensions; constants other than zero survive where `keeps` says so of the settings."""

    def rule(trace: Trace, site: Site, x: Units, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(site.result, Tensor):  # indices are asked for
            return mixing(trace, site, x)
        x = trace.along(x, len(x.shape) - dimensions - 1)
        settings = vars(site.module) if site.module is not None else dict(zip(_POOL_SETTINGS, args, strict=False)) | kwargs
        known = x.known if keeps(settings) else torch.where(x.known == 0, x.known, torch.nan)
        return trace.like(x, known, site.result.shape)

    return rule


_POOL_SETTINGS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def _average_keeps(settings: dict[str, Any]) -> bool:
    padding = settings.get("padding", 0)
    padded = any(padding) if isinstance(padding, Sequence) else bool(padding)
    return settings.get("divisor_override") is None and not (padded and settings.get("count_include_pad", True))


def _reduce(trace: Trace, site: Site, x: Units, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    """The mean, the largest or the smallest over dimensions."""
    dims = {d % len(x.shape) for d in ([dim] if isinstance(dim, int) else dim or range(len(x.shape)))}
    if x.axis in dims or not isinstance(site.result, Tensor):
        return mixing(trace, site, x)
    axis = x.axis if keepdim else x.axis - sum(d < x.axis for d in dims)
    return trace.like(x, x.known, site.result.shape, axis)


def _flatten(trace: Trace, site: Site, x: Units, start_dim: int = 0, end_dim: int = -1) -> Any:
    rank = len(x.shape)
    if rank == 0:
        return mixing(trace, site, x)
    start, end = start_dim % rank, end_dim % rank
    if start < x.axis <= end:
        return mixing(trace, site, x)
    if start == x.axis:
        return _spread(trace, x, math.prod(x.shape[start + 1 : end + 1]), site.result.shape)
    return trace.like(x, x.known, site.result.shape, x.axis - (end - start if end < x.axis else 0))


def _flatten_module(trace: Trace, site: Site, x: Units) -> Any:
    return _flatten(trace, site, x, site.module.start_dim, site.module.end_dim)


def _spread(trace: Trace, x: Units, times: int, shape: Sequence[int]) -> Units:
    """Each unit with all its places in a row, every one a unit now."""
    flat = Units(tuple(shape), x.axis, x.atoms.repeat_interleave(times), x.known.repeat_interleave(times), x.given)

    def play_back() -> None:
        trace.need(x, (flat.needed & flat.live).view(x.width, times).any(1))

    trace.tape.append(play_back)
    return flat


def reshape(trace: Trace, site: Site, node: fx.Node, x: Units, *sizes: Any) -> Any:
    """``view`` and ``reshape``, where they flatten all from the units on; a number instead of -1 asks for all units."""
    shape = tuple(site.result.shape)
    if len(shape) != x.axis + 1 or shape[:-1] != x.shape[: x.axis]:
        return mixing(trace, site, x)
    written = node.args[1:]
    if len(written) == 1 and isinstance(written[0], (tuple, list)):
        written = tuple(written[0])
    if not written or not (isinstance(written[-1], int) and written[-1] == -1):
        trace.pin(x.atoms)
    return _spread(trace, x, math.prod(x.shape[x.axis + 1 :]), shape)


def _concatenate(trace: Trace, site: Site, tensors: Sequence[Units], dim: int = 0) -> Any:
    axes = {units.axis for units in tensors}
    if len(axes) > 1:
        return mixing(trace, site, tensors)
    axis = dim % len(site.result.shape)
    if axes == {axis}:
        parts = list(tensors)
        made = Units(
            tuple(site.result.shape),
            axis,
            torch.cat([units.atoms for units in parts]),
            torch.cat([units.known for units in parts]),
            all(units.given for units in parts),
        )

        def play_back() -> None:
            needed = (made.needed & made.live).split([units.width for units in parts])
            for units, here in zip(parts, needed, strict=True):
                trace.need(units, here)

        trace.tape.append(play_back)
        return made
    known = tensors[0].known
    for units in tensors[1:]:
        known = torch.where(known == units.known, known, torch.nan)
    return _join(trace, site, list(tensors), known)


def _join(trace: Trace, site: Site, parts: list[Units], known: Tensor) -> Units:
    """A tensor whose units are made of the units of each part at the same place."""
    first = parts[0]
    made = Units(
        tuple(site.result.shape),
        first.axis - len(first.shape) + len(site.result.shape),
        first.atoms,
        known,
        any(part.given for part in parts),
    )

    def play_back() -> None:
        for part in parts:
            trace.need(part, made.needed & made.live)

    for part in parts[1:]:
        trace.tie(first.atoms, part.atoms)
    trace.tape.append(play_back)
    return made


def _of_two(function: Callable[[Any, Any], Any]) -> Rule:
    """A sum, difference, product of two tensors, or of a tensor and a number."""

    def rule(trace: Trace, site: Site, x: Any, other: Any) -> Any:
        if not isinstance(site.result, Tensor) or not all(isinstance(z, (Units, int, float)) for z in (x, other)):
            return mixing(trace, site, x, other)
        tensors = [z for z in (x, other) if isinstance(z, Units)]
        widest = max(tensors, key=lambda units: (units.width, not units.given))
        back = widest.axis - len(widest.shape)  # the dimension of the units from the last
        if not widest.width or widest.width != site.result.shape[back]:
            return mixing(trace, site, x, other)
        parts, values = [], []
        for z in (x, other):
            if not isinstance(z, Units):
                values.append(torch.full((widest.width,), float(z), dtype=torch.float64))
            elif len(z.shape) >= -back and z.shape[back] == widest.width and z.width:
                parts.append(trace.along(z, len(z.shape) + back))
                values.append(parts[-1].known)
            else:  # it is the same for all units, or has none
                trace.demand(z)
                values.append(live_units(widest.width))
        known = function(*values)
        if function is operator.mul:
            known = torch.where((values[0] == 0) | (values[1] == 0), 0.0, known)
        return _join(trace, site, parts, known)

    return rule


def _divide(trace: Trace, site: Site, x: Any, other: Any) -> Any:
    """By a number; a tensor below the line must not get other values than it had, or it could become zero."""
    if isinstance(other, Units):
        return mixing(trace, site, x, other)
    return _of_two(operator.truediv)(trace, site, x, other)


def read_width(trace: Trace, node: fx.Node, x: Units, dim: Any = None) -> None:
    """``x.size(dim)`` and ``x.shape``: who reads the number of units must find all of them."""
    if dim is not None:
        read = {dim}
    else:
        items = [user.args[1] if user.target is operator.getitem else None for user in node.users if user.users]
        read = set(items) if all(isinstance(item, int) for item in items) else {x.axis}
    if x.width and any(d % len(x.shape) == x.axis for d in read):
        trace.pin(x.atoms)


def _functions(names: str) -> list[Callable[..., Any]]:
    spaces = (F, torch, operator)
    return [getattr(space, name) for name in names.split() for space in spaces if hasattr(space, name)]


def _modules(names: str) -> list[type[nn.Module]]:
    return [getattr(nn, name) for name in names.split()]


# Finite at every finite argument: a unit that nobody needs may be given as zero.
_ELEMENTWISE = (
    "relu relu6 leaky_relu elu celu selu gelu silu mish tanh sigmoid softplus softsign hardtanh hardswish hardsigmoid "
    "logsigmoid tanhshrink softshrink hardshrink threshold clamp clip abs absolute neg negative sign sin cos square erf"
)
_IN_PLACE = " ".join(f"{name}_" for name in _ELEMENTWISE.split())
_ELEMENTWISE_MODULES = (
    "ReLU ReLU6 LeakyReLU ELU CELU SELU GELU SiLU Mish Tanh Sigmoid Softplus Softsign Hardtanh Hardswish Hardsigmoid "
    "LogSigmoid Tanhshrink Softshrink Hardshrink Threshold RReLU"
)
_SAME_MODULES = "Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout"
_SAME_METHODS = "clone contiguous detach cpu cuda requires_grad_"
_CASTS = "to float double half bfloat16 int long bool"
_DROPOUTS = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"
_MIXING = (
    "softmax log_softmax softmin layer_norm group_norm rms_norm instance_norm batch_norm local_response_norm normalize "
    "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding pad interpolate "
    "upsample pixel_shuffle pixel_unshuffle channel_shuffle unfold fold scaled_dot_product_attention cosine_similarity "
    "matmul bmm mm mv dot einsum outer baddbmm addmm permute transpose swapaxes movedim squeeze unsqueeze stack chunk "
    "split tensor_split unbind narrow index_select select gather expand expand_as broadcast_to repeat repeat_interleave "
    "tile roll flip sum prod var std norm pow sqrt rsqrt exp log log1p expm1 reciprocal maximum minimum where "
    "masked_fill cumsum topk sort argmax argmin getitem floordiv mod t unflatten type_as new_zeros new_ones zeros_like "
    "ones_like full_like eq ne lt le gt ge view_as reshape_as logsumexp prelu glu max min median any all"
)
_TRANSFORMERS = "TransformerEncoderLayer TransformerEncoder TransformerDecoderLayer TransformerDecoder Transformer"
_MIXING_MODULES = (
    "Softmax Softmax2d LogSoftmax Softmin LayerNorm GroupNorm RMSNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d "
    "LocalResponseNorm MultiheadAttention RNN LSTM GRU RNNCell LSTMCell GRUCell Bilinear ConvTranspose1d ConvTranspose2d "
    "ConvTranspose3d Embedding EmbeddingBag Upsample UpsamplingNearest2d UpsamplingBilinear2d PixelShuffle "
    "PixelUnshuffle ChannelShuffle Fold Unfold Unflatten ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d "
    "ConstantPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d "
    "CircularPad1d CircularPad2d CircularPad3d LPPool1d LPPool2d FractionalMaxPool2d MaxUnpool1d MaxUnpool2d MaxUnpool3d "
    "GLU CosineSimilarity PairwiseDistance"
)

LAYERS: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(_modules("Linear Conv1d Conv2d Conv3d"), dense),
    **dict.fromkeys(_modules("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm"), batch_norm),
    nn.PReLU: prelu,
    SpectralGate: gate,
}
MODULES: dict[type[nn.Module], Rule] = {
    **LAYERS,
    **dict.fromkeys(_modules(_ELEMENTWISE_MODULES), _each_module),
    **dict.fromkeys(_modules(_SAME_MODULES), unchanged),
    **dict.fromkeys(_modules(_MIXING_MODULES), mixing),
    **dict.fromkeys(_modules(_TRANSFORMERS), transformer),
    nn.Flatten: _flatten_module,
}
_BY_NAME: dict[str, Rule] = {  # functions and methods alike
    **dict.fromkeys(_MIXING.split(), mixing),
    **dict.fromkeys(["mean", "amax", "amin"], _reduce),
    "add": _of_two(operator.add),
    **dict.fromkeys(["sub", "subtract"], _of_two(operator.sub)),
    **dict.fromkeys(["mul", "multiply"], _of_two(operator.mul)),
    **dict.fromkeys(["truediv", "div", "divide", "true_divide"], _divide),
    "flatten": _flatten,
}
FUNCTIONS: dict[Any, Rule] = {
    **{function: rule for name, rule in _BY_NAME.items() for function in _functions(name)},
    **dict.fromkeys(_functions(_DROPOUTS), _dropout),
    **{function: _each(function) for function in _functions(f"{_ELEMENTWISE} {_IN_PLACE}")},
    **dict.fromkeys(_functions("cat concat concatenate"), _concatenate),
}
METHODS: dict[str, Rule] = {
    **_BY_NAME,
    **dict.fromkeys(_SAME_METHODS.split(), unchanged),
    **dict.fromkeys(_CASTS.split(), _cast),
    **{name: _each(getattr(torch, name)) for name in _ELEMENTWISE.split() if hasattr(torch, name)},
}
for _d in (1, 2, 3):
    FUNCTIONS[getattr(F, f"avg_pool{_d}d")] = _pool(_d, _average_keeps)
    for _name in ("max_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d"):
        FUNCTIONS[getattr(F, _name.format(_d))] = _pool(_d)
    for _name in ("max_pool{}d_with_indices", "adaptive_max_pool{}d_with_indices"):
        FUNCTIONS[getattr(F, _name.format(_d))] = mixing
    MODULES[getattr(nn, f"AvgPool{_d}d")] = _pool(_d, _average_keeps)
    for _name in ("MaxPool", "AdaptiveAvgPool", "AdaptiveMaxPool"):
        MODULES[getattr(nn, f"{_name}{_d}d")] = _pool(_d)
