"""Small students in training, many at once: 100 steps of R runs a call, batches of 16, SGD with momentum, an L1 subgradient.

Run-steps a second are 100 R over the seconds of a call. The peers: the ordinary loop, one student after the other, vmap over
the gradient, batched products with the chain rule written out, and the same compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsenn
from benchmarks.cases import Case, Provider, Run, parameters
from sparsenn.ops import PatchLayer, RunSettings, permutation, stacked_steps_, stacked_tables

STUDENTS = {
    "fcn_256_32": ([PatchLayer(12, 256), PatchLayer(256, 32), PatchLayer(32, 1)], "relu"),
    "baselineCNN": ([PatchLayer(1, 1, 12, 3), PatchLayer(1, 1, 4, 2), PatchLayer(1, 1, 2, 2)], "tanh"),
    "multiChannelCNN": ([PatchLayer(1, 4, 12, 3), PatchLayer(4, 4, 4, 2), PatchLayer(4, 1, 2, 2)], "tanh"),
}
STEPS, BATCH, LR, MOMENTUM, LAM = 100, 16, 5e-3, 0.9, 1e-5
TOLERANCE = 2e-4  # of weights after 100 steps in float32
CHECKED = 44  # runs, first and last ones: the definition takes some 200 calls of PyTorch a run and step


def checked(runs: Any) -> Any:
    """Those of a list or of a tensor's rows that are compared with the definition."""
    half = CHECKED // 2
    if len(runs) <= CHECKED:
        return runs
    return torch.cat([runs[:half], runs[-half:]]) if isinstance(runs, Tensor) else runs[:half] + runs[-half:]


@dataclass(frozen=True)
class StackedCase(Case):
    """`size` is the student, `depth` the number of runs."""

    counts = "R"

    @property
    def footprint(self) -> int:
        """Bytes of weights and momenta."""
        return 8 * self.depth * sum(layer.parameters for layer in STUDENTS[self.size][0])

    @property
    def bytes(self) -> int:
        """What the steps must read and write if nothing stays in a cache."""
        return 2 * STEPS * self.footprint


class Inputs:
    """What all providers of a case start from; the peers' activations are (run, sample, position, channel)."""

    def __init__(self, case: StackedCase) -> None:
        self.case = case
        self.layers, self.activation = STUDENTS[case.size]
        self.runs = [
            RunSettings(n, 0, self.activation, self.activation, penalty="l1", lr=LR, lam=LAM) for n in range(case.depth)
        ]
        generator = torch.Generator().manual_seed(0)
        draws = [
            torch.randn(case.depth, layer.parameters, generator=generator) * (2 / (layer.in_channels * layer.kernel)) ** 0.5
            for layer in self.layers
        ]
        self.weights = torch.cat(draws, 1).to(case.device)
        self.x = torch.randn(1, STEPS * BATCH, 12, generator=generator).to(case.device)
        self.y = torch.rand(1, STEPS * BATCH, 1, generator=generator).to(case.device)
        orders = [permutation(STEPS * BATCH, n, 0).view(STEPS, BATCH) for n in range(case.depth)]
        self.orders = torch.stack(orders, 1).to(case.device)  # (step, run, sample)

    @functools.cached_property
    def expected(self) -> list[Tensor]:
        """In float64, by the definition."""
        run = fused(self, torch.float64, "reference", checked)
        run.call()
        return list(run.outcome() if run.outcome else [])

    def matrices(self) -> list[Tensor]:
        """Each layer's weights as (run, out, kernel x in), which is how its patches lie."""
        found, start = [], 0
        for layer in self.layers:
            own = self.weights[:, start : start + layer.parameters].unflatten(1, (layer.out_channels, layer.in_channels, -1))
            found.append(own.transpose(2, 3).flatten(2).contiguous())
            start += layer.parameters
        return found

    def flat(self, matrices: list[Tensor]) -> list[Tensor]:
        pairs = zip(self.layers, matrices, strict=True)
        found = [m.detach().unflatten(2, (layer.kernel, layer.in_channels)).transpose(2, 3).flatten(1) for layer, m in pairs]
        return [checked(torch.cat(found, 1))]


def fused(
    inputs: Inputs,
    dtype: torch.dtype = torch.float32,
    backend: str = "compiled",
    chosen: Callable[[Any], Any] = lambda runs: runs,
) -> Run:
    weights, x, y = chosen(inputs.weights).to(dtype, copy=True), inputs.x.to(dtype), inputs.y.to(dtype)
    state = torch.zeros_like(weights)[:, None].contiguous()
    losses = torch.zeros(len(weights), 2, dtype=torch.float64, device=weights.device)
    tables = stacked_tables(chosen(inputs.runs))

    def call() -> None:
        with sparsenn.ops.backend(backend):
            stacked_steps_(weights, state, losses, x, y, *tables, inputs.layers, batch_size=BATCH, epoch=0)

    return Run(call, lambda: [checked(weights)], tolerance=TOLERANCE)


class Layer(nn.Module):
    """Patches of (sample, position, channel), and one product."""

    def __init__(self, weight: Tensor, kernel: int, activation: str) -> None:
        super().__init__()
        self.weight, self.kernel = nn.Parameter(weight.clone()), kernel
        self.activation = getattr(torch, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(nn.functional.linear(x.reshape(x.shape[0], x.shape[1] // self.kernel, -1), self.weight))


def ordinary_loop(inputs: Inputs) -> Run:
    matrices = inputs.matrices()
    nets, optimizers = [], []
    for n in range(inputs.case.depth):
        own = [Layer(m[n], layer.kernel, inputs.activation) for m, layer in zip(matrices, inputs.layers, strict=True)]
        nets.append(nn.Sequential(*own))
        optimizers.append(torch.optim.SGD(nets[-1].parameters(), lr=LR, momentum=MOMENTUM))
    length = inputs.layers[0].length

    def call() -> None:
        for n, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            for order in inputs.orders[:, n]:
                optimizer.zero_grad()
                output = net(inputs.x[0, order].view(BATCH, length, -1)).view(BATCH, 1)
                loss = nn.functional.mse_loss(output, inputs.y[0, order])
                (loss + LAM * sum(p.abs().sum() for p in net.parameters())).backward()
                optimizer.step()

    stacked = zip(*(net.parameters() for net in nets), strict=True)
    parts = list(stacked)
    return Run(call, lambda: inputs.flat([torch.stack([p.detach() for p in part]) for part in parts]), tolerance=TOLERANCE)


def vmapped(inputs: Inputs) -> Run:
    matrices = inputs.matrices()
    momenta = [torch.zeros_like(m) for m in matrices]
    act, length = getattr(torch, inputs.activation), inputs.layers[0].length

    def loss(own: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        a = x.view(BATCH, length, -1)
        for weight, layer in zip(own, inputs.layers, strict=True):
            a = act(nn.functional.linear(a.reshape(BATCH, a.shape[1] // layer.kernel, -1), weight))
        return nn.functional.mse_loss(a.reshape(BATCH, 1), y) + LAM * sum(w.abs().sum() for w in own)

    gradient = torch.func.vmap(torch.func.grad(loss))

    def call() -> None:
        for order in inputs.orders:
            grads = gradient(matrices, inputs.x[0, order], inputs.y[0, order])
            torch._foreach_mul_(momenta, MOMENTUM)
            torch._foreach_add_(momenta, grads)
            torch._foreach_add_(matrices, momenta, alpha=-LR)

    return Run(call, lambda: inputs.flat(matrices), tolerance=TOLERANCE)


def batched_step(
    matrices: list[Tensor], momenta: list[Tensor], x: Tensor, y: Tensor, layers: list[PatchLayer], relu: bool
) -> None:
    """One step of all runs by batched products, the chain rule written out."""
    runs = x.shape[0]
    patches, values = [], []
    a = x.view(runs, BATCH, layers[0].length, -1)
    for weight, layer in zip(matrices, layers, strict=True):
        patches.append(a.reshape(runs, BATCH * (a.shape[2] // layer.kernel), -1))
        z = torch.bmm(patches[-1], weight.mT)
        values.append(z.relu() if relu else z.tanh())
        a = values[-1].view(runs, BATCH, -1, layer.out_channels)
    pull = (values[-1] - y) * (2 / BATCH)
    for n in reversed(range(len(layers))):
        value = values[n]
        pull = pull * ((value > 0) if relu else 1 - value * value)
        grad = torch.bmm(pull.mT, patches[n]) + LAM * matrices[n].sign()
        if n:
            pull = torch.bmm(pull, matrices[n]).view_as(values[n - 1])
        momenta[n].mul_(MOMENTUM).add_(grad)
        matrices[n].sub_(momenta[n], alpha=LR)


def batched(inputs: Inputs, step: Callable[..., None] = batched_step) -> Run:
    matrices = inputs.matrices()
    momenta = [torch.zeros_like(m) for m in matrices]

    def call() -> None:
        for order in inputs.orders:
            step(matrices, momenta, inputs.x[0, order], inputs.y[0, order], inputs.layers, inputs.activation == "relu")

    return Run(call, lambda: inputs.flat(matrices), tolerance=TOLERANCE)


def compiled(inputs: Inputs) -> Run:
    return batched(inputs, torch.compile(batched_step, fullgraph=True, dynamic=False))


def many(case: Case) -> bool:
    return case.depth > (10 if case.device == "cuda" else 64)  # the ordinary loop takes seconds there, and is no faster


PROVIDERS = (
    Provider("fused", "ours", fused),
    Provider("loop", "peer", ordinary_loop, unless=many),
    Provider("vmap", "peer", vmapped),
    Provider("bmm", "peer", batched),
    Provider("compiled-bmm", "peer", compiled),
)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
CASES = [
    StackedCase("stacked_steps", "", device, size, runs)
    for device in DEVICES
    for size, runs in (
        ("fcn_256_32", 10),
        ("fcn_256_32", 45),
        ("baselineCNN", 32),
        ("multiChannelCNN", 32),
        ("multiChannelCNN", 270),
        *([("fcn_256_32", 1000), ("multiChannelCNN", 4000)] if device == "cuda" else []),
    )
]


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_stacked_steps(case: StackedCase, provider: Provider, measure: Callable) -> None:
    measure(case, provider, Inputs)
