"""A forward of LeNet-300-100 with half of its hidden neurons dead: as it is, and after compaction."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from benchmarks.cases import Case, Provider, Run, cases, parameters
from sparsenn.models import lenet_300_100
from sparsenn.prune import compact

BATCHES = {"lenet-half-b1": 1, "lenet-half-b64": 64, "lenet-half-b1024": 1024}


class HalfDead:
    """The network, and a batch."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(BATCHES[case.size], 1, 28, 28, generator=generator).to(case.device)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            self.net = lenet_300_100().to(case.device).eval()
            for layer in (self.net[1], self.net[3]):
                nn.init.uniform_(layer.bias, -0.1, 0.1)
                layer.weight[::2] = 0
        with torch.no_grad():
            double = lenet_300_100().to(case.device).double()
            double.load_state_dict(self.net.state_dict())
            self.expected = [double(self.x.double())]


def forward(inputs: HalfDead, net: nn.Module) -> Run:
    found: list[torch.Tensor] = []

    @torch.inference_mode()
    def call() -> None:
        found[:] = [net(inputs.x)]

    return Run(call, lambda: found, tolerance=2e-5)


unmeasured = functools.partial(Provider, bytes=lambda case: None)
PROVIDERS = (
    unmeasured("compacted", "ours", lambda inputs: forward(inputs, compact(inputs.net, inputs.x[:1]))),
    unmeasured("dense", "peer", lambda inputs: forward(inputs, inputs.net)),
)
CASES = cases("compact", ["forward"], depths=[1], sizes=BATCHES)


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_compact(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, HalfDead)
