"""Sparse inference of whole networks and of one layer by sparsenn.runtime, beside the dense engines and other sparse ones."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sparsenn
from benchmarks.cases import Case, Provider, Run, cases, parameters
from sparsenn.training import serving

BATCHES = (1, 8, 64, 256)
COMPRESSIONS = {"lenet": (1, 10, 100, 500), "lenet5": (1, 10, 50), "lenet.fc1": (10, 20, 50, 100, 200, 500)}
BUILD = {
    "lenet": sparsenn.models.lenet_300_100,
    "lenet5": sparsenn.models.lenet5,
    "lenet.fc1": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 300)),
}
SIZES = [f"{name}-c{c}-b{batch}" for name, own in COMPRESSIONS.items() for c in own for batch in BATCHES]


class Pruned:
    """A network with random zeros, all layers alike, the ways to run it, and a batch."""

    def __init__(self, case: Case) -> None:
        name, compression, batch = case.size.split("-")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            net = BUILD[name]().eval()
            for p in net.parameters():
                p.mul_(torch.rand_like(p) * int(compression[1:]) < 1)
        self.x = np.random.default_rng(0).standard_normal((int(batch[1:]), 1, 28, 28)).astype(np.float32)
        self.folder = tempfile.TemporaryDirectory()
        path = sparsenn.save(net, Path(self.folder.name) / "net.safetensors")
        self.ours = sparsenn.runtime.load(path)
        self.net = sparsenn.load(path)
        self.ways, self.skipped = serving._ways(self.net, (1, 28, 28), Path(self.folder.name), compiled=False)
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


def lacks(*packages: str) -> Callable[[Case], bool]:
    return lambda case: not all(map(importlib.util.find_spec, packages))


unmeasured = functools.partial(Provider, bytes=lambda case: None)
PROVIDERS = (
    unmeasured("runtime", "ours", lambda inputs: forward(inputs, inputs.ours)),
    unmeasured("onnx-runtime", "peer", functools.partial(named, "ONNX Runtime"), unless=lacks("onnx", "onnxruntime")),
    unmeasured("dense", "peer", functools.partial(named, "torch")),
    unmeasured("torch-csr", "peer", functools.partial(named, "torch CSR"), unless=convolves),
    unmeasured("compacted", "peer", functools.partial(named, "compacted")),
    unmeasured("scipy", "peer", scipy, unless=lambda case: convolves(case) or lacks("scipy")(case)),
)
CASES = [case for case in cases("runtime", ["forward"], depths=[1], sizes=SIZES) if case.device == "cpu"]


@pytest.mark.parametrize(("case", "provider"), parameters(CASES, PROVIDERS))
def test_runtime(case: Case, provider: Provider, measure: Callable) -> None:
    measure(case, provider, Pruned)
