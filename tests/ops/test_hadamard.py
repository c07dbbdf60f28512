"""The product of D factors: against float64, finite differences and plain PyTorch formulas."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from cases import DEPTHS, DTYPES, LAYOUTS, SHAPES, tolerance, values
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

from sparsenn.ops import backend as use_backend
from sparsenn.ops import hadamard_product

_ops = torch.ops.sparsenn


def product(factors):
    return functools.reduce(torch.mul, factors)


def others(factors, d):
    rest = [f for k, f in enumerate(factors) if k != d]
    return product(rest) if rest else torch.ones_like(factors[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", DEPTHS)
def test_product_and_gradients_equal_float64(backend, device, dtype, depth):
    for shape in SHAPES:
        factors = [values(shape, dtype, device) for _ in range(depth)]
        upstream = values(shape, dtype, device)
        wide = [f.double() for f in factors]
        torch.testing.assert_close(hadamard_product(factors).double(), product(wide), **tolerance(dtype))
        for d, gradient in enumerate(_ops.hadamard_backward(upstream, factors)):
            assert gradient.dtype == dtype
            torch.testing.assert_close(gradient.double(), upstream.double() * others(wide, d), **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("shape", [(5,), (33, 70), (2, 3, 5, 7), (3, 2500)], ids=str)
def test_kernels_equal_the_reference_to_the_bit(kernels, device, dtype, depth, shape):
    for layouts in itertools.islice(itertools.product(LAYOUTS.values(), repeat=2), 0, 16, 3):
        factors = [layouts[d % 2](values(shape, dtype, device)) for d in range(depth)]
        upstream = layouts[1](values(shape, dtype, device))
        compiled = [_ops.hadamard(factors), *_ops.hadamard_backward(upstream, factors)]
        with use_backend("reference"):
            defined = [_ops.hadamard(factors), *_ops.hadamard_backward(upstream, factors)]
        for ours, definition in zip(compiled, defined, strict=True):
            assert torch.equal(ours, definition)


def test_large_products_are_streamed_to_the_same_bits(kernels):
    factors = [values((3, 1_000_003), torch.float32) for _ in range(4)]
    out, gradients = torch.empty(3, 1_000_003), [torch.empty(3, 1_000_003) for _ in range(4)]
    _ops.hadamard_out(factors, out)
    _ops.hadamard_backward_out(factors[0], factors, gradients)
    assert torch.equal(out, product(factors))
    for d, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, factors[0] * others(factors, d), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("depth", [2, 3, 5, 9])
def test_gradients_are_exact_at_zeros(backend, depth):
    for zeros in itertools.product([0.0, 2.0], repeat=min(depth, 5)):
        numbers = [*zeros, *[3.0] * (depth - len(zeros))]
        factors = [torch.tensor(x, requires_grad=True) for x in numbers]
        hadamard_product(factors).backward()
        for d, factor in enumerate(factors):
            rest = [x for k, x in enumerate(numbers) if k != d]
            assert factor.grad.item() == functools.reduce(lambda a, b: a * b, rest, 1.0)


def test_nan_and_infinity_propagate(backend):
    inf, nan = torch.inf, torch.nan
    factors = [torch.tensor([inf, nan, inf, -inf]), torch.tensor([2.0, 0.0, 0.0, inf])]
    expected = torch.tensor([inf, nan, nan, -inf])
    torch.testing.assert_close(hadamard_product(factors), expected, equal_nan=True)


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 9])
def test_first_and_second_derivatives_by_finite_differences(backend, depth):
    factors = [values((2, 3), torch.float64).requires_grad_() for _ in range(depth)]
    assert torch.autograd.gradcheck(lambda *f: hadamard_product(f), factors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *f: hadamard_product(f), factors, check_fwd_over_rev=True)


def test_derivatives_of_the_operators_themselves(backend):
    factors = [values((2, 3), torch.float64).requires_grad_() for _ in range(3)]
    upstream = values((2, 3), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *f: _ops.hadamard(f), factors)
    assert torch.autograd.gradgradcheck(lambda *f: _ops.hadamard(f), factors)
    assert torch.autograd.gradgradcheck(lambda g, *f: tuple(_ops.hadamard_backward(g, f)), [upstream, *factors])


TRANSFORMS = {
    "grad": grad,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "jacfwd(jacfwd)": lambda f: jacfwd(jacfwd(f)),
    "jacrev(jacrev)": lambda f: jacrev(jacrev(f)),
    "jvp": lambda f: lambda x: jvp(f, (x,), ([torch.ones_like(y) for y in x],)),
    "vmap(grad)": lambda f: vmap(grad(f)),
    "vmap(hessian)": lambda f: vmap(hessian(f)),
    "grad(grad)": lambda f: grad(lambda x: sum(g.pow(3).sum() for g in grad(f)(x))),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_torch_func_transforms(backend, name):
    factors = [values((2, 3), torch.float64) for _ in range(3)]
    ours = TRANSFORMS[name](lambda f: hadamard_product(f).pow(3).sum())(factors)
    plain = TRANSFORMS[name](lambda f: product(f).pow(3).sum())(factors)
    for a, b in zip(tree_leaves(ours), tree_leaves(plain), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("in_dims", [(0, 0), (1, None), (None, 0), (2, 1)])
def test_vmap_over_any_dimension(backend, in_dims):
    size = 4
    factors = []
    for dim in in_dims:
        shape = [2, 3]
        if dim is not None:
            shape.insert(dim, size)
        factors.append(values(tuple(shape), torch.float64))
    ours = vmap(lambda a, b: hadamard_product([a, b]), in_dims)(*factors)
    torch.testing.assert_close(ours, vmap(torch.mul, in_dims)(*factors))


def test_forward_mode_outside_torch_func(backend):
    factors = [values((3,), torch.float64) for _ in range(3)]
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(f, torch.ones_like(f)) for f in factors]
        tangent = torch.autograd.forward_ad.unpack_dual(hadamard_product(duals)).tangent
    torch.testing.assert_close(tangent, sum(others(factors, d) for d in range(3)))


def test_out_has_no_forward_mode_and_says_so(backend):
    with pytest.raises(RuntimeError, match="no gradient"):
        jvp(lambda x: hadamard_product([x, x], out=torch.empty(3)), (torch.ones(3),), (torch.ones(3),))


def test_more_dimensions_than_torch_multiplies(kernels):
    x = torch.full([1] * 100 + [3], 2.0)
    assert hadamard_product([x, x]).flatten().tolist() == [4.0, 4.0, 4.0]
    assert hadamard_product([torch.ones([0] + [1] * 80)] * 2).numel() == 0


@pytest.mark.parametrize("transform", ["none", "grad", "vmap(grad)"])
def test_compiles_without_graph_breaks(transform):
    factors = [values((2, 3), torch.float64).requires_grad_(transform == "none") for _ in range(3)]

    def run(product_of):
        def loss(f):
            return product_of(f).pow(3).sum()

        if transform == "none":
            return lambda f: torch.autograd.grad(loss(f), f) if product_of is product else loss(f)
        return TRANSFORMS[transform](loss)

    compiled = torch.compile(run(hadamard_product), fullgraph=True, backend="aot_eager")(factors)
    if transform == "none":
        compiled = torch.autograd.grad(compiled, factors)
    for a, b in zip(compiled, run(product)(factors), strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_leaves_the_product_in_its_dtype(backend):
    factors = [values((3,), torch.float32) for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert hadamard_product(factors).dtype == torch.float32


def test_the_result_has_the_first_factors_layout(backend):
    images = values((2, 3, 4, 5), torch.float32).to(memory_format=torch.channels_last)
    result = hadamard_product([images, images.contiguous()])
    assert result.stride() == images.stride()
    assert torch.equal(result, images * images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_is_written_in_place(backend, device, layout):
    for dtype in DTYPES:
        factors = [values((5, 7), dtype, device) for _ in range(3)]
        out = LAYOUTS[layout](torch.full((5, 7), torch.nan, dtype=dtype, device=device))
        assert hadamard_product(factors, out=out) is out
        assert torch.equal(out, hadamard_product(factors))


def test_out_may_be_a_factor(backend):
    factors = [values((5000,), torch.float32) for _ in range(10)]
    expected = hadamard_product(factors)
    hadamard_product(factors, out=factors[3])
    assert torch.equal(factors[3], expected)


def test_expanded_inputs_are_read(backend):
    row = values((1, 5), torch.float32)
    full = values((4, 5), torch.float32)
    assert torch.equal(hadamard_product([row.expand(4, 5), full]), row * full)


def test_threads_do_not_change_the_bits(kernels):
    factors = [values((300_000,), torch.float32) for _ in range(3)]
    one = [_ops.hadamard(factors), *_ops.hadamard_backward(factors[0], factors)]
    torch.set_num_threads(2)
    try:
        two = [_ops.hadamard(factors), *_ops.hadamard_backward(factors[0], factors)]
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_bad_arguments_are_named():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="at least one"):
        hadamard_product([])
    with pytest.raises(ValueError, match=r"factor 1 is .*\(4,\)"):
        hadamard_product([x, torch.ones(4)])
    with pytest.raises(ValueError, match=r"factor 1 is torch\.float64"):
        hadamard_product([x, x.double()])
    with pytest.raises(ValueError, match="int64"):
        hadamard_product([x.long()])
    with pytest.raises(ValueError, match="out is"):
        hadamard_product([x, x], out=torch.empty(4))
    with pytest.raises(RuntimeError, match="no gradient"):
        hadamard_product([x.clone().requires_grad_(), x], out=torch.empty(3))


def test_unsafe_outputs_are_refused_before_anything_is_written(kernels):
    base = torch.arange(8.0)
    before = base.clone()
    with pytest.raises(RuntimeError, match="share memory"):
        hadamard_product([torch.ones(2, 4)], out=torch.zeros(1, 4).expand(2, 4))
    with pytest.raises(RuntimeError, match=r"hadamard: factors\[0\] shares a part of out's memory"):
        hadamard_product([base[:4], torch.ones(4)], out=base[2:6])
    with pytest.raises(RuntimeError, match=r"hadamard_backward: grads\[0\] shares memory with factors\[0\]"):
        _ops.hadamard_backward_out(torch.ones(4), [base[:4]], [base[:4]])
    assert torch.equal(base, before)


def test_memory_that_is_saved_for_backward_is_watched(backend):
    factors = [torch.ones(3, requires_grad=True) for _ in range(2)]
    result = hadamard_product(factors)
    with torch.no_grad():
        factors[0].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_out_that_autograd_saved_is_watched(backend):
    leaf, out = torch.ones(3, requires_grad=True), torch.ones(3)
    result = leaf * out
    with torch.no_grad():
        hadamard_product([torch.full((3,), 2.0)], out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_a_tensor_is_no_list_of_factors(shape):
    with pytest.raises(TypeError, match=r"factors is a tensor of shape \(.*\); it takes a list or tuple"):
        hadamard_product(torch.ones(shape))
