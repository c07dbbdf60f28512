"""The norm of ridge blocks over lists of matrices: entry by entry in float64, its gradients, and every kind of call."""

from __future__ import annotations

import math

import pytest
import torch
from cases import DTYPES, LAYOUTS, tolerance, values
from torch import Tensor

from sparsenn.ops import ridge_norm

# V, W and C of blocks: odd sizes, more columns than are held at a time, many numbers, nothing
SHAPES = {
    "small": ([(3, 5)], [(5, 4)], [(3, 4)]),
    "papers": ([(16, 1296), (1, 1296)], [(1296, 4), (1296, 16)], [(16, 4), (1, 16)]),
    "parts": ([(2, 1500)], [(300, 311)], []),
    "empty": ([(4, 0), (0, 3)], [(0, 7)], [(2, 0)]),
    "inner alone": ([], [(7, 1)], []),
}


def matrices(name: str, dtype: torch.dtype, device: str, layout: str = "contiguous") -> list[list[Tensor]]:
    torch.manual_seed(0)
    make = LAYOUTS[layout]
    return [[make(values(shape, dtype, device)) for shape in shapes] for shapes in SHAPES[name]]


def by_hand(outers: list[Tensor], inners: list[Tensor], skips: list[Tensor]) -> float:
    columns = (math.fsum(map(abs, column)) ** 2 for v in outers for column in zip(*v.double().tolist(), strict=True))
    squares = (x * x for w in inners for x in w.double().flatten().tolist())
    return math.fsum(columns) + math.fsum(squares) + math.fsum(abs(x) for c in skips for x in c.double().flatten().tolist())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_value_and_gradient_are_the_formulas(backend, device, name, dtype, layout):
    lists = matrices(name, dtype, device, layout)
    flat = [x.requires_grad_() for kind in lists for x in kind]
    total = ridge_norm(*lists)
    assert total.shape == ()
    assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerated = tolerance(torch.float64 if dtype == torch.float64 else torch.float32)["rtol"]
    assert total.item() == pytest.approx(by_hand(*([x.detach() for x in kind] for kind in lists)), rel=tolerated)
    grads = torch.autograd.grad(0.5 * total, flat)
    for kind, own in zip((0, 1, 2), lists, strict=True):
        for x in own:
            wide = x.detach().double()
            slope = (2 * wide.abs().sum(0) * wide.sign(), 2 * wide, wide.sign())[kind]
            got, *grads = grads
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), 0.5 * slope, **tolerance(dtype))


def test_many_rows_lose_no_digits(kernels):
    """Added one by one in float32, 100,000 of them would be off by 1e-4."""
    v = torch.full((100_000, 2), 0.1, requires_grad=True)
    norm = 100_000 * v[0, 0].item()
    total = ridge_norm([v])
    assert total.item() == pytest.approx(2 * norm**2, rel=1e-6)
    total.backward()
    torch.testing.assert_close(v.grad, torch.full_like(v, 2 * norm), rtol=1e-6, atol=0)


def test_the_same_bits_for_any_number_of_threads(kernels):
    lists = matrices("parts", torch.float32, "cpu")
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(ridge_norm(*lists))
    torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_derivatives(backend):
    lists = matrices("small", torch.float64, "cpu")
    flat = [x.where(x != 0, 0.5).requires_grad_() for kind in lists for x in kind]

    def total(*xs: Tensor) -> Tensor:
        return ridge_norm(xs[:1], xs[1:2], xs[2:])

    assert torch.autograd.gradcheck(total, flat, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(total, flat)
    expected = torch.autograd.grad(total(*flat), flat)
    for mine, other in zip(torch.func.grad(total, argnums=(0, 1, 2))(*flat), expected, strict=True):
        torch.testing.assert_close(mine, other)
    stacked = [torch.stack([x, 2 * x]).detach() for x in flat]
    for n, value in enumerate(torch.func.vmap(total)(*stacked)):
        torch.testing.assert_close(value, total(*(x[n] for x in stacked)))
    per_sample = torch.func.vmap(torch.func.grad(total))(*stacked)
    torch.testing.assert_close(per_sample[1], 2 * expected[0])


def test_compiles_without_graph_breaks():
    lists = matrices("small", torch.float32, "cpu")
    flat = [x.requires_grad_() for kind in lists for x in kind]

    def scaled(outer: Tensor, inner: Tensor, skip: Tensor) -> Tensor:
        return 0.1 * ridge_norm([outer], [inner], [skip])

    total = torch.compile(scaled, fullgraph=True, backend="aot_eager")(*flat)
    assert total.item() == pytest.approx(0.1 * ridge_norm(*lists).item(), rel=1e-6)
    expected = torch.autograd.grad(0.1 * ridge_norm(*lists), flat)
    for mine, other in zip(torch.autograd.grad(total, flat), expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_infinity_and_nan_pass_through(backend):
    for odd, expected in ((math.inf, math.inf), (math.nan, math.nan)):
        for kind in range(3):
            lists = [[torch.ones(2, 20)], [torch.ones(20, 2)], [torch.ones(2, 2)]]
            lists[kind][0][1, 1] = odd
            assert torch.equal(ridge_norm(*lists), torch.tensor(expected)) or math.isnan(expected) == bool(
                ridge_norm(*lists).isnan()
            )


def test_errors():
    with pytest.raises(ValueError, match="all empty; it takes at least one matrix"):
        ridge_norm([])
    with pytest.raises(ValueError, match=r"matrix 1 is torch.float32 \(3,\); it takes matrices"):
        ridge_norm([torch.ones(2, 2)], [torch.ones(3)])
    with pytest.raises(ValueError, match=r"matrix 0 is torch.int64 \(2, 2\)"):
        ridge_norm([torch.ones(2, 2, dtype=torch.int64)])
    with pytest.raises(ValueError, match=r"matrix 1 is torch.float64 on cpu, matrix 0 torch.float32 on cpu; they must agree"):
        ridge_norm([torch.ones(2, 2)], [], [torch.ones(2, 2, dtype=torch.float64)])
