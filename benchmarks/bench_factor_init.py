"""Starting D factors of a weight: ours, normal draws as `torch.nn.init` has them, and the paper's series of gamma variables.

The truth is of three kinds: what is split must multiply to the weight; what is drawn has known first and second moments of a
factor, or of the product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Gamma

from benchmarks.cases import FLOAT, Case, Inputs, Provider, Run, parameters
from sparsenn import init
from sparsenn.init.factors import MIN_ABS, MIN_WEIGHT


@dataclass(frozen=True)
class InitCase(Case):
    @property
    def footprint(self) -> int:
        """Bytes of the factors."""
        return self.depth * self.numel * FLOAT


STD = 0.05
MOMENTS = 0.02  # relative; of 2.7e5 numbers, and a product of four normal variables has a kurtosis of 81
TINY = 1e-9


def split(start: Callable[[Sequence[Tensor], Tensor], None]) -> Callable[[Inputs], Run]:
    """Starts that keep the weight, but for the floor under small ones."""

    def build(inputs: Inputs) -> Run:
        (factors,) = inputs.factors
        weight = nn.init.normal_(torch.empty_like(factors[0]), std=STD)
        kept = weight.sign() * weight.abs().clamp(min=MIN_WEIGHT if start is init.preserve_ else TINY)
        return Run(lambda: start(factors, weight), lambda: [product(factors)], expected=[kept])

    return build


def drawn(
    draw: Callable[[Sequence[Tensor]], object], of: Callable[[Sequence[Tensor]], Tensor], moments: Callable[[int], list[float]]
) -> Callable[[Inputs], Run]:
    """Starts of which the mean magnitude and the mean square are known, `of` a factor or of the product."""

    def build(inputs: Inputs) -> Run:
        (factors,) = inputs.factors
        expected = torch.tensor(moments(len(factors)), dtype=torch.float64)
        return Run(lambda: draw(factors), lambda: [moments_of(of(factors))], expected=[expected], tolerance=MOMENTS)

    return build


def product(factors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, factors)


def first(factors: Sequence[Tensor]) -> Tensor:
    return factors[0]


def moments_of(x: Tensor) -> Tensor:
    return torch.stack([x.double().abs().mean(), x.double().square().mean()])


def normal_product(depth: int) -> list[float]:
    return [STD * math.sqrt(2 / math.pi), STD**2]


def normal_factor(depth: int) -> list[float]:
    scale = STD ** (1 / depth)
    return [scale * math.sqrt(2 / math.pi), scale**2]


def truncated_factor(depth: int) -> list[float]:
    scale, upper = STD ** (1 / depth), min(1.0, (2 * STD) ** (1 / depth))
    a, b = MIN_ABS / scale, upper / scale
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in (a, b)]
    mass = (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2))) / 2
    return [scale * (density[0] - density[1]) / mass, scale**2 * (1 + (a * density[0] - b * density[1]) / mass)]


def normal(factors: Sequence[Tensor]) -> None:
    """What a net without factors starts from, D times."""
    for factor in factors:
        nn.init.normal_(factor, std=STD ** (1 / len(factors)))


def gamma_series(factors: Sequence[Tensor], terms: int = 64) -> None:
    """Lemma 5 as it stands, its tail left away."""
    depth = len(factors)
    gamma = Gamma(1 / depth, 1.0)
    for factor in factors:
        log = math.log(2 * STD**2) / (2 * depth) - gamma.sample(factor.shape)
        for k in range(1, terms + 1):
            log -= gamma.sample(factor.shape) / (2 * k + 1) - math.log1p(1 / k) / (2 * depth)
        factor.copy_(log.exp_()).mul_(torch.randint(2, factor.shape).mul_(2).sub_(1))


def is_large(case: Case) -> bool:
    return case.size != "2.7e5" or case.device != "cpu"


unmeasured = functools.partial(Provider, bytes=lambda case: None)
PROVIDERS = (
    unmeasured("preserve", "ours", split(init.preserve_)),
    unmeasured("root", "ours", split(init.root_)),
    unmeasured("dwf", "ours", drawn(lambda factors: init.dwf_(factors, STD), first, truncated_factor)),
    unmeasured("gaussian", "ours", drawn(lambda factors: init.gaussian_product_(factors, STD), product, normal_product)),
    unmeasured("normal", "peer", drawn(normal, first, normal_factor)),
    unmeasured("gamma-series", "peer", drawn(gamma_series, product, normal_product), unless=is_large),
)
CASES = [
    InitCase("factor_init", "", device, size, depth)
    for device in (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    for size in ("2.7e5", "1.1e7")
    for depth in (2, 4)
]


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_factor_init(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, Inputs)
