"""How quick a model is, as it is and in every sparse form there is: ``sparsenn bench-model``."""

from __future__ import annotations

import copy
import importlib
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sparsenn import artefact, runtime
from sparsenn._files import write_atomic
from sparsenn.artefact.trace import trace
from sparsenn.prune.compact import compact
from sparsenn.runtime.container import read
from sparsenn.training.figures import new_axes, png

OURS = "sparsenn.runtime"
SAMPLE = "sample"  # the shape of a sample among an artefact's notes
DENSE = ("torch", "torch.compile", "ONNX Runtime")
_TOLERANCE = 1e-4
_SAMPLE_SECONDS = 3e-4

Call = Callable[[], Any]


@dataclass(frozen=True)
class Serving:
    """Seconds of one call.

    Attributes:
        batches: the sizes of the batches.
        seconds: for each way to compute the medians by batch; None where it was not measured.
        skipped: for each way that was not measured, why.
        file_bytes: of the artefact.
        dense_bytes: of all its tensors.
        choices: what each layer of the runtime runs on.
    """

    batches: tuple[int, ...]
    seconds: dict[str, tuple[float, ...]]
    skipped: dict[str, str]
    file_bytes: int
    dense_bytes: int
    choices: str

    def speed_up(self, batch: int) -> float:
        """The quickest dense way's time over the runtime's."""
        i = self.batches.index(batch)
        return min(own[i] for name, own in self.seconds.items() if name in DENSE) / self.seconds[OURS][i]

    def __str__(self) -> str:
        head = ["", *(f"batch {n}" for n in self.batches)]
        rows = [head, *([name, *map(_time, own)] for name, own in self.seconds.items())]
        rows.append(["samples/s, " + OURS, *(f"{n / s:,.0f}" for n, s in zip(self.batches, self.seconds[OURS], strict=True))])
        rows.append(["best dense ÷ ours", *(f"{self.speed_up(n):.2f}" for n in self.batches)])
        width = max(len(row[0]) for row in rows)
        lines = [row[0].ljust(width) + "".join(cell.rjust(14) for cell in row[1:]) for row in rows]
        lines += [f"{name}: not measured, {why}" for name, why in self.skipped.items()]
        lines += ["", f"file: {self.file_bytes:,} bytes; dense tensors: {self.dense_bytes:,} bytes", "", self.choices]
        slow = [str(n) for n in self.batches if self.speed_up(n) < 1]
        if slow:
            lines += ["", f"Sparse loses: the best dense way is quicker at batch {', '.join(slow)}."]
        return "\n".join(lines)


def bench_model(
    model: nn.Module | str | Path,
    sample: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 8, 64, 256),
    *,
    seconds: float = 1.0,
    compiled: bool = False,
    picture: str | Path | None = None,
) -> Serving:
    """Time a model by PyTorch, ONNX Runtime, torch's CSR matrices, after compaction, and by our runtime, one thread each.

    All ways are checked against PyTorch in float64 first, then called in turns within one process; the figures are medians.

    Args:
        model: a module, or an artefact of :func:`sparsenn.save`.
        sample: the shape of a sample; None for that which the artefact notes, as the command line's runs do.
        batches: sizes of batches.
        seconds: time for each batch.
        compiled: ``torch.compile`` too, which takes long to compile.
        picture: a PNG to draw.

    Raises:
        ValueError: for a setting out of range, or a model that the runtime does not take.
        AssertionError: if a way computes something else.
    """
    if sample is None:
        noted = None if isinstance(model, nn.Module) else read(model).about.get(SAMPLE)
        if not isinstance(noted, list) or not all(type(size) is int for size in noted):
            raise ValueError("bench_model: the model does not note the shape of a sample; give it, as --sample 1,28,28")
        sample = noted
    if not batches or min(batches) < 1 or not sample or min(sample) < 1:
        raise ValueError(f"bench_model: batches are {list(batches)}, a sample is {list(sample)}; they take sizes from 1")
    if not 0 < seconds < math.inf:
        raise ValueError(f"bench_model: seconds are {seconds}; they take a number above 0")
    if picture is not None and not Path(picture).parent.is_dir():
        raise ValueError(f"bench_model: the folder of the picture {picture} is not there")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _one_thread():
        own = Path(folder) / "model.safetensors"
        path = artefact.save(model, own) if isinstance(model, nn.Module) else Path(model)
        net = artefact.load(path)
        ours = runtime.load(path)
        ours.choices(*sample)  # refuses a shape that does not fit, in a sentence
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise ValueError(f"bench_model: {name} is {tensor.dtype}; it takes a model in float32, as by model.float()")
        # the user's own module, without the loaded network's list of calls
        eager = copy.deepcopy(model).eval() if isinstance(model, nn.Module) else net
        ways, skipped = _ways(net, tuple(sample), Path(folder), compiled, eager)
        ways[OURS] = ours
        exact = artefact.load(path).double()
        found: dict[str, list[float]] = {name: [] for name in ways}
        for batch in batches:
            x = np.random.default_rng(0).standard_normal((batch, *sample)).astype(np.float32)
            expected = exact(torch.from_numpy(x).double()).numpy()
            calls = {name: _bound(way, x) for name, way in ways.items()}
            for name, call in calls.items():
                off = float(np.abs(np.asarray(call()) - expected).max()) / max(float(np.abs(expected).max()), 1e-30)
                if not off <= _TOLERANCE:  # nor not a number
                    raise AssertionError(
                        f"bench_model: {name} is off by {off:.1e} of the largest output; it takes at most {_TOLERANCE:g}"
                    )
            for name, median in _interleaved(calls, seconds).items():
                found[name].append(median)
        contents = net.state_dict().values()
        dense = sum(tensor.numel() * tensor.element_size() for tensor in contents)
        medians = {name: tuple(own) for name, own in found.items()}
        result = Serving(tuple(batches), medians, skipped, path.stat().st_size, dense, str(ours))
    if picture is not None:
        _draw(result, Path(picture))
    return result


def summary(path: Path, *, batches: tuple[int, int] = (1, 256), seconds: float = 0.2) -> str:
    """An artefact's size beside the dense one, and the runtime beside the quickest dense way, in two sentences.

    Args:
        path: an artefact that notes the shape of a sample.
        batches: at which the two are timed.
        seconds: time for each.
    """
    found = bench_model(path, batches=batches, seconds=seconds)
    times = " and ".join(
        f"{_time(own)} for a batch of {n}, {found.speed_up(n):.1f} times as quick as the best dense way here"
        for n, own in zip(batches, found.seconds[OURS], strict=True)
    )
    share = found.dense_bytes / found.file_bytes
    return (
        f"{path.name}: {found.file_bytes:,} bytes; the dense tensors take {found.dense_bytes:,}, {share:.1f} times as many.\n"
        f"sparsenn.runtime, one thread: {times}."
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ways(
    net: nn.Module, sample: tuple[int, ...], folder: Path, compiled: bool, eager: nn.Module
) -> tuple[dict[str, Any], dict[str, str]]:
    example = torch.zeros(2, *sample)
    ways: dict[str, Any] = {"torch": _torch(eager)}
    skipped: dict[str, str] = {}
    makers: dict[str, Callable[[], Any]] = {
        "ONNX Runtime": lambda: _onnx(net, folder, example),
        "torch CSR": lambda: _csr(net),
        "compacted": lambda: _torch(compact(net, torch.randn(2, *sample))),
    }
    if compiled:
        makers["torch.compile"] = lambda: _torch(torch.compile(net, dynamic=False))
    for name, make in makers.items():
        try:
            ways[name] = make()
        except Exception as error:  # what an engine raises is its own class
            skipped[name] = str(error).splitlines()[0]
    return ways, skipped


def _torch(net: Any) -> Callable[[np.ndarray], np.ndarray]:
    @torch.inference_mode()
    def run(x: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(x)).numpy()

    return run


def _onnx(net: nn.Module, folder: Path, example: torch.Tensor) -> Callable[[np.ndarray], np.ndarray]:
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = artefact.to_onnx(net, folder / "model.onnx", example)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"v0": x})[0]


def _csr(net: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """A chain of linear layers with CSR weights and functions between them."""
    matrices = artefact.to_torch_sparse(net)
    steps: list[Callable[[torch.Tensor], torch.Tensor]] = []
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "relu": F.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "gelu": F.gelu,
    }
    for at, op in enumerate(trace(net)):
        if op.of != (at,) or op.kind not in (*functions, "linear", "flatten", "identity", "dropout"):
            raise ValueError(f"it has no CSR form of {op.title}")
        if op.kind == "linear":
            steps.append(_affine(matrices[f"{op.module}.weight"], net.state_dict().get(f"{op.module}.bias")))
        elif op.kind == "flatten":
            steps.append(nn.Flatten())
        elif op.kind in functions:
            steps.append(functions[op.kind])

    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(x)
        for step in steps:
            y = step(y)
        return y.detach().numpy()

    return run


def _affine(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: (weight @ x.t()).t() + (0 if bias is None else bias)


def _bound(way: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> Call:
    return lambda: way(x)


def _interleaved(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """The median time of each call, taken in turns of a random order."""

    def timed(call: Call, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    counts = {name: max(1, math.ceil(_SAMPLE_SECONDS / min(timed(call, 1) for _ in range(3)))) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle, end = list(calls), random.Random(0).shuffle, time.perf_counter() + seconds
    while len(samples[order[0]]) < 5 or time.perf_counter() < end:
        shuffle(order)
        for name in order:
            calls[name]()  # brings its own data into the caches
            samples[name].append(timed(calls[name], counts[name]))
    return {name: float(np.median(own)) for name, own in samples.items()}


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs" if seconds < 1e-2 else f"{seconds * 1e3:,.1f} ms"


def _draw(result: Serving, path: Path) -> None:
    figure, axes = new_axes("Throughput, one thread", "batch", "samples per second")
    for name, own in result.seconds.items():
        rates = [n / s for n, s in zip(result.batches, own, strict=True)]
        axes.plot(result.batches, rates, marker="o", label=name, linewidth=3 if name == OURS else 1.5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(frameon=False)
    write_atomic(path, png(figure))
