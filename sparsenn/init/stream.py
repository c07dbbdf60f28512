"""Random numbers by counter: element e of factor d is a function of (seed, d, e) and of nothing else.

No order of drawing, number of threads or sharding can change them. The mixer is the 64-bit finalizer of SplitMix64 (Steele, Lea
and Flood 2014), applied twice with a key between, so that no two keys share a stretch of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sparsenn.ops.splitmix import MASK, MULTIPLIERS, SHIFTS, WEYL, mix

# Small enough for the second-level cache of a CPU, large enough to fill a GPU.
_PIECE = {"cpu": 1 << 17}
_LARGE_PIECE = 1 << 22


def _signed(value: int) -> int:
    """The int64 with the same bits as a 64-bit unsigned value."""
    value &= MASK
    return value - 2**64 if value >> 63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, whose own shift copies the sign."""
    return x.bitwise_right_shift(bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix_(x: Tensor) -> Tensor:
    for bits, multiplier in zip(SHIFTS, (*MULTIPLIERS, None), strict=True):
        x.bitwise_xor_(_shifted(x, bits))
        if multiplier is not None:
            x.mul_(_signed(multiplier))
    return x


def uniform(numbers: Tensor, seed: int, stream: int) -> tuple[Tensor, Tensor]:
    """Per element number a uniform draw strictly inside (0, 1), an odd multiple of 2^-53, and an independent sign, -1 or 1.

    Args:
        numbers: int64 element numbers of any shape.
        seed: Any integer; taken modulo 2^64.
        stream: Which of the independent streams of this seed: the factor's number.

    Returns:
        Two float64 tensors of the shape of ``numbers``.
    """
    key = _signed(derived_seed(seed, stream))
    bits = _mix_(_mix_(numbers.mul(_signed(WEYL)).add_(key)).add_(key))
    sign = bits.bitwise_and(1).mul_(2).sub_(1).double()
    return _shifted(bits, 12).double().add_(0.5).mul_(2.0**-52), sign


def new_seed(generator: torch.Generator | None = None, below: int = 2**63 - 1) -> int:
    """A seed drawn from a generator, by default torch's own for the CPU."""
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator is {generator!r}; it takes a torch.Generator, or None for torch's own")
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(below, (), generator=generator, device=device))


def derived_seed(seed: int, stream: int) -> int:
    """A seed in [0, 2^64) for another generator, the same for the same two numbers; streams of one seed are independent."""
    return mix(mix(seed & MASK) + WEYL * (stream + 1) & MASK)


def pieces(shape: Sequence[int], limit: int) -> Iterator[tuple[int | slice, ...]]:
    """Indices that cut a tensor, in row-major order, into pieces of at most ``limit`` elements; views for any strides."""
    row = 1
    for size in shape[1:]:
        row *= size
    if not shape or row * shape[0] <= limit:
        yield ()
    elif row > limit:
        for i in range(shape[0]):
            for rest in pieces(shape[1:], limit):
                yield (i, *rest)
    else:
        step = limit // row
        for start in range(0, shape[0], step):
            yield (slice(start, start + step),)


def numbered_pieces(tensor: Tensor, index: Tensor | None) -> Iterator[tuple[tuple[int | slice, ...], Tensor]]:
    """The pieces of a tensor, each with the numbers of its elements: from ``index``, else counted in row-major order."""
    start = 0
    for piece in pieces(tensor.shape, _PIECE.get(tensor.device.type, _LARGE_PIECE)):
        part = tensor[piece]
        if index is None:
            yield piece, torch.arange(start, start + part.numel(), device=tensor.device).view(part.shape)
        else:
            yield piece, index[piece]
        start += part.numel()
