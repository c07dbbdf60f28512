"""Sparse inference of whole networks and of one layer by sparsenn.runtime, beside the dense engines and other sparse ones."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sparsenn
from benchmarks.cases import LENET, Case, Provider, Run, parameters
from sparsenn.training import serving

NETS = {"lenet": sparsenn.models.lenet_300_100, "lenet5": sparsenn.models.lenet5}
# Zeros in percent, or the compression, and the batches: of the first line, never slower than the best dense engine.
SIZES: dict[str, tuple[int, ...]] = {
    **{f"784x300-s{zeros}": (1, 8, 32, 256) for zeros in (0, 50, 70, 80, 90, 95, 99)},
    **{f"784x300-s{zeros}": (1, 8, 256) for zeros in (98, 99.5, 99.8)},
    **{f"4096x4096-s{zeros}": (1, 256) for zeros in (90, 99)},
    "lenet-c1": (1, 8, 32, 256),
    "lenet-c100": (1, 256),
    "lenet-c500": (1, 256),
    "lenet5-c1": (1, 8, 256),
    "lenet5-c50": (1, 8, 256),
}


@dataclass(frozen=True)
class ServedCase(Case):
    """`depth` is the batch."""

    counts = "B"

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        name = self.size.split("-")[0]
        return LENET if name in NETS else (tuple(map(int, name.split("x"))),)

    @property
    def tensors(self) -> int:
        """Each way has weights of its own, and some a copy of them."""
        return 2


class Pruned:
    """A network with random zeros, all layers alike, the ways to run it, and a batch."""

    def __init__(self, case: Case) -> None:
        name, zeros = case.size.split("-")
        left = 1 - float(zeros[1:]) / 100 if zeros[0] == "s" else 1 / float(zeros[1:])
        layer = case.shapes[0] if name not in NETS else None
        sample = (1, 28, 28) if layer is None else layer[:1]
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            net = (NETS[name]() if layer is None else nn.Sequential(nn.Linear(*layer))).eval()
            for p in net.parameters():
                p.mul_(torch.rand_like(p) < left)
        self.x = np.random.default_rng(0).standard_normal((case.depth, *sample)).astype(np.float32)
        self.folder = tempfile.TemporaryDirectory()
        path = sparsenn.save(net, Path(self.folder.name) / "net.safetensors")
        self.ours = sparsenn.runtime.load(path)
        self.net = sparsenn.load(path)
        self.ways, self.skipped = serving._ways(self.net, sample, Path(self.folder.name), compiled=False)
        with torch.no_grad():
            self.expected = [sparsenn.load(path).double()(torch.from_numpy(self.x).double())]


def forward(inputs: Pruned, way: Callable[[np.ndarray], np.ndarray]) -> Run:
    found: list[torch.Tensor] = []

    def call() -> None:
        found[:] = [torch.from_numpy(way(inputs.x))]

    call()
    return Run(lambda: way(inputs.x), lambda: found, tolerance=5e-5)


def named(name: str, inputs: Pruned) -> Run:
    return forward(inputs, inputs.ways[name])


def onednn(inputs: Pruned) -> Run:
    """oneDNN's products by weights that it laid out for this batch."""
    ops, steps = torch.ops.mkldnn, []
    for layer in inputs.net.children():
        if isinstance(layer, nn.Linear):
            weight = ops._reorder_linear_weight(layer.weight.detach(), len(inputs.x))
            bias = layer.bias.detach()
            steps.append(functools.partial(lambda x, w, b: ops._linear_pointwise(x, w, b, "none", [], ""), w=weight, b=bias))
        else:
            steps.append(torch.relu_ if isinstance(layer, nn.ReLU) else nn.Flatten())

    @torch.inference_mode()
    def run(x: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(x)
        for step in steps:
            y = step(y)
        return y.numpy()

    return forward(inputs, run)


def scipy(inputs: Pruned) -> Run:
    layers = [m for m in inputs.net.modules() if isinstance(m, nn.Linear)]
    matrices = list(sparsenn.artefact.to_scipy(inputs.net).values())
    biases = [layer.bias.detach().numpy()[:, None] for layer in layers]

    def run(x: np.ndarray) -> np.ndarray:
        y = x.reshape(len(x), -1).T
        for i, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
            y = matrix @ (np.maximum(y, 0) if i else y) + bias
        return y.T

    return forward(inputs, run)


def convolves(case: Case) -> bool:
    return case.size.startswith("lenet5")


def no_onednn(case: Case) -> bool:
    return convolves(case) or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def lacks(*packages: str) -> Callable[[Case], bool]:
    return lambda case: not all(map(importlib.util.find_spec, packages))


unmeasured = functools.partial(Provider, bytes=lambda case: None)
PROVIDERS = (
    unmeasured("runtime", "ours", lambda inputs: forward(inputs, inputs.ours)),
    unmeasured("onnx-runtime", "peer", functools.partial(named, "ONNX Runtime"), unless=lacks("onnx", "onnxruntime")),
    unmeasured("onednn", "peer", onednn, unless=no_onednn),
    unmeasured("dense", "peer", functools.partial(named, "torch")),
    unmeasured("torch-csr", "peer", functools.partial(named, "torch CSR"), unless=convolves),
    unmeasured("compacted", "peer", functools.partial(named, "compacted")),
    unmeasured("scipy", "peer", scipy, unless=lambda case: convolves(case) or lacks("scipy")(case)),
)
CASES = [ServedCase("runtime", "forward", "cpu", size, batch) for size, batches in SIZES.items() for batch in batches]


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_runtime(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, Pruned)
