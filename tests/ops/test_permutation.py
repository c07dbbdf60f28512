"""Orders of samples by counter: every element once, as Python's own integers have it, and as even as chance makes it."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from scipy import stats

from sparsenn.ops import permutation, splitmix


def by_hand(i: int, size: int, seed: int, epoch: int) -> int:
    """The formula of one element in Python's integers."""
    a = math.isqrt(size - 1) + 1
    b = math.ceil(size / a)
    weyl = 0x9E3779B97F4A7C15
    base = splitmix.mix((splitmix.mix(seed % 2**64) + weyl * (epoch + 1)) % 2**64)
    while True:
        digits, bases = list(divmod(i, b)), (a, b)
        for k in range(8):
            x = digits[1 - k % 2] ^ (splitmix.mix((base + weyl * (k + 1)) % 2**64) >> 32)
            x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
            x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
            digits[k % 2] = (digits[k % 2] + (x * bases[k % 2] >> 32)) % bases[k % 2]
        i = digits[0] * b + digits[1]
        if i < size:
            return i


@pytest.mark.parametrize("size", [*range(40), 255, 256, 257, 5120, 65535, 65537, 100000])
def test_every_element_comes_once(size):
    order = permutation(size, seed=3, epoch=size % 3)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(size))


@pytest.mark.parametrize(("size", "seed", "epoch"), [(2, 0, 0), (13, -1, 5), (5120, 2**64 + 7, 10**9), (65537, 2**63, 1)])
def test_elements_are_those_of_the_formula(size, seed, epoch):
    order = permutation(size, seed, epoch)
    for i in range(0, size, 1 + size // 50):
        assert order[i] == by_hand(i, size, seed, epoch)


def test_seeds_are_taken_modulo_2_to_the_64():
    assert torch.equal(permutation(100, -1, 0), permutation(100, 2**64 - 1, 0))


def test_all_orders_of_four_are_equally_likely():
    counts = Counter(tuple(permutation(4, seed, 0).tolist()) for seed in range(4800))
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_places_and_steps_are_even():
    size, count = 12, 3000
    orders = torch.stack([permutation(size, 5, epoch) for epoch in range(count)])
    places = torch.stack([torch.bincount(orders[:, i], minlength=size) for i in range(size)]).double()
    assert stats.chi2.sf(((places - count / size) ** 2 / (count / size)).sum().item(), (size - 1) ** 2) > 1e-4
    # who comes next, by the distance modulo the size
    steps = torch.bincount(((orders[:, 1:] - orders[:, :-1]) % size).flatten(), minlength=size)[1:]
    assert stats.chisquare(steps.numpy()).pvalue > 1e-4


def test_epochs_and_seeds_are_unrelated():
    orders = [permutation(5000, seed, epoch).double() for seed in range(3) for epoch in range(3)]
    correlations = torch.corrcoef(torch.stack([torch.arange(5000.0, dtype=torch.float64), *orders]))
    assert (correlations - torch.eye(10)).abs().max() < 5 / math.sqrt(5000)


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match="size is -1"):
        permutation(-1, 0, 0)
    with pytest.raises(ValueError, match="size is 2147483649; it takes 0 to 2147483648"):
        permutation(2**31 + 1, 0, 0)
    with pytest.raises(ValueError, match="epoch is -2"):
        permutation(3, 0, -2)
