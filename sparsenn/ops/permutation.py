"""Random orders of samples by counter: the place of every element is a function of (size, seed, epoch) alone.

A Feistel network on pairs (l, r) of digits with the bases a = ⌈√size⌉ and b = ⌈size / a⌉, in which sums modulo the bases stand
for the usual exclusive or (Black and Rogaway 2002, Ciphers with arbitrary finite domains, Section 5). a b exceeds size by less
than √size: a result that is no element, which is sent through the network again, is rare at any size; a power of four would be
too large by up to a factor of four. The rounds mix by the 32-bit finalizer of MurmurHash3 (Appleby), under keys that
SplitMix64 makes of seed and epoch. csrc/math/permutation.h holds the same formula.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsenn.ops.splitmix import MASK, WEYL, mix

MAX_SIZE = 2**31
ROUNDS = 8
_LOW = 2**32 - 1
_MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)


def _keys(seed: int, epoch: int) -> list[int]:
    base = mix(mix(seed & MASK) + WEYL * (epoch + 1) & MASK)
    return [mix(base + WEYL * (k + 1) & MASK) >> 32 for k in range(ROUNDS)]


def _below(base: int, digit: Tensor, key: int) -> Tensor:
    """A number below ``base`` for every digit."""
    x = digit ^ key
    x = ((x ^ x >> 16) * _MULTIPLIERS[0]) & _LOW
    x = ((x ^ x >> 13) * _MULTIPLIERS[1]) & _LOW
    return x * base >> 32


def permutation(size: int, seed: int, epoch: int, *, device: torch.device | str | None = None) -> Tensor:
    r"""A random order of 0, ..., size - 1 that belongs to a seed and an epoch, and to nothing else.

    .. math:: i = l b + r, \qquad l \leftarrow (l + F_k(r)) \bmod a, \quad r \leftarrow (r + F_{k+1}(l)) \bmod b,
        \qquad a = \lceil \sqrt{\mathrm{size}} \rceil, \quad b = \lceil \mathrm{size} / a \rceil

    over eight rounds; a result that is not below ``size`` goes through them again. Element i is found without the
    others: kernels and this function have the same order on any device, for any number of threads, and keep no list of it.

    Args:
        size: How many elements there are, 0 to 2^31.
        seed: Any integer; taken modulo 2^64.
        epoch: Which of the orders of this seed, 0 or more.
        device: Where the result lies.

    Returns:
        An int64 tensor of ``size`` elements that holds every number below ``size`` once.

    Raises:
        ValueError: for a size or an epoch out of these ranges.

    Source: Black and Rogaway 2002, Ciphers with arbitrary finite domains, Section 5 (generalized Feistel networks).

    Example:
        >>> import sparsenn
        >>> order = sparsenn.ops.permutation(1000, seed=7, epoch=0)
        >>> bool((order.sort().values == sparsenn.ops.permutation(1000, seed=7, epoch=1).sort().values).all())
        True
    """
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"permutation: size is {size}; it takes 0 to {MAX_SIZE}")
    if epoch < 0:
        raise ValueError(f"permutation: epoch is {epoch}; it takes 0 or more")
    found = torch.arange(size, dtype=torch.int64, device=device)
    if size < 2:
        return found
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    keys = _keys(seed, epoch)
    outside, walking = found, torch.ones_like(found, dtype=torch.bool)
    while outside.numel():
        left, right = outside // b, outside % b
        for k in range(0, ROUNDS, 2):
            left = (left + _below(a, right, keys[k])) % a
            right = (right + _below(b, left, keys[k + 1])) % b
        found[walking] = left * b + right
        walking = found >= size
        outside = found[walking]
    return found
