"""The spectral operators: against float64, finite differences, plain PyTorch formulas and the paper's matrices."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, TOLERANCES, spectrum, values
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from sparsenn.ops import backend as use_backend
from sparsenn.ops import spectral_linear, spectral_weight
from sparsenn.ops.spectral_graph import adjacency, convolution_spectrum, eigenvectors, transfer

_ops = torch.ops.sparsenn
KINDS = ("both", "in", "out")
# Batches and sizes on both sides of every edge of the blocking: 12 rows, 24 and 48 outputs, 256 columns, 256 rows.
SHAPES = [
    (1, 1, 1),
    (1, 50, 300),
    (2, 16, 16),
    (5, 7, 3),
    (8, 49, 257),
    (12, 25, 784),
    (13, 48, 256),
    (31, 97, 40),
    (64, 30, 513),
    (257, 11, 20),
    (300, 60, 270),
]
EMPTY = [(0, 4, 3), (3, 0, 4), (3, 4, 0), (0, 0, 0)]


def weight_of(phi, lambda_in, lambda_out):
    start = 0 if lambda_in is None else lambda_in.view(1, -1, *(1,) * (phi.dim() - 2))
    end = 0 if lambda_out is None else lambda_out.view(-1, 1, *(1,) * (phi.dim() - 2))
    return (start - end) * phi


def plain(x, phi, lambda_in, lambda_out, bias=None):
    return F.linear(x, weight_of(phi, lambda_in, lambda_out), bias)


def wide(tensors):
    return [None if t is None else t.detach().double() for t in tensors]


def near(found, truth, dtype, terms=1):
    """Off by no more than rounding, for sums of `terms` numbers of size about 1."""
    assert found.dtype == dtype
    assert found.shape == truth.shape
    scale = TOLERANCES[dtype] * max(1.0, terms**0.5)
    torch.testing.assert_close(found.double(), truth, rtol=TOLERANCES[dtype], atol=scale)


def autograd_truth(x, tensors, bias, upstream):
    leaves = [None if t is None else t.requires_grad_() for t in wide([x, *tensors, bias])]
    out = plain(*leaves)
    given = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(out, given, upstream.double()))
    return out.detach(), [None if t is None else next(found) for t in leaves]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_the_map_and_its_gradients_equal_float64(backend, device, dtype, kind, shape):
    batch, out, inputs = shape
    x, bias, upstream = (values(s, dtype, device) for s in ((batch, inputs), (out,), (batch, out)))
    tensors = spectrum((out, inputs), dtype, kind, device)
    truth, gradients = autograd_truth(x, tensors, bias, upstream)
    # On CUDA the vendor's products take a weight that a half type has rounded once, and give its gradient so.
    more = 4 if device.type == "cuda" and dtype.itemsize == 2 else 1
    near(spectral_linear(x, *tensors, bias), truth, dtype, more * inputs)
    wanted = {"both": 31, "in": 27, "out": 29}[kind]
    d_phi, d_in, d_out, d_x, d_bias = _ops.spectral_linear_backward(upstream, x, *tensors, wanted)
    counts = (out, batch, out * batch, inputs * batch, batch)
    for found, right, terms in zip((d_x, d_phi, d_in, d_out, d_bias), gradients, counts, strict=True):
        if right is None:
            assert found.numel() == 0
        else:
            near(found, right, dtype, 2 * more * terms)


@pytest.mark.parametrize("rows", [1, 600])
def test_a_sum_beyond_the_range_of_float16_is_scaled_before_it_is_stored(backend, device, rows):
    """600 numbers of 200, by eigenvectors of 40 and eigenvalues of 1e-3: 4,800 by way of 4,800,000."""
    x, phi = (torch.full(s, v, dtype=torch.float16, device=device) for s, v in (((rows, 600), 200.0), ((600, 600), 40.0)))
    lam, dead = (
        torch.full((600,), 1e-3, dtype=torch.float16, device=device),
        torch.zeros(600, dtype=torch.float16, device=device),
    )
    torch.testing.assert_close(spectral_linear(x, phi, None, lam), torch.full_like(x, -4800.0), rtol=3e-3, atol=0)
    assert not spectral_linear(x, phi, None, dead).any()
    for level, expected in ((lam, 4800.0), (dead, 0.0)):
        gradient = _ops.spectral_linear_backward(x, x, phi, level, None, 8)[3]
        torch.testing.assert_close(gradient, torch.full_like(x, expected), rtol=3e-3, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", [(5, 7), (33, 1030), (600, 4), (6, 5, 3), (4, 3, 5, 2), (0, 3), (3, 0, 2), (2, 3, 0)], ids=str
)
def test_the_weight_and_its_gradients_equal_float64(backend, device, dtype, kind, shape):
    tensors = spectrum(shape, dtype, kind, device)
    upstream = values(shape, dtype, device)
    leaves = [None if t is None else t.requires_grad_() for t in wide(tensors)]
    truth = weight_of(*leaves)
    rights = iter(torch.autograd.grad(truth, [t for t in leaves if t is not None], upstream.double()))
    near(spectral_weight(*tensors), truth.detach(), dtype)
    found = _ops.spectral_weight_backward(upstream, *tensors, {"both": 7, "in": 3, "out": 5}[kind])
    for value, leaf in zip(found, leaves, strict=True):
        if leaf is None:
            assert value.numel() == 0
        else:
            near(value, next(rights), dtype, upstream.numel() / max(1, leaf.numel()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradients_in_place_are_the_same_bits(backend, device, dtype, kind, layout):
    phi, *ends = spectrum((6, 5, 3, 2), dtype, kind, device)
    phi, grad_ = (LAYOUTS[layout](t) for t in (phi, values(phi.shape, dtype, device)))
    right = _ops.spectral_weight_backward(grad_, phi, *ends, 7)
    places = [None if t is None else torch.full((2 * len(t),), 7.0, dtype=dtype, device=device)[::2] for t in ends]
    _ops.spectral_weight_backward_(grad_, phi, *ends, *places)
    assert torch.equal(grad_, right[0])
    for place, expected in zip(places, right[1:], strict=True):
        assert place is None or (torch.equal(place, expected) and bool((place._base[1::2] == 7).all()))


def test_the_gradients_in_place_refuse_what_they_would_spoil(kernels):
    phi, ends = torch.ones(2, 2), (torch.ones(2), None)
    for arguments, message in (
        ((phi, phi, *ends, None, None), "grad is written but shares memory with phi"),
        ((torch.ones(2, 2), phi, *ends, ends[0], None), "d_lambda_in is written but shares memory with lambda_in"),
        ((torch.ones(2, 1).expand(2, 2), phi, *ends, None, None), "expanded"),
        ((torch.ones(2, 2), phi, *ends, None, torch.ones(2)), "absent"),
        (
            (torch.ones(2, 2), phi, *ends, torch.ones(3), None),
            r"d_lambda_in is float32 \(3,\); it takes 2 numbers of phi's dtype",
        ),
        ((torch.ones(2, 3), phi, *ends, None, None), r"grad is float32 \(2, 3\); phi is float32 \(2, 2\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            _ops.spectral_weight_backward_(*arguments)
    assert bool((phi == 1).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weight_equals_the_reference_to_the_bit_in_any_layout(kernels, device, dtype, kind, layout):
    phi, *ends = spectrum((6, 5, 3, 2), dtype, kind, device)
    phi, grad_ = (LAYOUTS[layout](t) for t in (phi, values(phi.shape, dtype, device)))
    ours, d_phi = _ops.spectral_weight(phi, *ends), _ops.spectral_weight_backward(grad_, phi, *ends, 1)[0]
    assert ours.stride() == torch.empty_like(phi).stride()
    with use_backend("reference"):
        assert torch.equal(ours, _ops.spectral_weight(phi, *ends))
        assert torch.equal(d_phi, _ops.spectral_weight_backward(grad_, phi, *ends, 1)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 0, 3), (4, 5, 3)], ids=str)
def test_leading_dimensions_and_strides_do_not_matter(backend, device, batch, layout):
    x, phi, ends, bias = values((*batch, 20), torch.float64, device), values((9, 20), torch.float64, device), [], None
    ends = [values((20,), torch.float64, device), values((9,), torch.float64, device)]
    strided = [LAYOUTS[layout](t) for t in (x, phi, *ends)]
    found = spectral_linear(*strided, bias)
    assert found.is_contiguous()
    torch.testing.assert_close(found, plain(x, phi, *ends))
    upstream = values(found.shape, torch.float64, device)
    for a, b in zip(
        _ops.spectral_linear_backward(LAYOUTS[layout](upstream), *strided, 31),
        _ops.spectral_linear_backward(upstream.contiguous(), x.contiguous(), phi, *ends, 31),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_expanded_inputs_are_read(backend):
    row, phi, lambda_out = values((1, 6), torch.float64), values((4, 6), torch.float64), values((1,), torch.float64)
    found = spectral_linear(row.expand(5, 6), phi, None, lambda_out.expand(4))
    torch.testing.assert_close(found, plain(row.expand(5, 6), phi, None, lambda_out.expand(4)))


@pytest.mark.parametrize("wanted", range(32))
@pytest.mark.parametrize(("batch", "size"), [(3, 50), (1, 300), (4, 4097), (8, 4097)])
def test_only_the_gradients_that_are_wanted_are_made_and_they_are_the_same(backend, batch, size, wanted):
    x, upstream = values((batch, size), torch.float64), values((batch, 20), torch.float64)
    tensors = spectrum((20, size), torch.float64)
    everything = _ops.spectral_linear_backward(upstream, x, *tensors, 31)
    for k, found in enumerate(_ops.spectral_linear_backward(upstream, x, *tensors, wanted)):
        assert torch.equal(found, everything[k]) if wanted >> k & 1 else found.numel() == 0


def call(function, kind, has_bias=True):
    """As a function of tensors alone."""

    def run(x, phi, *rest):
        rest = list(rest)
        lambda_in = rest.pop(0) if kind != "out" else None
        lambda_out = rest.pop(0) if kind != "in" else None
        return function(x, phi, lambda_in, lambda_out, rest.pop(0) if has_bias else None)

    return run


def leaves_for(kind, batch=(2, 3), dtype=torch.float64):
    tensors = [values((*batch, 3), dtype), *spectrum((2, 3), dtype, kind), values((2,), dtype)]
    return [t.requires_grad_() for t in tensors if t is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_by_finite_differences(backend, kind):
    leaves = leaves_for(kind)
    assert torch.autograd.gradcheck(call(spectral_linear, kind), leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call(spectral_linear, kind), leaves, check_fwd_over_rev=True)
    weight = [t.detach().requires_grad_() for t in leaves[1:-1]]
    of_weight = lambda *t: call(lambda x, *s: spectral_weight(*s[:3]), kind, False)(None, *t)  # noqa: E731
    assert torch.autograd.gradcheck(of_weight, weight, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(of_weight, weight, check_fwd_over_rev=True)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_the_operators_themselves(backend, kind):
    leaves = leaves_for(kind)
    assert torch.autograd.gradcheck(call(_ops.spectral_linear, kind), leaves)
    assert torch.autograd.gradgradcheck(call(_ops.spectral_linear, kind), leaves)
    wanted = {"both": 31, "in": 27, "out": 29}[kind]
    upstream = values((2, 3, 2), torch.float64).requires_grad_()

    def gradients(g, *t):
        back = lambda x, phi, a, b, _: _ops.spectral_linear_backward(g, x, phi, a, b, wanted)  # noqa: E731
        return tuple(d for d in call(back, kind, False)(*t) if d.numel())

    assert torch.autograd.gradcheck(gradients, [upstream, *leaves[:-1]])
    assert torch.autograd.gradgradcheck(gradients, [upstream, *leaves[:-1]])

    def of_weight(g, *t):
        back = lambda x, phi, a, b, _: _ops.spectral_weight_backward(g, phi, a, b, wanted & 7)  # noqa: E731
        return tuple(d for d in call(back, kind, False)(None, *t) if d.numel())

    assert torch.autograd.gradcheck(of_weight, [values((2, 3), torch.float64).requires_grad_(), *leaves[1:-1]])


TRANSFORMS = {
    "grad": lambda f: grad(f, (0, 1, 2)),
    "jacrev": lambda f: jacrev(f, (0, 1, 2)),
    "jacfwd": lambda f: jacfwd(f, (0, 1, 2)),
    "hessian": lambda f: hessian(f, (0, 1, 2)),
    "jacfwd(jacfwd)": lambda f: jacfwd(jacfwd(f, 1), 2),
    "jacrev(jacrev)": lambda f: jacrev(jacrev(f, 1), 2),
    "jvp": lambda f: lambda *t: jvp(f, t, tuple(map(torch.ones_like, t))),
    "vmap": lambda f: vmap(f, (0, None, None)),
    "vmap(grad)": lambda f: vmap(grad(f, (0, 1, 2)), (0, None, None)),
    "grad(grad)": lambda f: grad(lambda *t: sum(g.pow(3).sum() for g in grad(f, (0, 1, 2))(*t))),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_torch_func_transforms(backend, name):
    x, phi, lambda_out = values((4, 3), torch.float64), values((2, 3), torch.float64), values((2,), torch.float64)
    ours = TRANSFORMS[name](lambda x, p, e: spectral_linear(x, p, None, e).pow(3).sum())(x, phi, lambda_out)
    right = TRANSFORMS[name](lambda x, p, e: plain(x, p, None, e).pow(3).sum())(x, phi, lambda_out)
    for a, b in zip(tree_leaves(ours), tree_leaves(right), strict=True):
        torch.testing.assert_close(a, b)


IN_DIMS = [(0, None, None, None, None), (1, 0, None, None, None), (0, 2, 0, 1, 0), (None, None, 0, None, None)]


@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
@pytest.mark.parametrize("function", [spectral_linear, lambda *t: _ops.spectral_linear(*t)], ids=["public", "operator"])
def test_vmap_over_any_dimension(backend, function, in_dims):
    tensors = []
    for dim, shape in zip(in_dims, [(4, 3), (2, 3), (3,), (2,), (2,)], strict=True):
        shape = list(shape)
        if dim is not None:
            shape.insert(dim, 5)
        tensors.append(values(tuple(shape), torch.float64))
    torch.testing.assert_close(vmap(function, in_dims)(*tensors), vmap(plain, in_dims)(*tensors))


def test_vmap_of_the_backward_operators(backend):
    x, upstream = values((5, 4, 3), torch.float64), values((5, 4, 2), torch.float64)
    tensors = spectrum((2, 3), torch.float64)
    found = vmap(lambda g, x: _ops.spectral_linear_backward(g, x, *tensors, 31))(upstream, x)
    of_weight = vmap(lambda g: _ops.spectral_weight_backward(g, *tensors, 7))(x[:, :2])
    for n in range(5):
        alone = _ops.spectral_linear_backward(upstream[n], x[n], *tensors, 31)
        assert all(torch.equal(a[n], b) for a, b in zip(found, alone, strict=True))
        alone = _ops.spectral_weight_backward(x[n, :2], *tensors, 7)
        assert all(torch.equal(a[n], b) for a, b in zip(of_weight, alone, strict=True))
    phi = values((5, 2, 3), torch.float64)
    torch.testing.assert_close(
        vmap(_ops.spectral_weight, (0, None, None))(phi, *tensors[1:]), torch.stack([weight_of(p, *tensors[1:]) for p in phi])
    )


@pytest.mark.parametrize("transform", ["none", "grad", "vmap(grad)"])
def test_compiles_without_graph_breaks(transform):
    tensors = [values(s, torch.float64).requires_grad_(transform == "none") for s in ((4, 3), (2, 3), (2,))]

    def run(linear):
        def loss(x, phi, lambda_out):
            return linear(x, phi, None, lambda_out).pow(3).sum()

        return loss if transform == "none" else TRANSFORMS[transform](loss)

    found = torch.compile(run(spectral_linear), fullgraph=True, backend="aot_eager")(*tensors)
    right = run(plain)(*tensors)
    if transform == "none":
        found, right = (torch.autograd.grad(value, tensors) for value in (found, right))
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiled_graph_holds_one_node():
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    tensors = [values(s, torch.float32) for s in ((4, 3), (2, 3), (2,))]
    torch.compile(lambda x, p, e: spectral_linear(x, p, None, e), fullgraph=True, backend=keep)(*tensors)
    kinds = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
    called = [str(node.target) for node in graphs[0].graph.nodes if isinstance(node.target, kinds)]
    assert called == ["sparsenn.spectral_linear"]


def test_autocast_casts_the_composed_weight_as_linear_casts_a_weight(backend):
    x, tensors, bias = values((5, 6), torch.float32), spectrum((4, 6), torch.float32), values((4,), torch.float32)
    leaves = [t.requires_grad_() for t in (x, *tensors, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        ours = spectral_linear(*leaves)
        theirs = F.linear(x, weight_of(*tensors), bias)
        assert spectral_weight(*tensors).dtype == torch.float32
        already = spectral_linear(x.detach().bfloat16(), *leaves[1:])
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
    assert torch.equal(already, theirs)
    found = torch.autograd.grad(ours.float().sum(), leaves)
    right = torch.autograd.grad(theirs.float().sum(), leaves)
    for a, b, leaf in zip(found, right, leaves, strict=True):
        assert a.dtype == leaf.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 9, 40, 300])
def test_threads_do_not_change_the_bits(kernels, batch):
    x, upstream = values((batch, 700), torch.float32), values((batch, 130), torch.float32)
    tensors = spectrum((130, 700), torch.float32)

    def everything():
        return [
            _ops.spectral_linear(x, *tensors, None),
            *_ops.spectral_linear_backward(upstream, x, *tensors, 31),
            *_ops.spectral_weight_backward(tensors[0], *tensors, 7),
        ]

    one = everything()
    before = torch.get_num_threads()
    try:
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(one, everything(), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [32, 255, 256])
def test_a_row_of_zeros_changes_no_bit_of_the_gradients(kernels, batch, dtype):
    # 32 rows are the last that are swept, 256 the last that are packed at once: all ways add in one order
    x, upstream, tensors = values((batch, 300), dtype), values((batch, 50), dtype), spectrum((50, 300), dtype)
    found = _ops.spectral_linear_backward(upstream, x, *tensors, 31)
    more = _ops.spectral_linear_backward(F.pad(upstream, (0, 0, 0, 1)), F.pad(x, (0, 0, 0, 1)), *tensors, 31)
    for k, (a, b) in enumerate(zip(found, more, strict=True)):
        assert torch.equal(a, b[:batch] if k == 3 else b)


def test_a_dead_neuron_outputs_its_bias_and_a_dead_input_is_not_read(backend):
    x, (phi, lambda_in, lambda_out), bias = values((20, 5), torch.float32), spectrum((4, 5), torch.float32), torch.randn(4)
    lambda_in.fill_(0.5)
    lambda_out[2] = 0.5
    assert torch.equal(spectral_linear(x, phi, lambda_in, lambda_out, bias)[:, 2], bias[2].expand(20))
    lambda_out.fill_(0.25)
    lambda_in[3] = 0.25
    moved = x.clone()
    moved[:, 3] += 7
    assert torch.equal(spectral_linear(x, phi, lambda_in, lambda_out), spectral_linear(moved, phi, lambda_in, lambda_out))


def test_nan_and_infinity_propagate(backend):
    x = torch.tensor([[1.0, torch.nan], [torch.inf, 1.0]])
    for rows in (x, x.repeat(20, 1)):
        found = spectral_linear(rows, torch.ones(3, 2), None, -torch.ones(3))
        assert found[0].isnan().all()
        assert (found[1] == torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 5, 33])
def test_what_fills_up_rows_and_columns_adds_nothing_to_what_is_infinite(backend, dtype, batch):
    # 5 inputs and 7 outputs fill neither a vector nor a group of rows
    x, upstream = torch.ones(batch, 5, dtype=dtype), torch.ones(batch, 7, dtype=dtype)
    phi, ones = torch.ones(7, 5, dtype=dtype), torch.ones(7, dtype=dtype)
    infinite = ones.clone()
    infinite[2::4] = torch.inf
    for lambda_in in (None, torch.zeros(5, dtype=dtype)):
        assert torch.equal(spectral_linear(x, phi, lambda_in, infinite), (-5 * infinite).expand(batch, 7))
        d_phi, _, d_out, d_x, _ = _ops.spectral_linear_backward(upstream, x, phi, lambda_in, infinite, 29)
        assert torch.equal(d_phi, (-batch * infinite)[:, None].expand(7, 5))
        assert torch.equal(d_out, -5 * batch * ones)
        assert torch.equal(d_x, torch.full_like(x, -torch.inf))
        d_phi, _, d_out, d_x, _ = _ops.spectral_linear_backward(upstream * infinite, x, phi, lambda_in, ones, 29)
        assert torch.equal(d_phi, (-batch * infinite)[:, None].expand(7, 5))
        assert torch.equal(d_out, -5 * batch * infinite)
        assert torch.equal(d_x, torch.full_like(x, -torch.inf))


def test_the_adjacency_matrix_carries_the_same_map(backend):
    phi, lambda_in, lambda_out = spectrum((4, 6), torch.float64)
    x, vectors = values((6,), torch.float64), eigenvectors(phi)
    identity = torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(vectors @ (2 * identity - vectors), identity)
    matrix = adjacency(phi, lambda_in, lambda_out)
    torch.testing.assert_close(torch.linalg.eigvals(matrix).real.sort()[0], torch.cat([lambda_in, lambda_out]).sort()[0])
    torch.testing.assert_close(matrix @ vectors, vectors @ torch.diag(torch.cat([lambda_in, lambda_out])))
    torch.testing.assert_close(matrix[6:, :6], spectral_weight(phi, lambda_in, lambda_out))
    assert matrix.triu(1).count_nonzero() == 0
    torch.testing.assert_close(transfer(matrix, x), spectral_linear(x, phi, lambda_in, lambda_out))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_filter_is_the_eigenvalues_of_a_binary_graph(backend, stride):
    weight, image = values((2, 3), torch.float64), values((5, 6), torch.float64)
    phi, lambda_in, duplicates = convolution_spectrum(weight, (5, 6), stride)
    assert set(phi.unique().tolist()) <= {0.0, 1.0}
    assert (phi.count_nonzero(0) == 1).all()
    found = spectral_linear(image.flatten()[duplicates], phi, lambda_in, None)
    torch.testing.assert_close(found, F.conv2d(image[None, None], weight[None, None], stride=stride).flatten())


REFUSALS = {
    "three dimensions": (lambda x, p, a, b, c: (x, p[None], a, b, c), "phi is .* it takes two dimensions"),
    "integers": (lambda x, p, a, b, c: (x, p.long(), a, b, c), "phi is torch.int64"),
    "no eigenvalues": (lambda x, p, a, b, c: (x, p, None, None, c), ".* are both None"),
    "lambda_in": (lambda x, p, a, b, c: (x, p, a[:-1], b, c), r"lambda_in is .*\(2,\).* takes \(3,\)"),
    "lambda_out": (lambda x, p, a, b, c: (x, p, a, b[:, None], c), "lambda_out is"),
    "lambda dtype": (lambda x, p, a, b, c: (x, p, a.double(), b, c), "lambda_in is torch.float64"),
    "bias": (lambda x, p, a, b, c: (x, p, a, b, c[1:]), "bias is"),
    "input": (lambda x, p, a, b, c: (x[:, 1:], p, a, b, c), r"input is .* takes \(\.\.\., 3\)"),
    "input dtype": (lambda x, p, a, b, c: (x.half(), p, a, b, c), "input is torch.float16"),
    "0-d input": (lambda x, p, a, b, c: (x[0, 0], p, a, b, c), "input is"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_in_a_sentence(backend, case):
    change, message = REFUSALS[case]
    x, tensors, bias = values((4, 3), torch.float32), spectrum((2, 3), torch.float32), values((2,), torch.float32)
    with pytest.raises(ValueError, match=f"spectral_linear: {message}"):
        spectral_linear(*change(x, *tensors, bias))


def test_the_kernels_refuse_what_does_not_fit(kernels):
    x, (phi, lambda_in, lambda_out) = values((4, 3), torch.float32), spectrum((2, 3), torch.float32)
    for arguments, message in (
        ((x, phi, lambda_in[1:], lambda_out, None), r"lambda_in is float32 \(2,\); it takes 3 numbers of phi's dtype, float32"),
        ((x, phi, None, None, None), "both eigenvalues are absent"),
        ((x.double(), phi, lambda_in, lambda_out, None), r"input is float64 \(4, 3\); it takes \(..., 3\) in phi's dtype"),
        ((x, phi, lambda_in, lambda_out, lambda_in), r"bias is float32 \(3,\); it takes 2 numbers"),
        ((x[:, 1:], phi, lambda_in, lambda_out, None), r"input is float32 \(4, 2\); it takes \(..., 3\)"),
    ):
        with pytest.raises(RuntimeError, match=f"sparsenn::spectral_linear: {message}"):
            _ops.spectral_linear(*arguments)
    with pytest.raises(RuntimeError, match="grad has 3 rows, input 4; they must agree"):
        _ops.spectral_linear_backward(x[:3, :2], x, phi, lambda_in, lambda_out, 31)


def test_memory_that_is_saved_for_backward_is_watched(backend):
    x, phi, lambda_out = (values(s, torch.float32).requires_grad_() for s in ((4, 3), (2, 3), (2,)))
    result = spectral_linear(x, phi, None, lambda_out)
    with torch.no_grad():
        phi.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_meta_tensors_inside_autocast_of_another_device():
    phi, ends = torch.empty(3, 4, device="meta"), torch.empty(3, device="meta")
    with torch.autocast("cpu"):
        assert spectral_linear(torch.empty(2, 4, device="meta"), phi, None, ends).shape == (2, 3)
