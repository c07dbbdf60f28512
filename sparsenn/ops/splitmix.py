"""The 64-bit finalizer of SplitMix64 (Steele, Lea and Flood 2014), which mixes seeds and counters into keys."""

from __future__ import annotations

MASK = 2**64 - 1
WEYL = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)


def mix(x: int) -> int:
    """A bijection of the integers below 2^64 whose results look random."""
    for bits, multiplier in zip(SHIFTS, (*MULTIPLIERS, 1), strict=True):
        x = (x ^ (x >> bits)) * multiplier & MASK
    return x
