"""The cases: which operator, direction, device, size and depth; what it starts from, what it must move, what is right.

A provider is one way to do a case's work (ours, a peer, a physical limit). It is built from the case's inputs and becomes a
`Run`: a call without arguments that does the work once, and the tensors that show whether it did it rightly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sparsenn.ops import reference

LENET = ((300, 784), (300,), (100, 300), (100,), (10, 100), (10,))
SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "1e4": ((10_000,),),
    "2.7e5": ((266_610,),),
    "lenet": LENET,  # the same number of weights as the six tensors that they are
    "1.1e7": ((11_000_000,),),
    "4e7": ((40_000_000,),),
    "1000x1000": ((1000,),) * 1000,
    "60x4096": ((4096,),) * 60,
    "1e8": ((100_000_000,),),
}
LARGE = ("1.1e7", "4e7", "1e8")  # beyond the caches; --quick leaves them out
ONLY_CUDA = ("60x4096", "1e8")
FLOAT = 4  # bytes

# One step moves a factor by about 1e-4 of itself: the gate sees every term of the formula, and after 10^4 steps the numbers are
# still ordinary ones, neither huge nor denormal, because the decay outweighs the gradient.
LR, MOMENTUM, DECAY, GRADIENT = 1e-2, 0.9, 2e-3, 1e-3
STEPS = 3  # that the gate compares
SAMPLE = 10_000  # elements of each tensor that it compares, about
TOLERANCE = 2e-6


def penalty(depth: int) -> float:
    """The λ whose weight decay on the factors, 2λ/D, is DECAY."""
    return DECAY * depth / 2


@dataclass(frozen=True)
class Case:
    """What is timed; a direction or size that an operation has only one of is empty."""

    op: str
    direction: str
    device: str
    size: str
    depth: int
    counts: ClassVar[str] = "D"  # what `depth` is the number of: factors, samples of a batch (B), nets (R)

    @property
    def group(self) -> str:
        return " · ".join([*filter(None, (self.op, self.direction, self.device, self.size)), f"{self.counts}={self.depth}"])

    @property
    def id(self) -> str:
        return "-".join([*filter(None, (self.direction, self.device, self.size)), f"{self.counts}{self.depth}"])

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return LENET if self.size.startswith("lenet") else SIZES[self.size]

    @property
    def numel(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def tensors(self) -> tuple[int, int, int]:
        """How many tensors of `numel` elements the operation touches, reads and writes; factors' steps don't read weights."""
        d = self.depth
        return {
            "forward": (d + 1, d, 1),  # factors, product
            "backward": (2 * d + 1, d + 1, d),  # gradient, factors, their gradients
            "step": (2 * d + 2, 2 * d + 1, 2 * d + 1),  # gradient, factors, momenta, weight
            "adam": (3 * d + 2, 3 * d + 1, 3 * d + 1),  # gradient, factors, their two means, weight
            "balanced": (4, 3, 3),  # gradient, root, momentum, weight
            "proximal": (3, 3, 2),  # gradient, momentum, weight, which is read too
        }[self.direction]

    @property
    def footprint(self) -> int:
        """Bytes of the tensors that the operation touches."""
        return self.tensors[0] * self.numel * FLOAT

    @property
    def bytes(self) -> int:
        """What the operation must move, each element once."""
        return sum(self.tensors[1:]) * self.numel * FLOAT


@dataclass(frozen=True)
class Run:
    call: Callable[[], Any]
    outcome: Callable[[], Sequence[Tensor]] | None = None  # None: nothing to check
    calls: int = 1  # before the outcome is looked at
    expected: Sequence[Tensor] | None = None  # the truth, where it is not the inputs' own
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Provider:
    name: str
    role: str  # ours | peer | floor | limit
    build: Callable[[Any], Run]
    bytes: Callable[[Case], int | None] = lambda case: case.bytes
    unless: Callable[[Case], bool] = lambda case: False  # cases in which it has no place


@dataclass
class Inputs:
    """What all providers of a case start from, shared where it is only read; ``expected`` is computed in float64."""

    case: Case
    factors: list[list[Tensor]] = field(init=False)  # of each weight
    grads: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator(self.case.device).manual_seed(0)

        def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
            return torch.empty(shape, device=self.case.device).uniform_(low, high, generator=generator)

        def magnitudes(shape: tuple[int, ...]) -> Tensor:
            return uniform(shape, 0.75, 1.25).mul_(uniform(shape, -1.0, 1.0).sign_())

        self.factors = [[magnitudes(shape) for _ in range(self.case.depth)] for shape in self.case.shapes]
        self.grads = [uniform(shape, -GRADIENT, GRADIENT) for shape in self.case.shapes]

    @cached_property
    def expected(self) -> list[Tensor]:
        factors = [[sample(f).double() for f in own] for own in self.factors]
        grads = [sample(g).double() for g in self.grads]
        if self.case.direction == "forward":
            return [reference.hadamard(own) for own in factors]
        if self.case.direction == "backward":
            return [grad for own, g in zip(factors, grads, strict=True) for grad in reference.hadamard_backward(g, own)]
        flat = [factor for own in factors for factor in own]
        momenta = [torch.zeros_like(factor) for factor in flat]
        weights = [torch.empty_like(g) for g in grads]
        lr, lam = torch.tensor(LR, dtype=torch.float64), torch.tensor(penalty(self.case.depth), dtype=torch.float64)
        for _ in range(STEPS):
            reference.factorized_sgd_(weights, flat, momenta, grads, lr, lam, MOMENTUM, 0.0, 0.0, False, False)
        return flat + weights


def sample(x: Tensor) -> Tensor:
    """Elements at an odd distance, so that every lane of a vector register is among them; a sample is its own sample."""
    return x.detach().flatten()[:: x.numel() // SAMPLE | 1]


def check(run: Run, inputs: Any) -> None:
    """Calls a run as often as its outcome needs and compares that with the truth.

    Raises:
        AssertionError: where a tensor is wrong; such a provider is not timed.
    """
    for _ in range(run.calls):
        run.call()
    if run.outcome is None:
        return
    expected = inputs.expected if run.expected is None else run.expected
    for found, right in zip(run.outcome(), expected, strict=True):
        expected = sample(right).double()
        # of a sum that nearly cancels, rounding leaves a share of its terms: the tensor's typical size bounds it
        atol = run.tolerance * float(expected.abs().mean()) if expected.numel() else 0.0
        torch.testing.assert_close(sample(found).double(), expected, rtol=run.tolerance, atol=atol)


def copy_limit(inputs: Inputs) -> Run:
    """b.copy_(a) at the case's footprint: one read, one write."""
    source, target = _halves(inputs.case)
    return Run(lambda: target.copy_(source), lambda: [target], expected=[source])


def add_limit(inputs: Inputs) -> Run:
    """a.add_(b) at the case's footprint, in place: two reads, one write."""
    source, target = _halves(inputs.case)
    return Run(lambda: target.add_(source), lambda: [target], expected=[sample(target) + sample(source)])


def _halves(case: Case) -> tuple[Tensor, Tensor]:
    n = case.numel * case.tensors[0] // 2
    return torch.full((n,), 2.0**-20, device=case.device), torch.ones(n, device=case.device)


LIMITS = (
    Provider("add_", "limit", add_limit, lambda case: case.footprint * 3 // 2),
    Provider("copy_", "limit", copy_limit, lambda case: case.footprint),
)


def cases(op: str, directions: Iterable[str], depths: Iterable[int], sizes: Iterable[str]) -> Iterator[Case]:
    """The cases of an operator on every device there is; the largest CPU size without depths 3 and 8."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for device in devices:
        for direction in directions:
            for size in sizes:
                for depth in depths:
                    if device == "cpu" and (size in ONLY_CUDA or (size == "4e7" and depth in (3, 8))):
                        continue
                    yield Case(op, direction, device, size, depth)


def parameters(cases: Iterable[Case], providers: Sequence[Provider]) -> list[Any]:
    """One test for each provider of each case; those on a GPU carry the marker ``cuda``."""
    return [
        pytest.param(case, provider, id=f"{case.id}-{provider.name}", marks=pytest.mark.cuda if case.device == "cuda" else ())
        for case in cases
        for provider in providers
        if not provider.unless(case)
    ]
