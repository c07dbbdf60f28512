"""An epoch of the RBV² experiments: 81 points, two blocks of 1296 neurons with 16 numbers between them, the norm, Adam."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases import STEPS, Case, Provider, Run, parameters
from sparsenn.nn import RidgeNet
from sparsenn.optim import ridge_proximal
from sparsenn.papers.rbv2.experiment import Choices, grid_data, make_net
from sparsenn.papers.rbv2.stack import RidgeStack
from sparsenn.penalties import rbv2

# With an epsilon far above the gradients Adam's steps are in proportion to them, and the gate sees a wrong term that is small;
# near 0 the steps would be signs, of which rounding turns some.
LAM, LR, EPS = 1e-3, 1e-2, 1.0
TOLERANCE = 3e-4  # of how far the weights went; one of them may turn by rounding


@dataclass(frozen=True)
class RidgeCase(Case):
    """`depth` is the number of nets that train together; the direction says how the norm acts."""

    counts = "R"

    @property
    def footprint(self) -> int:
        """Bytes of what the neurons of a net say, and of its weights with Adam's moments."""
        return self.depth * 4 * (3 * 81 * 1296 + 4 * 50_000)


class Inputs:
    """The task of the paper, and its nets for the first seeds."""

    def __init__(self, case: RidgeCase) -> None:
        self.case = case
        data = [grid_data(1, seed) for seed in range(case.depth)]
        self.x, self.y = (torch.stack(part).to(case.device) for part in zip(*data, strict=True))

    def nets(self, dtype: torch.dtype = torch.float32) -> list[RidgeNet]:
        made = [make_net("ridge", seed, Choices()).to(self.case.device, dtype) for seed in range(self.case.depth)]
        return [net for net in made if isinstance(net, RidgeNet)]

    @functools.cached_property
    def expected(self) -> list[Tensor]:
        """After the gate's epochs in float64, by the formula and autograd."""
        run = autograd(self, formula, torch.float64)
        for _ in range(STEPS):
            run.call()
        return [] if run.outcome is None else list(run.outcome())


def formula(net: nn.Module) -> Tensor:
    """Equation 2 as it stands."""
    blocks: Any = net.children()
    return sum(
        (
            b.outer.weight.abs().sum(0).square().sum() + b.inner.weight.square().sum() + b.skip.weight.abs().sum()
            for b in blocks
        ),
        torch.zeros((), dtype=next(net.parameters()).dtype),
    )


def objective(inputs: Inputs, nets: list[RidgeNet], norm: Callable[[nn.Module], Tensor]) -> Callable[[], Tensor]:
    x, y = (t.to(next(nets[0].parameters()).dtype) for t in (inputs.x, inputs.y))
    in_loss = inputs.case.direction == "norm"

    def loss() -> Tensor:
        return sum(
            (
                (net(own) - right).square().mean() + (LAM * norm(net) if in_loss else 0)
                for net, own, right in zip(nets, x, y, strict=True)
            ),
            torch.zeros((), device=x.device),
        )

    return loss


def optimizer(inputs: Inputs, nets: list[RidgeNet], **options: Any) -> torch.optim.Optimizer:
    if inputs.case.direction == "proximal":
        return ridge_proximal(nn.ModuleList(nets), lambda groups: torch.optim.Adam(groups, LR, eps=EPS, **options), LAM)
    return torch.optim.Adam(nn.ModuleList(nets).parameters(), LR, eps=EPS, **options)


def autograd(
    inputs: Inputs,
    norm: Callable[[nn.Module], Tensor],
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    **options: Any,
) -> Run:
    """The loop that anyone would write."""
    nets = inputs.nets(dtype)
    moved = way_of(nets)
    adam, loss = optimizer(inputs, nets, **options), objective(inputs, nets, norm)
    value = torch.compile(loss) if compiled else loss

    def epoch() -> None:
        adam.zero_grad()
        value().backward()
        adam.step()

    return Run(epoch, moved, STEPS, tolerance=TOLERANCE)


def stack(inputs: Inputs) -> Run:
    """The papers' own way."""
    nets = inputs.nets()
    moved = way_of(nets)
    together = RidgeStack(nets)
    in_loss = inputs.case.direction == "norm"
    adam = torch.optim.Adam([together.weights], LR, eps=EPS, fused=True) if in_loss else optimizer(inputs, nets, fused=True)
    lam = torch.tensor(LAM, device=inputs.case.device) if in_loss else None

    def epoch() -> None:
        together.gradients(inputs.x, inputs.y, lam)
        adam.step()

    return Run(epoch, moved, STEPS, tolerance=TOLERANCE)


def way_of(nets: list[RidgeNet]) -> Callable[[], list[Tensor]]:
    """How far the weights are from where they are now: of the weights themselves, an epoch's error is too small a share."""
    weights = [p for net in nets for p in net.parameters()]
    start = [p.detach().clone() for p in weights]
    return lambda: [p.detach() - began for p, began in zip(weights, start, strict=True)]


def by_steps(case: Case) -> bool:
    return case.direction == "proximal"


unmeasured = functools.partial(Provider, bytes=lambda case: None)
PROVIDERS = (
    unmeasured("stack", "ours", stack),
    unmeasured("modules", "ours", lambda inputs: autograd(inputs, rbv2, fused=True), unless=by_steps),
    unmeasured("eager", "peer", lambda inputs: autograd(inputs, formula)),
    unmeasured("eager-fused", "peer", lambda inputs: autograd(inputs, formula, fused=True)),
    unmeasured("compile", "peer", lambda inputs: autograd(inputs, formula, compiled=True, fused=True)),
)
CASES = [
    RidgeCase("ridge", direction, device, "", nets)
    for device in (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    for direction, nets in (("norm", 1), ("norm", 3), ("proximal", 1))
]


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_ridge(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, Inputs)
