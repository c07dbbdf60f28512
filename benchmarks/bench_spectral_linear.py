"""A linear layer by its spectrum: forward, forward and backward, and the pass that takes the weight's gradient apart.

lambda_in is absent, as in a default layer. oneDNN's product is called through an operator that torch keeps for its compiler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import FLOAT, LIMITS, Case, Provider, Run, parameters
from sparsenn.ops import reference, spectral_linear

SHAPES = {"784x300": (784, 300), "1024x1024": (1024, 1024), "4096x4096": (4096, 4096)}  # in, out
BATCHES = (1, 8, 32, 64, 256, 1024)
TOLERANCE = 5e-5  # of sums of up to 4096 numbers in float32


@dataclass(frozen=True)
class SpectralCase(Case):
    """`depth` is the batch."""

    counts = "B"

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        inputs, outputs = SHAPES[self.size]
        return ((outputs, inputs),)

    @property
    def tensors(self) -> int:
        """The pass reads the gradient and phi and writes phi's gradient over it."""
        return 2 if self.direction == "gradients" else 4

    @property
    def bytes(self) -> int:
        return 3 * self.numel * FLOAT


class Inputs:
    """What all providers of a case start from."""

    def __init__(self, case: SpectralCase) -> None:
        self.case = case
        generator = torch.Generator(case.device).manual_seed(0)
        inputs, outputs = SHAPES[case.size]

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=case.device, generator=generator)

        self.x, self.phi, self.lambda_out, self.bias = (
            normal(case.depth, inputs),
            normal(outputs, inputs),
            normal(outputs),
            normal(outputs),
        )
        if case.direction == "gradients":
            self.lambda_out.sign_()  # the gradient in place is multiplied by it in every call, and keeps its size
        self.upstream = normal(case.depth, outputs)

    @functools.cached_property
    def weight(self) -> Tensor:
        return -self.lambda_out[:, None] * self.phi

    @functools.cached_property
    def expected(self) -> list[Tensor]:
        wide = [t.double() for t in (self.x, self.phi, self.lambda_out, self.bias, self.upstream)]
        x, phi, lambda_out, bias, upstream = wide
        if self.case.direction == "gradients":
            return list(reference.spectral_weight_backward(upstream.mT @ x, phi, None, lambda_out, 5))[::2]
        z = reference.composed_linear(x, phi, None, lambda_out, bias)
        if self.case.direction == "forward":
            return [z]
        d_phi, _, d_out, d_x, d_bias = reference.composed_linear_gradients(upstream, x, phi, None, lambda_out)
        return [z, d_x, d_phi, d_out, d_bias]


def two_products(x: Tensor, phi: Tensor, lambda_out: Tensor, bias: Tensor) -> Tensor:
    """Equation 6 as it stands, with a lambda_in of zeros."""
    lambda_in = x.new_zeros(x.shape[-1])
    return F.linear(lambda_in * x, phi) - lambda_out * F.linear(x, phi) + bias


def composed(x: Tensor, phi: Tensor, lambda_out: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, -lambda_out[:, None] * phi, bias)


def ours(x: Tensor, phi: Tensor, lambda_out: Tensor, bias: Tensor) -> Tensor:
    return spectral_linear(x, phi, None, lambda_out, bias)


Map = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def compiled(function: Map) -> Map:
    return torch.compile(function, fullgraph=True, dynamic=False)


def forward(make: Callable[[], Map]) -> Callable[[Inputs], Run]:
    def build(inputs: Inputs) -> Run:
        function, tensors = make(), (inputs.x, inputs.phi, inputs.lambda_out, inputs.bias)
        call = torch.no_grad()(lambda: function(*tensors))
        return Run(call, lambda: [call()], tolerance=TOLERANCE)

    return build


def step(
    inputs: Inputs, function: Callable[..., Tensor], leaves: Sequence[Tensor], expected: Sequence[Tensor] | None = None
) -> Run:
    leaves = [t.detach().requires_grad_() for t in leaves]

    def run() -> list[Tensor]:
        z = function(*leaves)
        return [z, *torch.autograd.grad(z, leaves, inputs.upstream)]

    return Run(run, run, expected=expected, tolerance=TOLERANCE)


def both(make: Callable[[], Map]) -> Callable[[Inputs], Run]:
    return lambda inputs: step(inputs, make(), (inputs.x, inputs.phi, inputs.lambda_out, inputs.bias))


def plain_forward(inputs: Inputs) -> Run:
    def call() -> Tensor:
        return F.linear(inputs.x, inputs.weight, inputs.bias)

    return Run(call, lambda: [call()], tolerance=TOLERANCE)


def plain_both(inputs: Inputs) -> Run:
    z, d_x, _, _, d_bias = inputs.expected
    expected = [z, d_x, inputs.upstream.double().mT @ inputs.x.double(), d_bias]
    return step(inputs, F.linear, (inputs.x, inputs.weight, inputs.bias), expected)


def onednn(inputs: Inputs) -> Run:
    def call() -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs.x, inputs.weight, inputs.bias, "none", [], "")

    return Run(call, lambda: [call()], tolerance=TOLERANCE)


def gradients(inputs: Inputs) -> Run:
    grad, d_lambda = inputs.upstream.mT @ inputs.x, torch.empty_like(inputs.lambda_out)

    def call() -> None:
        torch.ops.sparsenn.spectral_weight_backward_(grad, inputs.phi, None, inputs.lambda_out, None, d_lambda)

    return Run(call, lambda: [grad, d_lambda], tolerance=TOLERANCE)


def no_onednn(case: Case) -> bool:
    return case.device != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise")


unmeasured = functools.partial(Provider, bytes=lambda case: None)
PROVIDERS = {
    "forward": (
        unmeasured("operator", "ours", forward(lambda: ours)),
        unmeasured("linear", "floor", plain_forward),
        unmeasured("onednn", "floor", onednn, unless=no_onednn),
        unmeasured("two-products", "peer", forward(lambda: two_products)),
        unmeasured("compose", "peer", forward(lambda: composed)),
        unmeasured("compile-two-products", "peer", forward(lambda: compiled(two_products))),
        unmeasured("compile-compose", "peer", forward(lambda: compiled(composed))),
    ),
    "both": (
        unmeasured("operator", "ours", both(lambda: ours)),
        unmeasured("linear", "floor", plain_both),
        unmeasured("two-products", "peer", both(lambda: two_products)),
        unmeasured("compose", "peer", both(lambda: composed)),
        unmeasured("compile-two-products", "peer", both(lambda: compiled(two_products))),
        unmeasured("compile-compose", "peer", both(lambda: compiled(composed))),
    ),
    "gradients": (Provider("operator", "ours", gradients), *LIMITS),
}


def spectral_cases(direction: str) -> list[SpectralCase]:
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    batches = (1,) if direction == "gradients" else BATCHES
    return [SpectralCase("spectral_linear", direction, d, size, batch) for d in devices for size in SHAPES for batch in batches]


@pytest.mark.parametrize(
    ("case", "provider"),
    [parameter for direction, own in PROVIDERS.items() for parameter in parameters(spectral_cases(direction), own)],
)
def test_spectral_linear(case: SpectralCase, provider: Provider, measure: Callable) -> None:
    measure(case, provider, Inputs)
