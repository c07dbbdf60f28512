"""The layers that compaction makes smaller: what they do to units, and how they are rewritten."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsenn.nn.indexed import narrow_, unit_axis
from sparsenn.prune.units import Trace, Units, round_up

# An index moves data, a unit that stays as zeros is computed: the index pays where it saves this share of the width.
_INDEX_SAVES = 0.25


@dataclass(frozen=True)
class Site:
    """A step of the network: its name for messages, the module or None, and the tensor that it gave."""

    title: str
    module: Any
    result: Any

    def error(self, why: str) -> ValueError:
        """What compaction cannot do here."""
        return ValueError(f"compact: {self.title} {why}")


class Dense:
    """A linear layer or a convolution without groups.

    What a constant input gives to the output is a number for each row, which goes into the bias. Where a convolution pads its
    input with zeros it is no constant near the border; then the columns of all constants other than zero become one column, of
    one constant that stays.

    Where something reads the layer's weight past its forward, it must stay a plain one: it is never indexed then.
    """

    def __init__(self, trace: Trace, site: Site, x: Units, *, plain: bool = False) -> None:
        self.module = site.module
        self.plain = plain
        self.x = trace.along(x, len(x.shape) + unit_axis(site.module))
        weight, bias = self.module.weight.detach(), self.module.bias
        self.constant = self.x.known.nan_to_num()  # the value of each known unit, 0 for the others
        self.padded = _pads_with_zeros(self.module)
        moving = self.x.live | (self.padded & (self.constant != 0))
        self.folded = _product(weight, self.constant)
        value = self.folded if bias is None else self.folded + _double(bias)
        known = torch.where(_rows_that_read(weight, moving), torch.nan, value)
        self.out = trace.fresh(tuple(site.result.shape), len(site.result.shape) + unit_axis(self.module), known)
        self.read = torch.zeros(self.x.width, dtype=torch.bool)
        self.carrier: int | None = None
        trace.layers.append(self)
        trace.tape.append(lambda: self._play_back(trace))

    def _play_back(self, trace: Trace) -> None:
        self.read = _columns_read_by(self.module.weight.detach(), self.out.needed & self.out.live)
        self.x.needed |= self.read & self.x.live
        leaks = self.read & (self.constant != 0)
        if self.padded and leaks.any():
            self.carrier = int(torch.where(leaks, self.constant.abs(), -1.0).argmax())
            trace.pin(self.x.atoms[self.carrier])

    @torch.no_grad()
    def rewrite(self, stay: Tensor, round_to: int) -> None:
        """Make the layer smaller, in place, for tensors that keep the units that stay."""
        inputs, outputs = stay[self.x.atoms], stay[self.out.atoms]
        computed = self.out.needed & self.out.live & outputs
        wanted = self.read & self.x.live & inputs
        if self.carrier is not None:
            wanted[self.carrier] = True
        rows = outputs if self.plain else _choose(computed, outputs, round_to)
        columns = inputs if self.plain else _choose(wanted, inputs, round_to, always=self.x.given)
        if rows.all() and columns.all() and bool(computed.all()) and bool(wanted.all()) and not self.constant.any():
            return
        device = self.module.weight.device
        bias = torch.where(computed, self.folded * (not self.padded), self.out.known.nan_to_num() * ~computed)
        if self.module.bias is not None:
            bias = bias + torch.where(computed, _double(self.module.bias), 0.0)
        narrow_(
            self.module,
            self._weight(rows, columns, computed, wanted),
            None if self.module.bias is None and not bias[rows].any() else bias[rows].to(device, self.module.weight.dtype),
            inputs=int(inputs.sum()),
            input_index=None if torch.equal(columns, inputs) else columns[inputs].nonzero().flatten(),
            output_index=None if torch.equal(rows, outputs) else rows[outputs].nonzero().flatten(),
            output_fill=None if torch.equal(rows, outputs) else self.out.known.nan_to_num()[outputs],
        )

    def _weight(self, rows: Tensor, columns: Tensor, computed: Tensor, wanted: Tensor) -> Tensor:
        weight = self.module.weight.detach()
        small = _select(_select(weight, rows, 0), columns, 1)
        if self.carrier is not None:
            share = self.constant / self.constant[self.carrier]
            carried = (share != 0).nonzero().flatten().to(weight.device)
            columns_of = _select(weight, rows, 0).index_select(1, carried).double()
            share = share.to(weight.device)[carried].view(-1, *[1] * (weight.dim() - 2))
            small[:, int(columns[: self.carrier].sum())] = (columns_of * share).sum(1).to(weight.dtype)
        for dim, kept in enumerate((computed[rows], wanted[columns])):
            if not kept.all():
                small.index_fill_(dim, (~kept).nonzero().flatten().to(weight.device), 0)
        return small


class Grouped:
    """A convolution with groups: a group stays or goes as one, its inputs with its outputs."""

    def __init__(self, trace: Trace, site: Site, x: Units) -> None:
        self.module = site.module
        self.x = trace.along(x, len(x.shape) + unit_axis(site.module))
        weight, groups = self.module.weight.detach(), self.module.groups
        constant = self.x.known.nan_to_num().view(groups, -1)
        moving = self.x.live.view(groups, -1) | (_pads_with_zeros(self.module) & (constant != 0))
        blocks = weight.unflatten(0, (groups, -1))
        reads = [_rows_that_read(block, here) for block, here in zip(blocks, moving, strict=True)]
        value = torch.cat([_product(block, here) for block, here in zip(blocks, constant, strict=True)])
        if self.module.bias is not None:
            value = value + _double(self.module.bias)
        known = torch.where(torch.cat(reads), torch.nan, value)
        self.out = trace.fresh(tuple(site.result.shape), self.x.axis, known)
        own = self.out.atoms.view(groups, -1)
        for atoms in (self.x.atoms.view(groups, -1), own):
            trace.tie(atoms, own[:, :1].expand_as(atoms))
        trace.layers.append(self)
        trace.tape.append(self._play_back)

    def _play_back(self) -> None:
        blocks = self.module.weight.detach().unflatten(0, (self.module.groups, -1))
        rows = (self.out.needed & self.out.live).view(self.module.groups, -1)
        read = [_columns_read_by(block, here) for block, here in zip(blocks, rows, strict=True)]
        self.x.needed |= torch.cat(read) & self.x.live

    @torch.no_grad()
    def rewrite(self, stay: Tensor, round_to: int) -> None:
        """Make the layer smaller, in place, for tensors that keep the units that stay."""
        rows = stay[self.out.atoms]
        if rows.all():
            return
        self.module.groups = int(rows.view(self.module.groups, -1)[:, 0].sum())
        bias = None if self.module.bias is None else _select(self.module.bias.detach(), rows, 0)
        weight = _select(self.module.weight.detach(), rows, 0)
        narrow_(self.module, weight, bias, inputs=0, input_index=None, output_index=None, output_fill=None)


class Channels:
    """Parameters and statistics with one number for each unit, of batch normalization, a PReLU, a gate."""

    def __init__(self, trace: Trace, module: nn.Module, units: Units, names: tuple[str, ...], width: str) -> None:
        self.module: Any = module
        self.units = units
        self.names = names
        self.width = width
        trace.layers.append(self)

    @torch.no_grad()
    def rewrite(self, stay: Tensor, round_to: int) -> None:
        """Drop the numbers of the units that go."""
        left = stay[self.units.atoms]
        if left.all():
            return
        setattr(self.module, self.width, int(left.sum()))
        for name in self.names:
            tensor = getattr(self.module, name)
            if isinstance(tensor, nn.Parameter):
                setattr(self.module, name, nn.Parameter(_select(tensor.detach(), left, 0), tensor.requires_grad))
            elif tensor is not None:
                setattr(self.module, name, _select(tensor, left, 0))


def dense(trace: Trace, site: Site, x: Units) -> Units:
    """``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d``."""
    kind = Grouped if getattr(site.module, "groups", 1) > 1 else Dense
    return kind(trace, site, x).out


def batch_norm(trace: Trace, site: Site, x: Units) -> Units:
    """``nn.BatchNorm1d`` to ``3d`` as in eval mode: y = scale · x + shift for each channel."""
    norm = site.module
    x = trace.along(x, 1)
    gamma = torch.ones(x.width, dtype=torch.float64) if norm.weight is None else _double(norm.weight)
    beta = torch.zeros(x.width, dtype=torch.float64) if norm.bias is None else _double(norm.bias)
    if norm.running_mean is None:  # it normalizes by the batch in eval mode too, and a constant becomes 0
        known = torch.where(x.live & (gamma != 0), torch.nan, beta)
    else:
        scale = gamma / (_double(norm.running_var) + norm.eps).sqrt()
        constants = ~x.live & (gamma != 0)
        if norm in trace.training and constants.any():
            raise site.error(
                f"is in training mode, and constant channels reach it ({_some(constants)}): with its running statistics they "
                "become other constants than with those of a batch; call model.eval() first"
            )
        known = torch.where(gamma == 0, beta, scale * (x.known - _double(norm.running_mean)) + beta)
    out = trace.like(x, known)
    Channels(trace, norm, out, ("weight", "bias", "running_mean", "running_var"), "num_features")
    return out


def gate(trace: Trace, site: Site, x: Units) -> Units:
    """``SpectralGate``: y = λ x for each channel."""
    x = trace.along(x, site.module.dim % len(x.shape))
    eigenvalues = _double(site.module.lambda_out)
    out = trace.like(x, torch.where(eigenvalues == 0, 0.0, eigenvalues * x.known))
    Channels(trace, site.module, out, ("lambda_out",), "num_features")
    return out


def prelu(trace: Trace, site: Site, x: Units) -> Units:
    """``nn.PReLU``, with one slope for all units or one for each channel."""
    slope = _double(site.module.weight)
    if slope.numel() > 1:
        x = trace.along(x, 1)
    out = trace.like(x, x.known.clamp(min=0) + slope * x.known.clamp(max=0))
    if slope.numel() > 1:
        Channels(trace, site.module, out, ("weight",), "num_parameters")
    return out


def _pads_with_zeros(module: Any) -> bool:
    if isinstance(module, nn.Linear) or module.padding_mode != "zeros":
        return False
    return any(amount > 0 for amount in module._reversed_padding_repeated_twice)


def _choose(wanted: Tensor, present: Tensor, round_to: int, always: bool = False) -> Tensor:
    """The units that a layer reads or computes of those present: the wanted ones, or all where an index would not pay."""
    chosen = round_up(wanted, present, round_to)
    saved = int(present.sum()) - int(chosen.sum())
    return chosen if saved and (always or saved >= math.ceil(_INDEX_SAVES * int(present.sum()))) else present


def _rows_that_read(weight: Tensor, columns: Tensor) -> Tensor:
    """Which rows have a weight other than zero in one of these columns."""
    return _not_zero(_select(weight, columns, 1), 1)


def _columns_read_by(weight: Tensor, rows: Tensor) -> Tensor:
    """In which columns one of these rows has a weight other than zero."""
    return _not_zero(_select(weight, rows, 0), 0).view(weight.shape[1], math.prod(weight.shape[2:])).any(1)


def _not_zero(weight: Tensor, dim: int) -> Tensor:
    """Which sums of magnitudes are not zero: a third of the time of ``(weight != 0).any(dim)``."""
    return (weight.flatten(1).abs().sum(dim) != 0).cpu()


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """Σ over columns and kernel, for inputs that are mostly zeros."""
    columns = x.nonzero().flatten()
    if not columns.numel():
        return torch.zeros(weight.shape[0], dtype=torch.float64)
    some = _double(weight.index_select(1, columns.to(weight.device)))
    return some.reshape(*some.shape[:2], -1).sum(2) @ x[columns]


def _select(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """What the mask, on the CPU, selects of a dimension, in the format of x; x itself where that is all."""
    if mask.all():
        return x
    chosen = x.index_select(dim, mask.nonzero().flatten().to(x.device))
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return chosen.contiguous(memory_format=torch.channels_last)
    return chosen


def _double(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)


def _some(mask: Tensor) -> str:
    found = mask.nonzero().flatten().tolist()
    return ", ".join(map(str, found[:5])) + (", …" if len(found) > 5 else "")
