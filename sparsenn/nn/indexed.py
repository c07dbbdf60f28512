"""Layers that read only some of their input's units and write only some of their output's; the others are constants."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class IndexedLayer(nn.Module):
    """What the indexed layers share; comes before the plain layer among the bases."""

    plain: ClassVar[type[nn.Module]]
    unit_axis: ClassVar[int]  # from the last dimension, so that unbatched inputs work too
    weight: Any
    bias: Any
    inputs: int
    input_index: Tensor | None
    output_index: Tensor | None
    output_fill: Tensor | None

    def __init__(
        self,
        *args: Any,
        inputs: int | None = None,
        input_index: Tensor | None = None,
        output_index: Tensor | None = None,
        output_fill: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._index(inputs, input_index, output_index, output_fill)

    def _index(
        self, inputs: int | None, input_index: Tensor | None, output_index: Tensor | None, output_fill: Tensor | None
    ) -> None:
        rows, columns = self.weight.shape[:2]
        name = type(self).__name__
        if getattr(self, "groups", 1) != 1:
            raise ValueError(f"{name}: groups is {self.groups}; it takes 1")
        if (input_index is None) != (inputs is None):
            raise ValueError(f"{name}: inputs and input_index are given together or not at all")
        if (output_index is None) != (output_fill is None):
            raise ValueError(f"{name}: output_index and output_fill are given together or not at all")
        if input_index is not None and inputs is not None:
            _check_index(name, "input_index", input_index, columns, inputs)
        if output_index is not None and output_fill is not None:
            _check_index(name, "output_index", output_index, rows, output_fill.numel())
        self.inputs = columns if inputs is None else inputs
        device = self.weight.device
        self.register_buffer("input_index", None if input_index is None else input_index.to(device))
        self.register_buffer("output_index", None if output_index is None else output_index.to(device))
        fill = None if output_fill is None else output_fill.to(device, self.weight.dtype)
        self.register_buffer("output_fill", fill)

    @property
    def outputs(self) -> int:
        """Number of units of the output."""
        return self.weight.shape[0] if self.output_fill is None else self.output_fill.numel()

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        if self.input_index is not None:
            x = x.index_select(self.unit_axis, self.input_index)
        y = super().forward(x)
        if self.output_index is None or self.output_fill is None:
            return y
        shape = list(y.shape)
        shape[self.unit_axis] = self.outputs
        fill = self.output_fill.to(y.dtype).view(-1, *[1] * (-self.unit_axis - 1))
        return fill.expand(shape).index_copy(self.unit_axis, self.output_index, y)

    @torch.no_grad()
    def become_plain(self) -> None:
        """Turn into the plain layer with the same function, in place: zeros where nothing is read, constants as biases."""
        rows, columns = self.weight.shape[:2]
        device = self.weight.device
        read = torch.arange(columns, device=device) if self.input_index is None else self.input_index
        written = torch.arange(rows, device=device) if self.output_index is None else self.output_index
        weight = self.weight.new_zeros(self.outputs, self.inputs, *self.weight.shape[2:])
        weight[written[:, None], read] = self.weight
        fill = self.weight.new_zeros(self.outputs) if self.output_fill is None else self.output_fill.clone()
        fill[written] = 0 if self.bias is None else self.bias
        bias = None if self.bias is None and not fill.any() else nn.Parameter(fill, self.weight.requires_grad)
        self.weight, self.bias = nn.Parameter(weight, self.weight.requires_grad), bias
        for name in ("input_index", "output_index", "output_fill"):
            del self._buffers[name]
        del self.inputs
        self.__class__ = self.plain  # type: ignore[assignment]
        _set_widths(self)

    def extra_repr(self) -> str:
        """The plain layer's settings, then the widths of input and output where they differ."""
        text = super().extra_repr()
        if self.input_index is not None:
            text += f", inputs={self.inputs}"
        return text if self.output_index is None else f"{text}, outputs={self.outputs}"


class IndexedLinear(IndexedLayer, nn.Linear):
    r"""``torch.nn.Linear`` between some units of its input and some of its output.

    .. math:: y_{o_i} = \sum_j W_{ij}\, x_{e_j} + b_i, \qquad y_k = c_k \text{ for every other } k

    What :func:`sparsenn.prune.compact` makes of a layer whose input or output must keep its width.

    Args:
        in_features: Number of columns of the weight, the units that are read.
        out_features: Number of rows of the weight, the units that are computed.
        bias: Whether there is a bias.
        inputs: Width of the input; given with ``input_index``.
        input_index: e, the units that are read, ``in_features`` distinct integers; None for all.
        output_index: o, the units that are computed, ``out_features`` distinct integers; None for all.
        output_fill: c, one number for each unit of the output; given with ``output_index``.
        device: Where the parameters live.
        dtype: Their floating-point type.

    Shape:
        Input (\*, inputs), output (\*, width), where the width is the length of ``output_fill`` or else ``out_features``.

    Raises:
        ValueError: for an index without its width, of the wrong length, out of range or with repetitions.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.IndexedLinear(1, 1, bias=False, inputs=3, input_index=torch.tensor([2]),
        ...                                   output_index=torch.tensor([0]), output_fill=torch.tensor([0.0, 7.0]))
        >>> _ = layer.weight.data.fill_(10.0)
        >>> layer(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [30.0, 7.0]
    """

    plain = nn.Linear
    unit_axis = -1


class IndexedConv1d(IndexedLayer, nn.Conv1d):
    r"""``torch.nn.Conv1d`` between some channels of its input and some of its output; see :class:`IndexedLinear`.

    .. math:: y_{o_i} = \sum_j W_{ij} \star x_{e_j} + b_i, \qquad y_k = c_k \text{ for every other } k

    Takes what ``nn.Conv1d`` takes (``groups`` 1) and the indices of :class:`IndexedLinear`.

    Shape:
        Input (N, inputs, L) or (inputs, L), output of ``nn.Conv1d`` with the width of :class:`IndexedLinear`.

    Raises:
        ValueError: as :class:`IndexedLinear`, and for groups.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.IndexedConv1d(1, 4, 3, inputs=5, input_index=torch.tensor([2]))
        >>> layer(torch.randn(2, 5, 12)).shape
        torch.Size([2, 4, 10])
    """

    plain = nn.Conv1d
    unit_axis = -2


class IndexedConv2d(IndexedLayer, nn.Conv2d):
    r"""``torch.nn.Conv2d`` between some channels of its input and some of its output; see :class:`IndexedLinear`.

    .. math:: y_{o_i} = \sum_j W_{ij} \star x_{e_j} + b_i, \qquad y_k = c_k \text{ for every other } k

    Takes what ``nn.Conv2d`` takes (``groups`` 1) and the indices of :class:`IndexedLinear`.

    Shape:
        Input (N, inputs, H, W) or (inputs, H, W), output of ``nn.Conv2d`` with the width of :class:`IndexedLinear`.

    Raises:
        ValueError: as :class:`IndexedLinear`, and for groups.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.IndexedConv2d(3, 1, 3, output_index=torch.tensor([1]), output_fill=torch.zeros(4))
        >>> layer(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 4, 6, 6])
    """

    plain = nn.Conv2d
    unit_axis = -3


class IndexedConv3d(IndexedLayer, nn.Conv3d):
    r"""``torch.nn.Conv3d`` between some channels of its input and some of its output; see :class:`IndexedLinear`.

    .. math:: y_{o_i} = \sum_j W_{ij} \star x_{e_j} + b_i, \qquad y_k = c_k \text{ for every other } k

    Takes what ``nn.Conv3d`` takes (``groups`` 1) and the indices of :class:`IndexedLinear`.

    Shape:
        Input (N, inputs, D, H, W) or (inputs, D, H, W), output of ``nn.Conv3d`` with the width of :class:`IndexedLinear`.

    Raises:
        ValueError: as :class:`IndexedLinear`, and for groups.

    Example:
        >>> import torch, sparsenn
        >>> layer = sparsenn.nn.IndexedConv3d(1, 2, 3, inputs=4, input_index=torch.tensor([3]))
        >>> layer(torch.randn(1, 4, 5, 5, 5)).shape
        torch.Size([1, 2, 3, 3, 3])
    """

    plain = nn.Conv3d
    unit_axis = -4


_INDEXED: dict[type[nn.Module], type[IndexedLayer]] = {
    cls.plain: cls for cls in (IndexedLinear, IndexedConv1d, IndexedConv2d, IndexedConv3d)
}


def unit_axis(layer: nn.Module) -> int:
    """The dimension of a plain layer's input and output that its units lie on, counted from the last."""
    return _INDEXED[type(layer)].unit_axis


@torch.no_grad()
def narrow_(
    layer: Any,
    weight: Tensor,
    bias: Tensor | None,
    *,
    inputs: int,
    input_index: Tensor | None,
    output_index: Tensor | None,
    output_fill: Tensor | None,
) -> None:
    """Give a plain linear layer or convolution a smaller weight, in place; with indices it becomes an indexed layer."""
    trainable = (layer.weight if layer.bias is None else layer.bias).requires_grad
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
    layer.bias = None if bias is None else nn.Parameter(bias, trainable)
    _set_widths(layer)
    if input_index is not None or output_index is not None:
        layer.__class__ = _INDEXED[type(layer)]
        layer._index(None if input_index is None else inputs, input_index, output_index, output_fill)


def _set_widths(layer: Any) -> None:
    rows, columns = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = rows, columns
    else:
        layer.out_channels, layer.in_channels = rows, columns * layer.groups


def _check_index(layer: str, name: str, index: Tensor, length: int, width: int) -> None:
    if index.dtype != torch.int64 or index.shape != (length,):
        raise ValueError(f"{layer}: {name} has dtype {index.dtype} and shape {tuple(index.shape)}; it takes int64, ({length},)")
    if length and not (int(index.min()) >= 0 and int(index.max()) < width and index.unique().numel() == length):
        raise ValueError(f"{layer}: {name} is {index.tolist()}; it takes distinct integers from 0 to {width - 1}")
