"""Soft thresholding: against its definition as a minimizer, float64, finite differences and plain PyTorch formulas."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, SHAPES, tolerance, values
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

from sparsenn.ops import backend as use_backend
from sparsenn.ops import soft_threshold

_ops = torch.ops.sparsenn


def formula(x, t):
    """Another way to write it, with derivatives of its own."""
    return torch.relu(x - t) - torch.relu(-x - t)


def levels(shape, dtype, device="cpu"):
    """Thresholds of every shape that broadcasts to a shape."""
    found = [torch.rand((), device=device)]
    if shape:
        found += [torch.rand(shape, device=device), torch.rand(shape[-1:], device=device)]
        found += [torch.rand(*shape[:1], *[1] * (len(shape) - 1), device=device)]
    return [0.5, *(t.to(dtype) for t in found)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_equals_its_formula_in_float64(backend, device, dtype):
    for shape in SHAPES:
        for t in levels(shape, dtype, device):
            x = values(shape, dtype, device)
            result = soft_threshold(x, t)
            assert result.dtype == dtype
            wide = t.double() if isinstance(t, torch.Tensor) else t
            torch.testing.assert_close(result.double(), formula(x.double(), wide), rtol=tolerance(dtype)["rtol"], atol=2e-7)


def test_it_minimizes_what_it_says(backend):
    """w - x + t s = 0 with s a subgradient of |w|: sign(w) where w is not 0, else anything in [-1, 1]."""
    x, t = 3 * torch.randn(2000, dtype=torch.float64), torch.rand(2000, dtype=torch.float64)
    w = soft_threshold(x, t)
    zero = w == 0
    assert zero.any()
    torch.testing.assert_close((x - w)[~zero], (t * w.sign())[~zero])
    assert (x[zero].abs() <= t[zero]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (33, 70), (2, 3, 5, 7), (3, 2500)], ids=str)
def test_kernels_equal_the_reference_to_the_bit(kernels, device, dtype, shape):
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for layout in LAYOUTS.values():
        arrange = layout if shape else lambda x: x
        x, upstream = arrange(values(shape, dtype, device)), arrange(values(shape, dtype, device).exp())
        for t in levels(shape, dtype, device)[1:]:
            level = arrange(t) if t.shape == shape else t
            level = level if level.dim() else level.to(torch.promote_types(dtype, torch.float32))
            compiled = [_ops.soft_threshold(x, level), _ops.soft_threshold_backward(upstream, x, level)]
            with use_backend("reference"):
                defined = [_ops.soft_threshold(x, level), _ops.soft_threshold_backward(upstream, x, level)]
            for ours, definition in zip(compiled, defined, strict=True):
                assert torch.equal(ours.view(bits), definition.view(bits))


def test_large_tensors_are_streamed_to_the_same_bits(kernels):
    x, upstream = torch.randn(5_000_003), torch.randn(5_000_003)
    assert torch.equal(soft_threshold(x, 0.5), torch.nn.functional.softshrink(x, 0.5))
    assert torch.equal(_ops.soft_threshold_backward(upstream, x, torch.tensor(0.5)), upstream * (x.abs() > 0.5))


def test_zeros_are_positive_and_nan_and_infinity_propagate(backend, device):
    inf, nan = torch.inf, torch.nan
    for dtype in DTYPES:
        x = torch.tensor([0.0, -0.0, -0.5, 1.0, inf, -inf, nan], dtype=dtype, device=device)
        assert soft_threshold(x, 0.5).nan_to_num(9.0, 7.0, -7.0).tolist() == [0.0, 0.0, 0.0, 0.5, 7.0, -7.0, 9.0]
        assert soft_threshold(x, 0).nan_to_num(9.0, 7.0, -7.0).tolist() == [0.0, 0.0, -0.5, 1.0, 7.0, -7.0, 9.0]
        assert soft_threshold(x, inf).nan_to_num(9.0).tolist() == [0.0] * 6 + [9.0]
        assert soft_threshold(x[:4], torch.full((4,), nan, dtype=dtype, device=device)).isnan().all()
        for t in (0.0, 0.5, 1e-45):
            result = soft_threshold(x, t)
            assert not torch.signbit(result[result == 0]).any()


def test_what_rounds_to_zero_is_a_positive_zero(backend, device):
    for dtype in (torch.bfloat16, torch.float16):
        least = torch.finfo(dtype).tiny
        result = soft_threshold(torch.tensor([-least, least], dtype=dtype, device=device), least * (1 - 2.0**-20))
        assert result.tolist() == [0.0, 0.0]
        assert not torch.signbit(result).any()


def test_the_gradient_is_zero_where_the_result_is(backend):
    x = torch.tensor([-2.0, -1.0, -0.0, 0.5, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    t = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([2.0, torch.nan, torch.inf, 3.0, 5.0, 7.0], dtype=torch.float64)
    soft_threshold(x, t).backward(upstream)
    assert x.grad.tolist() == [2.0, 0.0, 0.0, 0.0, 0.0, 7.0]  # on the edge too, and whatever comes from above
    assert t.grad.item() == 2.0 - 7.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_gradients_of_a_threshold_are_summed_in_float32(backend, dtype):
    x = torch.full((3, 4001), 2.0, dtype=dtype, requires_grad=True)
    for t, count in ((0.5, 12003), ([0.5], 12003), ([[0.5]] * 3, 4001)):
        for own in (dtype, torch.float32):
            level = torch.tensor(t, dtype=own, requires_grad=True)
            if own == dtype or level.dim():
                soft_threshold(x, level).backward(torch.ones_like(x))
                assert level.grad.dtype == own
                assert (level.grad == -torch.tensor(float(count), dtype=own)).all()


LEVELS = {"0-d": (), "elements": (2, 3), "columns": (3,), "rows": (2, 1), "one": (1, 1)}


def argument(shape):
    """Away from the edges, where there is no derivative."""
    return (torch.rand(shape, dtype=torch.float64) * 0.3 + 0.2).requires_grad_()


@pytest.mark.parametrize("name", LEVELS)
def test_first_and_second_derivatives_by_finite_differences(backend, name):
    x = (torch.tensor([[0.0, 0.9, -0.7], [0.05, -1.4, 2.0]], dtype=torch.float64)).requires_grad_()
    both = (x, argument(LEVELS[name]))
    assert torch.autograd.gradcheck(soft_threshold, both, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(soft_threshold, both, check_fwd_over_rev=True)
    assert torch.autograd.gradcheck(_ops.soft_threshold, both)
    assert torch.autograd.gradgradcheck(_ops.soft_threshold, both)
    upstream = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda g: _ops.soft_threshold_backward(g, *both), [upstream])


TRANSFORMS = {
    "grad": lambda f: grad(f, (0, 1)),
    "jacrev": lambda f: jacrev(f, (0, 1)),
    "jacfwd": lambda f: jacfwd(f, (0, 1)),
    "hessian": lambda f: hessian(f, (0, 1)),
    "jacrev(jacrev)": lambda f: jacrev(jacrev(f, (0, 1)), (0, 1)),
    "jvp": lambda f: lambda *both: jvp(f, both, tuple(torch.ones_like(y) for y in both)),
    "vmap(grad)": lambda f: lambda x, t: vmap(grad(f, (0, 1)))(x, t.expand(2, 3).clone()),
    "vmap(hessian)": lambda f: lambda x, t: vmap(hessian(f, (0, 1)))(x, t.expand(2, 3).clone()),
    "grad(grad)": lambda f: grad(lambda x, t: sum(g.pow(3).sum() for g in grad(f, (0, 1))(x, t)), (0, 1)),
    "vmap, threshold alone": lambda f: lambda x, t: vmap(grad(f, (0, 1)), (None, 0))(x, torch.stack([t, 2 * t])),
}


@pytest.mark.parametrize("shape", LEVELS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_torch_func_transforms(backend, name, shape):
    both = (2 * torch.randn(2, 3, dtype=torch.float64), argument(LEVELS[shape]).detach())
    ours = TRANSFORMS[name](lambda x, t: soft_threshold(x, t).pow(3).sum())(*both)
    plain = TRANSFORMS[name](lambda x, t: formula(x, t).pow(3).sum())(*both)
    for a, b in zip(tree_leaves(ours), tree_leaves(plain), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("in_dims", [(0, None), (1, 0), (None, 0), (2, 1), (-1, -1)])
@pytest.mark.parametrize("shape", [(), (3,), (2, 1)], ids=str)
def test_vmap_over_any_dimension(backend, in_dims, shape):
    def batch(shape, dim):
        if dim is None:
            return list(shape)
        place = min(dim % (len(shape) + 1), len(shape))
        return [*shape[:place], 4, *shape[place:]]

    dims = (in_dims[0], in_dims[1] if in_dims[1] is None or shape else 0)
    x = torch.randn(batch((2, 3), dims[0]), dtype=torch.float64)
    t = torch.rand(batch(shape, dims[1]), dtype=torch.float64)
    torch.testing.assert_close(vmap(soft_threshold, dims)(x, t), vmap(formula, dims)(x, t))


def test_vmap_with_a_number_and_under_float32_thresholds_of_half_inputs(backend):
    x = torch.randn(4, 3)
    assert torch.equal(vmap(lambda row: soft_threshold(row, 0.5))(x), soft_threshold(x, 0.5))
    half, t = x.bfloat16(), torch.rand(4)
    assert torch.equal(vmap(soft_threshold)(half, t), soft_threshold(half, t[:, None]))


@pytest.mark.parametrize("transform", ["none", "grad", "vmap(grad)"])
@pytest.mark.parametrize("number", [True, False])
def test_compiles_without_graph_breaks(transform, number):
    x = (2 * torch.randn(2, 3, dtype=torch.float64)).requires_grad_(transform == "none")
    t = 0.4 if number else torch.rand(3, dtype=torch.float64)

    def run(f):
        def loss(y):
            return f(y, t).pow(3).sum()

        return {"none": loss, "grad": grad(loss), "vmap(grad)": vmap(grad(loss))}[transform]

    results = []
    for f in (torch.compile(run(soft_threshold), fullgraph=True, backend="aot_eager"), run(formula)):
        value = f(x)
        results.append(torch.autograd.grad(value, x)[0] if transform == "none" else value)
    torch.testing.assert_close(*results)


def test_autocast_leaves_the_result_in_its_dtype(backend):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert soft_threshold(torch.randn(3), 0.5).dtype == torch.float32
        assert soft_threshold(torch.randn(3).bfloat16(), torch.tensor([0.5])).dtype == torch.bfloat16


def test_the_result_has_the_inputs_layout(backend):
    images = values((2, 3, 4, 5), torch.float32).to(memory_format=torch.channels_last)
    channels = torch.rand(3, 1, 1)
    result = soft_threshold(images, channels)
    assert result.stride() == images.stride()
    torch.testing.assert_close(result, formula(images, channels))


def test_expanded_inputs_are_read(backend):
    row, t = torch.randn(1, 50), torch.rand(4, 1)
    assert torch.equal(soft_threshold(row.expand(4, 50), t.expand(4, 50)), soft_threshold(row.repeat(4, 1), t.repeat(1, 50)))


def test_a_threshold_of_no_dimension_may_lie_on_the_cpu(device):
    x = torch.tensor([1.0, 2.0], device=device, requires_grad=True)
    t = torch.tensor(0.5, requires_grad=True)
    result = soft_threshold(x, t)
    result.sum().backward()
    assert result.tolist() == [0.5, 1.5]
    assert t.grad == torch.tensor(-2.0)


def test_threads_do_not_change_the_bits(kernels):
    x, t = torch.randn(300_000), torch.rand(300_000)
    one = soft_threshold(x, t)
    torch.set_num_threads(2)
    try:
        assert torch.equal(soft_threshold(x, t), one)
    finally:
        torch.set_num_threads(1)


def test_memory_that_is_saved_for_backward_is_watched(backend):
    x = torch.ones(3, requires_grad=True)
    result = soft_threshold(x, 0.5)
    with torch.no_grad():
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


@pytest.mark.parametrize(
    ("threshold", "match"),
    [
        (-0.1, r"threshold is -0\.1; it takes a number >= 0"),
        (float("nan"), "threshold is nan"),
        ("1", "threshold is '1'"),
        (torch.ones(3, dtype=torch.float64), r"float64 \(3,\).*float32"),
        (torch.ones(4), r"\(4,\) on cpu; it must broadcast"),
        (torch.ones(1, 2, 3), "must broadcast"),
        (torch.ones(3, device="meta"), "one device"),
    ],
    ids=str,
)
def test_bad_thresholds_are_named(threshold, match):
    with pytest.raises(ValueError, match=match):
        soft_threshold(torch.ones(2, 3), threshold)


def test_bad_inputs_are_named():
    with pytest.raises(ValueError, match=r"input has dtype torch\.int64"):
        soft_threshold(torch.ones(3, dtype=torch.int64), 0.5)


def test_the_kernels_refuse_what_the_operator_is_given_wrong(kernels):
    x = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match=r"threshold has shape \(2,\), which does not broadcast to the shape \(2, 3\)"):
        _ops.soft_threshold(x, torch.ones(2))
    with pytest.raises(
        RuntimeError, match="soft_threshold: threshold is float16; it acts on float32, for which it takes the same"
    ):
        _ops.soft_threshold(x, torch.ones(3).half())
    with pytest.raises(RuntimeError, match=r"grad is float32 \(3,\); input is float32 \(2, 3\), and they must agree"):
        _ops.soft_threshold_backward(torch.ones(3), x, torch.ones(3))
    with pytest.raises(RuntimeError, match=r"grad is float16 \(2, 3\); input is float32"):
        _ops.soft_threshold_backward(torch.ones(2, 3).half(), x, torch.ones(3))
