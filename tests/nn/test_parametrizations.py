"""HadamardProduct: the product and its derivatives are those of the plain formula; a weight survives being split."""

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from sparsenn.nn import HadamardProduct
from sparsenn.nn.parametrizations import factors_of, split_

DEPTHS = (1, 2, 3, 4, 5)
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def plain_product(factors):
    return functools.reduce(torch.mul, factors)


def factors_with_zeros(depth):
    """One column for every pattern of zeros among D factors."""
    factors = torch.randn(depth, 2**depth, dtype=torch.float64, generator=torch.Generator().manual_seed(depth))
    patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=depth)), dtype=torch.float64).T
    return [f.clone().requires_grad_() for f in factors * patterns]


def parametrized(weight, depth, factor_init="preserve", generator=None):
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return parametrize.register_parametrization(module, "weight", HadamardProduct(depth, factor_init, generator))


def above_floor(*shape, dtype=torch.float64):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (weight.sign() * weight.abs().clamp(min=1e-2)).to(dtype)


@pytest.mark.parametrize("depth", DEPTHS)
def test_product_and_gradients_are_those_of_the_plain_formula_at_every_pattern_of_zeros(depth):
    factors = factors_with_zeros(depth)
    weights = torch.linspace(-1, 2, 2**depth, dtype=torch.float64)

    def loss(product):
        return (product * weights + product.square()).sum()

    ours, plain = HadamardProduct(depth)(*factors), plain_product(factors)
    assert torch.equal(ours, plain)
    for a, b in zip(torch.autograd.grad(loss(ours), factors), torch.autograd.grad(loss(plain), factors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("depth", DEPTHS)
def test_second_derivatives_are_those_of_the_plain_formula(depth):
    factors = factors_with_zeros(depth)
    product = HadamardProduct(depth)

    def hessian(function):
        return torch.autograd.functional.hessian(lambda *f: (function(*f).sin() + function(*f).square()).sum(), tuple(factors))

    for ours, plain in zip(hessian(product), hessian(lambda *f: plain_product(f)), strict=True):
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("factor_init", ["preserve", "root"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_split_keeps_the_weight(depth, factor_init, dtype):
    weight = above_floor(7, 5, dtype=dtype)
    module = parametrized(weight.clone(), depth, factor_init)
    factors = factors_of(module.parametrizations.weight)
    assert len(factors) == depth
    assert {(f.dtype, f.shape) for f in factors} == {(dtype, weight.shape)}
    torch.testing.assert_close(module.weight.detach(), weight, rtol=TOLERANCE[dtype], atol=0)


def test_tiny_weights_are_lifted_to_the_floor_by_preserve_and_kept_by_root():
    weight = torch.tensor([0.0, 3e-5, -3e-5, 0.5], dtype=torch.float64)
    lifted = parametrized(weight.clone(), 3).weight
    torch.testing.assert_close(lifted.abs(), torch.tensor([1e-4, 1e-4, 1e-4, 0.5], dtype=torch.float64))
    assert lifted[1] > 0 > lifted[2]
    torch.testing.assert_close(parametrized(weight.clone(), 3, "root").weight, weight, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_weights(shape):
    weight = above_floor(*shape)
    module = parametrized(weight.clone(), 3)
    torch.testing.assert_close(module.weight.detach(), weight)
    module.weight.sum().backward()
    assert all(p.grad.shape == torch.Size(shape) for p in module.parameters())


def test_factors_and_product_take_the_memory_format_of_the_weight():
    weight = above_floor(4, 3, 5, 5).to(memory_format=torch.channels_last)
    module = parametrized(weight, 3)
    for tensor in (*module.parameters(), module.weight):
        assert tensor.stride() == weight.stride() != weight.contiguous().stride()


@pytest.mark.parametrize("factor_init", ["dwf", "variance_matching", "standard"])
def test_a_drawing_init_makes_the_weight_the_product_of_its_draw(factor_init):
    weight = above_floor(40, 30)
    first, second = (parametrized(weight.clone(), 3, factor_init, torch.Generator().manual_seed(5)) for _ in range(2))
    other = parametrized(weight.clone(), 3, factor_init, torch.Generator().manual_seed(6))
    assert torch.equal(first.weight, plain_product(list(first.parameters())))
    assert torch.equal(first.weight, second.weight)
    assert (first.weight != other.weight).float().mean() > 0.99
    assert (first.weight != weight).float().mean() > 0.99


def test_assignment_splits_the_new_weight_into_the_same_parameters():
    module = parametrized(above_floor(3, 4), 2)
    before = [id(p) for p in module.parameters()]
    module.weight = above_floor(3, 4) * 7
    assert [id(p) for p in module.parameters()] == before
    torch.testing.assert_close(module.weight.detach(), above_floor(3, 4) * 7, rtol=1e-14, atol=0)


def test_split_in_place_keeps_the_memory_of_the_factors():
    module = parametrized(above_floor(3, 4), 2)
    before = [p.data_ptr() for p in module.parameters()]
    split_(module.parametrizations.weight, above_floor(3, 4) * 7)
    assert [p.data_ptr() for p in module.parameters()] == before
    torch.testing.assert_close(module.weight.detach(), above_floor(3, 4) * 7, rtol=1e-14, atol=0)


def test_cached_computes_the_product_once():
    module = parametrized(above_floor(3), 2)
    assert module.weight is not module.weight
    with parametrize.cached():
        assert module.weight is module.weight


@pytest.mark.parametrize("depth", [0, -1, 2.0, True, "2", None])
def test_a_bad_depth_is_refused(depth):
    with pytest.raises(ValueError, match=r"depth is .*; it takes an int >= 1"):
        HadamardProduct(depth)


def test_an_unknown_init_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"factor_init is 'zeros'; it takes one of 'preserve', 'root', 'dwf'"):
        HadamardProduct(2, "zeros")


def test_repr_names_depth_and_init():
    assert repr(HadamardProduct(3, "root")) == "HadamardProduct(depth=3, factor_init='root')"
