"""Sample inputs and tolerances, written once for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Whether torch adds products without rounding them, as the kernels do.
FUSED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
DEPTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13)  # 8 is the last one that is unrolled
SHAPES = ((), (0,), (1,), (7,), (0, 3), (37, 61), (3, 1, 5, 2), (5000,))

# Relative to a float64 computation; half types are accumulated in float32 and rounded once.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype] * 1e-2}


def _permuted(x: Tensor) -> Tensor:
    return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


def _sliced(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


def _misaligned(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "permuted": _permuted,
    "sliced": _sliced,
    "misaligned": _misaligned,
}


def values(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu", zeros: bool = True) -> Tensor:
    """Numbers between 1/2 and 3/2 in magnitude, of both signs, some of them zero: deep products stay in range."""
    x = (torch.rand(shape, device=device) + 0.5) * torch.where(torch.rand(shape, device=device) < 0.5, -1.0, 1.0)
    if zeros:
        x = torch.where(torch.rand(shape, device=device) < 0.1, 0.0, x)
    return x.to(dtype)


def _step_arguments(depth: int, momentum: float, **options) -> tuple:
    shapes = [(4, 3), (3,), (0, 2)]
    weights = [values(s, torch.float32) for s in shapes]
    factors = [values(s, torch.float32) for s in shapes for _ in range(depth)]
    momenta = [values(s, torch.float32) for s in shapes for _ in range(depth)] if momentum else []
    lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (0.1, 0.01))
    rule = {"dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False, **options}
    return weights, factors, momenta, [values(s, torch.float32) for s in shapes], lr, lam, momentum, *rule.values()


def operator_samples() -> Iterator[tuple[str, tuple]]:
    """Arguments for every operator; a test fails where one has none."""
    for depth in (1, 3, 9):
        leaf = [values((3, 4), torch.float64).requires_grad_() for _ in range(depth)]
        plain = [values((4, 3), torch.float32).t() for _ in range(depth)]
        grad = values((3, 4), torch.float64).requires_grad_()
        yield "hadamard", (leaf,)
        yield "hadamard", (plain,)
        yield "hadamard_out", (plain, torch.empty(3, 4))
        yield "hadamard_backward", (grad, leaf)
        yield "hadamard_backward_out", (plain[0].clone(), plain, [torch.empty(3, 4) for _ in range(depth)])
        yield "factorized_sgd_", _step_arguments(depth, 0.9, nesterov=True)
    yield "factorized_sgd_", _step_arguments(2, 0.0, weight_decay=0.1, maximize=True)
    yield "factorized_sgd_", (*_step_arguments(3, 0.9), torch.empty(3, 4, dtype=torch.float64), 0.5)
    yield from _prox_samples()
    yield from _spectral_samples()
    yield from _ridge_samples()

    yield from _stacked_samples()
    yield from _adam_samples()
    for depth, momentum in ((4, 0.9), (9, 0.0)):
        weights, roots, momenta, grads, *numbers = _step_arguments(1, momentum, nesterov=momentum != 0)
        yield "balanced_sgd_", (weights, roots, momenta, grads, *numbers[:2], depth, *numbers[2:])


def _prox_samples() -> Iterator[tuple[str, tuple]]:
    """lam as one number, one for each weight, and as tensors that broadcast; zeros counted or not."""
    shapes = [(4, 3), (3,), (0, 2)]
    lr = torch.tensor(0.1, dtype=torch.float64)
    kinds = [
        [torch.tensor(0.5, dtype=torch.float64)],
        [torch.tensor(0.5), torch.rand(1), torch.rand(2)],
        [torch.rand(4, 1), torch.rand(3), torch.tensor(0.0)],
    ]
    for lams, momentum in zip(kinds, (0.9, 0.0, 0.9), strict=True):
        weights, momenta, grads = ([values(s, torch.float32) for s in shapes] for _ in range(3))
        zeros = torch.zeros(3 if momentum else 0, dtype=torch.int64)
        state = momenta if momentum else []
        yield "prox_sgd_", (weights, state, grads, lams, zeros, lr, momentum, 0.0, 0.1, momentum != 0, momentum == 0)
    x = values((3, 4), torch.float64).requires_grad_()
    for shape in ((), (4,), (3, 1)):
        level = torch.rand(shape, dtype=torch.float64).requires_grad_()
        yield "soft_threshold", (x, level)
        yield "soft_threshold_backward", (values((3, 4), torch.float64).requires_grad_(), x, level)
    yield "soft_threshold", (values((4, 3), torch.bfloat16).t(), torch.tensor(0.5))


def spectrum(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str = "both", device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """phi of a shape, lambda_in and lambda_out; `kind` says which of the eigenvalues there are: "in", "out" or "both"."""
    lambda_in = None if kind == "out" else values(shape[1:2], dtype, device)
    lambda_out = None if kind == "in" else values(shape[:1], dtype, device)
    return values(shape, dtype, device), lambda_in, lambda_out


def _spectral_samples() -> Iterator[tuple[str, tuple]]:
    for kind, wanted in (("both", 7), ("in", 3), ("out", 5)):
        leaf = [None if t is None else t.requires_grad_() for t in spectrum((4, 3), torch.float64, kind)]
        plain = spectrum((4, 3, 2), torch.float32, kind)
        x, grad = (values((2, 5, n), torch.float64).requires_grad_() for n in (3, 4))
        yield "spectral_weight", tuple(leaf)
        yield "spectral_weight", (plain[0].transpose(0, 2).contiguous().transpose(0, 2), *plain[1:])
        yield "spectral_weight_backward", (values((4, 3), torch.float64).requires_grad_(), *leaf, wanted)
        yield "spectral_weight_backward", (values((4, 3, 2), torch.float32), *plain, wanted & 6)
        places = [None if t is None else torch.empty_like(t) for t in plain[1:]]
        yield "spectral_weight_backward_", (values((4, 3, 2), torch.float32), *plain, *places)
        yield "spectral_linear", (x, *leaf, values((4,), torch.float64).requires_grad_())
        yield "spectral_linear", (values((3,), torch.float32), *spectrum((4, 3), torch.float32, kind), None)
        yield "spectral_linear_backward", (grad, x, *leaf, wanted | 24)
        yield "spectral_linear_backward", (grad, x, *leaf, 8)


def _ridge_samples() -> Iterator[tuple[str, tuple]]:
    """Blocks with and without a skip; no neurons; one kind of matrix alone."""
    for dtype in (torch.float64, torch.float32):
        outers, inners = [values((3, 5), dtype), values((2, 0), dtype)], [values((5, 4), dtype).t(), values((0, 3), dtype)]
        skips = [values((3, 4), dtype)]
        for x in (*outers, *inners, *skips):
            x.requires_grad_(dtype == torch.float64)
        grad = torch.tensor(0.7, dtype=dtype, requires_grad=dtype == torch.float64)
        yield "ridge_norm", (outers, inners, skips)
        yield "ridge_norm", ([], inners[:1], [])
        yield "ridge_norm_backward", (grad, outers, inners, skips)
        yield "ridge_norm_backward", (grad, outers[:1], [], [])


def _stacked_samples() -> Iterator[tuple[str, tuple]]:
    """Two layers with a bias between them, every optimizer; targets and labels."""
    layers = [1, 6, 2, 3, 2, 1, 4, 1, 3, 1, 1, 0]
    for dtype in (torch.float64, torch.float32):
        weights, state = values((4, 28), dtype), values((4, 4, 28), dtype).abs()
        codes = torch.tensor([[5, 0, 1, 0, 0, 1, 2], [6, 1, 2, 0, 1, 0, 2], [7, 0, 3, 0, 2, 0, 2], [8, 1, 4, 4, 3, 2, 1]])
        rates = torch.tensor([[0.01, 0.01, 0.9, 0.9, 0.99, 1e-8, 0.0, 0.02]], dtype=torch.float64).repeat(4, 1)
        y = values((2, 7, 3), dtype) if dtype == torch.float64 else torch.randint(3, (2, 7))
        losses, x, active = torch.zeros(4, 2, dtype=torch.float64), values((2, 7, 6), dtype), torch.tensor([3, 0, 1, 2])
        yield "stacked_steps_", (weights, state, losses, x, y, codes, rates, active, layers, 4, 1, 0, 2)


def _adam_samples() -> Iterator[tuple[str, tuple]]:
    """With and without the largest squares, lam as a part of the gradient and beside it."""
    shapes = [(4, 3), (3,), (0, 2)]
    lr, lam = (torch.tensor(x, dtype=torch.float64) for x in (0.1, 0.01))
    for depth, amsgrad in ((1, False), (3, True), (9, False)):
        factors, means, squares, largest = (
            [values(s, torch.float32, zeros=k < 2) ** (1 + k // 2) for s in shapes for _ in range(depth)] for k in range(4)
        )
        weights, grads = ([values(s, torch.float32) for s in shapes] for _ in range(2))
        steps = [torch.tensor(float(n)) for n in range(len(shapes))]
        state = (weights, factors, means, squares, largest if amsgrad else [], steps)
        yield "factorized_adam_", (*state, grads, lr, lam, 0.9, 0.99, 1e-8, 0.1, not amsgrad, amsgrad)
