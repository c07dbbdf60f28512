"""Runs every CUDA kernel over odd sizes, dtypes, depths and layouts, against the reference: a part of benchmarks/gpu_check.sh.

For compute-sanitizer, under which every launch and allocation is slow, --short has fewer cases and --once calls the kernels
alone. `--device cpu` runs the same over the CPU kernels.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import sparsenn
from sparsenn.ops import PatchLayer, RunSettings, backend, stacked_steps_, stacked_tables

# Relative to the largest value: roundings of a few products and sums.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
DTYPES = tuple(TOLERANCE)
Order = tuple[str, ...]  # the backends that make each call
COMPARED: Order = ("reference", "compiled", "compiled")
ONCE: Order = ("compiled",)  # compared with nothing
THRESHOLD = 0.5  # above which a weight counts, and at which weights are thresholded


# Layouts are copies, which a kernel may write into.
def flat(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def misaligned(x: Tensor) -> Tensor:
    return torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape).copy_(x)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1)


def gaps(x: Tensor) -> Tensor:
    return torch.empty(*x.shape[:-1], x.shape[-1] + 3, dtype=x.dtype, device=x.device)[..., : x.shape[-1]].copy_(x)


Layouts = tuple[Callable[[Tensor], Tensor], ...]
LAYOUTS: list[Layouts] = [
    (flat,),
    (misaligned,),
    (flat, transposed),
    (transposed, gaps, flat),
    (gaps,),
]


class Case:
    """One shape, dtype and depth; the kernel and the reference get copies of the same tensors."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, depth: int, layouts: Layouts, device: str) -> None:
        self.shape, self.dtype, self.depth, self.layouts, self.device = shape, dtype, depth, layouts, device
        self._drawn: dict[tuple[torch.dtype, int], list[Tensor]] = {}

    def __str__(self) -> str:
        names = " and ".join(layout.__name__ for layout in self.layouts)
        return f"shape {self.shape}, {self.dtype}, depth {self.depth}, {names}"

    def draw(self, count: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
        drawn = self._drawn.setdefault((dtype, seed), [])
        for k in range(len(drawn), count):
            generator = torch.Generator(self.device).manual_seed(1000 * seed + k)
            x = torch.randn(self.shape, generator=generator, dtype=torch.float64, device=self.device)
            drawn.append((x * (x.abs() > 0.1)).to(dtype))
        return [self.layouts[k % len(self.layouts)](x) for k, x in enumerate(drawn[:count])]

    def compare(self, what: str, got: list[Tensor], expected: list[Tensor]) -> None:
        for k, (a, b) in enumerate(zip(got, expected, strict=True)):
            wide = b.double()
            gap = torch.where(a == b, 0, a.double() - wide).abs()  # half products may be infinite on both sides
            largest = wide[wide.isfinite()].abs()
            scale = max(1.0, largest.max().item()) if largest.numel() else 1.0
            error = gap.max().item() / scale if b.numel() else 0.0
            if not error <= TOLERANCE[b.dtype]:
                sys.exit(f"gpu_exercise: {what}: {self}: result {k} is off by {error:.3g} of the largest value")

    def hadamard(self) -> list[Tensor]:
        out = self.draw(self.depth + 1, self.dtype, 1)[-1]
        torch.ops.sparsenn.hadamard_out(self.draw(self.depth, self.dtype, 2), out)
        return [out]

    def hadamard_backward(self) -> list[Tensor]:
        (grad,) = self.draw(1, self.dtype, 1)
        grads = self.draw(self.depth, self.dtype, 3)
        torch.ops.sparsenn.hadamard_backward_out(grad, self.draw(self.depth, self.dtype, 2), grads)
        return grads

    def places(self, count: int, measures: bool) -> Tensor | None:
        return torch.full((count, 4), -1.0, dtype=torch.float64, device=self.device) if measures else None

    def measured(self, name: str, rows: Tensor | None, weights: list[Tensor]) -> list[Tensor]:
        """The sums that a step has measured, as exact as weights are; what it has counted is looked at here."""
        if rows is None:
            return []
        if rows[:, 0].tolist() != [float((w.abs() > THRESHOLD).sum()) for w in weights]:
            sys.exit(f"gpu_exercise: {name}: {self}: weights above {THRESHOLD} are not counted rightly: {rows[:, 0].tolist()}")
        return [rows[:, 1:].to(weights[0].dtype)]

    def factorized_sgd(self, count: int, with_momentum: bool, scalars: str, measures: bool) -> list[Tensor]:
        state = self.dtype if self.dtype == torch.float64 else torch.float32
        weights, grads = self.draw(count, self.dtype, 1), list(reversed(self.draw(count, self.dtype, 2)))
        factors = self.draw(count * self.depth, state, 3)
        momenta = self.draw(count * self.depth, state, 4) if with_momentum else []
        lr, lam = torch.tensor(0.1, device=scalars), torch.tensor(1e-3, dtype=torch.float64, device=scalars)
        rule = (0.9 if with_momentum else 0.0, 0.0, 1e-2, with_momentum, False)
        rows = self.places(count, measures)
        torch.ops.sparsenn.factorized_sgd_(weights, factors, momenta, grads, lr, lam, *rule, rows, THRESHOLD)
        return weights + factors + momenta + self.measured("factorized_sgd_", rows, weights)

    def factorized_adam(self, count: int, amsgrad: bool, scalars: str, measures: bool) -> list[Tensor]:
        state = self.dtype if self.dtype == torch.float64 else torch.float32
        weights, grads = self.draw(count, self.dtype, 1), list(reversed(self.draw(count, self.dtype, 2)))
        factors, means = (self.draw(count * self.depth, state, seed) for seed in (3, 4))
        squares, largest = ([x.square_().add_(0.1) for x in self.draw(count * self.depth, state, seed)] for seed in (5, 6))
        steps = [torch.full((), n // 2, dtype=torch.float32, device=self.device) for n in range(count)]
        lr, lam = torch.tensor(0.1, device=scalars), torch.tensor(1e-3, dtype=torch.float64, device=scalars)
        kinds = (weights, factors, means, squares, largest if amsgrad else [], steps)
        rule = (0.9, 0.999, 1e-8, 1e-2, not amsgrad, False)
        rows = self.places(count, measures)
        torch.ops.sparsenn.factorized_adam_(*kinds, grads, lr, lam, *rule, rows, THRESHOLD)
        return [x for kind in kinds for x in kind] + self.measured("factorized_adam_", rows, weights)

    def balanced_sgd(self, count: int, with_momentum: bool, scalars: str, measures: bool) -> list[Tensor]:
        state = self.dtype if self.dtype == torch.float64 else torch.float32
        weights, grads = self.draw(count, self.dtype, 1), list(reversed(self.draw(count, self.dtype, 2)))
        roots, momenta = self.draw(count, state, 3), self.draw(count, state, 4) if with_momentum else []
        lr, lam = torch.tensor(0.5, device=scalars), torch.tensor(1e-3, dtype=torch.float64, device=scalars)
        rule = (self.depth, 0.9 if with_momentum else 0.0, 0.0, 1e-2, with_momentum, False)
        rows = self.places(count, measures)
        torch.ops.sparsenn.balanced_sgd_(weights, roots, momenta, grads, lr, lam, *rule, rows, THRESHOLD)
        return weights + roots + momenta + self.measured("balanced_sgd_", rows, weights)

    def threshold(self, kind: str) -> Tensor:
        """One number, here or on the device, one for each row, or one for each element."""
        if kind in ("cpu", "device"):
            return torch.tensor(THRESHOLD, device="cpu" if kind == "cpu" else self.device)
        (tensor,) = self.draw(1, self.dtype, 5)
        return tensor.abs() if kind == "elements" else tensor[..., :1].abs()

    def prox_sgd(self, count: int, momentum: float, kind: str) -> list[Tensor]:
        state = self.dtype if self.dtype == torch.float64 else torch.float32
        weights, grads = self.draw(count, self.dtype, 1), list(reversed(self.draw(count, self.dtype, 2)))
        momenta = self.draw(count, state, 3) if momentum else []
        lams = [self.threshold(kind)] * (1 if kind in ("cpu", "device") else count)
        zeros = torch.full((2 * count,), -1, device=self.device)[::2]
        lr = torch.tensor(0.1, device=self.device if kind == "device" else "cpu")
        torch.ops.sparsenn.prox_sgd_(weights, momenta, grads, lams, zeros, lr, momentum, 0.0, 1e-2, momentum != 0, False)
        if zeros.tolist() != [int((w == 0).sum()) for w in weights]:
            sys.exit(f"gpu_exercise: prox_sgd_: {self}: the zeros are not counted rightly: {zeros.tolist()}")
        return weights + momenta

    def soft_threshold(self, kind: str) -> list[Tensor]:
        x, grad = self.draw(2, self.dtype, 1)
        level = self.threshold(kind)
        return [torch.ops.sparsenn.soft_threshold(x, level), torch.ops.sparsenn.soft_threshold_backward(grad, x, level)]

    def check(self, order: Order) -> int:
        calls: list[tuple[str, Callable[[], list[Tensor]]]] = [
            ("hadamard", self.hadamard),
            ("hadamard_backward", self.hadamard_backward),
        ]
        for first, measures in itertools.product((True, False), (False, True)):
            given = (3, first, "cpu", measures) if first else (1, first, self.device, measures)
            calls.append(("factorized_sgd_", functools.partial(self.factorized_sgd, *given)))
            calls.append(("balanced_sgd_", functools.partial(self.balanced_sgd, *given)))
            calls.append(("factorized_adam_", functools.partial(self.factorized_adam, *given)))
        for kind in ("cpu", "device", "rows", "elements") if self.depth == 1 else ():
            for momentum, count in ((0.9, 3), (0.0, 1)):
                calls.append(("prox_sgd_", lambda m=momentum, n=count, k=kind: self.prox_sgd(n, m, k)))
            calls.append(("soft_threshold", lambda k=kind: self.soft_threshold(k)))
        for name, call in calls:
            expected, *found = in_order(order, call)
            if not found:
                continue
            got, again = found
            self.compare(name, got, expected)
            if not all(torch.equal(a, b) for a, b in zip(got, again, strict=True)):
                sys.exit(f"gpu_exercise: {name}: {self}: two runs differ")
        return len(calls)


def in_order(order: Order, call: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    """What a call gives by each backend of the order."""
    results = []
    for which in order:
        with backend(which):
            results.append(call())
    return results


def check_spectral(order: Order, dtype: torch.dtype, device: str, short: bool) -> int:
    """The spectral operators, at every choice that depends on which eigenvalues there are and on the batch."""
    count = 0
    shapes = [(5, 70, 33), (200, 64, 128)] if short else [(0, 4, 3), (1, 1, 1), (5, 70, 33), (200, 64, 128), (700, 300, 260)]
    for (batch, out, inputs), kind in itertools.product(shapes, (1, 2, 3)):

        def draw(*shape: int, seed: int) -> Tensor:
            return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)

        x, upstream, phi, bias = (
            draw(*s, seed=k) for k, s in enumerate(((batch, inputs), (batch, out), (out, inputs), (out,)))
        )
        ends = (draw(inputs, seed=5) if kind & 1 else None, draw(out, seed=6) if kind & 2 else None)
        kernels = phi.unsqueeze(-1).expand(out, inputs, 3).contiguous()
        wanted = 25 + 2 * kind
        calls: list[tuple[str, tuple]] = [
            ("spectral_weight", (kernels, *ends)),
            ("spectral_weight_backward", (kernels, kernels, *ends, wanted & 7)),
            ("spectral_weight_backward_", (kernels.clone(), kernels, *ends, *ends)),
            ("spectral_linear", (x, phi, *ends, bias)),
            ("spectral_linear_backward", (upstream, x, phi, *ends, wanted)),
        ]
        for name, given in calls:
            check_call(order, name, given, dtype, f"{(batch, out, inputs)}, eigenvalues {kind}")
            count += 1
    return count


def check_ridge(order: Order, dtype: torch.dtype, device: str) -> int:
    """The norm of ridge nets, over blocks of several sizes and an empty one."""
    torch.manual_seed(0)
    outers, inners, skips = (
        [torch.randn(shape, dtype=torch.float64).to(device, dtype) for shape in shapes]
        for shapes in ([(16, 1296), (3, 0), (1, 70)], [(1296, 4), (600, 71)], [(16, 4)])
    )
    grad = torch.tensor(0.5, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    check_call(order, "ridge_norm", (outers, inners, skips), dtype, "6 matrices")
    check_call(order, "ridge_norm_backward", (grad, outers, inners, skips), dtype, "6 matrices")
    return 2


def check_call(order: Order, name: str, given: tuple, dtype: torch.dtype, what: str) -> None:
    """The kernel's results are the reference's, relative to their largest value, and the same bits twice."""

    def call() -> list[Tensor]:
        own = tree_map_only(Tensor, torch.clone, given)
        made = getattr(torch.ops.sparsenn, name)(*own)
        return [leaf for leaf in tree_leaves(own if made is None else made) if isinstance(leaf, Tensor)]

    expected, *found = in_order(order, call)
    if not found:
        return
    got, again = found
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        error = (a.double() - b.double()).abs().max().item() / scale if b.numel() else 0.0
        if a.shape != b.shape or not error <= 4 * TOLERANCE[dtype]:
            sys.exit(f"gpu_exercise: {name}: {what}, {dtype}: result {k} is off by {error:.3g} of the largest value")
    if not all(torch.equal(a, b) for a, b in zip(got, again, strict=True)):
        sys.exit(f"gpu_exercise: {name}: {what}, {dtype}: two runs differ")


def check_stacked(order: Order, dtype: torch.dtype, device: str) -> int:
    """Steps of small networks: every optimizer, penalty and activation, targets and labels, batches that are cut off."""
    kinds = [("sgd", "none"), ("sgd", "l1"), ("sgd", "l2"), ("prox", "none"), ("factorized", "none"), ("adam", "l1")]
    names = itertools.cycle(("relu", "tanh", "sigmoid", "gelu", "identity"))
    runs = [
        RunSettings(n, n % 2, next(names), next(names), optimizer, penalty, 3, lr=0.02, lam=1e-3, weight_decay=0.01 * (n % 2))
        for n, (optimizer, penalty) in enumerate(kinds)
    ]
    patches = [PatchLayer(2, 3, 7, 2, 2, True), PatchLayer(9, 5, bias=True), PatchLayer(5, 3)]
    wide = [PatchLayer(14, 300, bias=True), PatchLayer(300, 70), PatchLayer(70, 3)]  # 25000 weights, 90 kB in float32
    # The last batch is larger than a block, and its signals than the memory that a block shares.
    kinds_of_call = [(patches, 37, 16, False), (patches, 37, 16, True), (wide, 37, 16, False), (wide, 301, 300, True)]
    for layers, samples, batch, labels in kinds_of_call:

        def draw(*shape: int, seed: int) -> Tensor:
            return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)

        size = sum(layer.parameters for layer in layers)
        x, y = draw(2, samples, 14, seed=1), draw(2, samples, 3, seed=2)
        targets, results = y.argmax(2) if labels else y, []
        for which in order:
            weights, state = draw(len(runs), size, seed=3) * 0.1, draw(len(runs), 6, size, seed=4).abs() * 0.5
            losses = torch.zeros(len(runs), 2, dtype=torch.float64, device=device)
            with backend(which):
                stacked_steps_(weights, state, losses, x, targets, *stacked_tables(runs), layers, batch_size=batch, epoch=1)
            results.append((weights, state, losses))
        for k, (expected, got, again) in enumerate(zip(*results, strict=True)) if len(results) > 1 else ():
            error = (got.double() - expected.double()).abs().max().item() / max(1.0, expected.abs().max().item())
            if not error <= 20 * TOLERANCE[dtype]:  # three steps, sums of 300 products
                sys.exit(f"gpu_exercise: stacked_steps_: {dtype}, {size} weights: result {k} is off by {error:.3g}")
            if not torch.equal(got, again):
                sys.exit(f"gpu_exercise: stacked_steps_: {dtype}, {size} weights: two runs differ")
    return len(kinds_of_call)


def check_streams() -> int:
    """A stream of one's own, a captured graph that follows lr, and the last device there is."""
    device = f"cuda:{torch.cuda.device_count() - 1}"
    case = Case((5, 1031), torch.float32, 3, (flat,), device)
    expected = case.hadamard()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        got = case.hadamard()
    stream.synchronize()
    case.compare("hadamard on a stream", got, expected)

    weights, grads, factors = case.draw(1, torch.float32, 1), case.draw(1, torch.float32, 2), case.draw(3, torch.float32, 3)
    start = [factor.clone() for factor in factors]
    lr, lam = torch.tensor(0.1, device=device), torch.tensor(0.0, device=device)

    def step() -> None:
        torch.ops.sparsenn.factorized_sgd_(weights, factors, [], grads, lr, lam, 0.0, 0.0, 0.0, False, False)

    step()  # kernels are loaded when they are first launched, which a capture may not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        with torch.cuda.graph(graph):
            step()
        results = []
        for rate in (0.0, 0.2):
            lr.fill_(rate)
            for factor, value in zip(factors, start, strict=True):
                factor.copy_(value)
            graph.replay()
            torch.cuda.synchronize(device)
            results.append(torch.cat([factor.flatten() for factor in factors]))
    if not torch.equal(results[0], torch.cat([value.flatten() for value in start])) or torch.equal(*results):
        sys.exit("gpu_exercise: a captured step does not follow lr")

    # Adam counts its steps on the device, so that replays do too.
    starts = [case.draw(n, torch.float32, 5 + n) for n in (1, 3, 3, 3)]
    kinds = [[x.abs() + 0.1 if k == 3 else x.clone() for x in own] for k, own in enumerate(starts)]
    eager = [[x.clone() for x in own] for own in kinds]
    taken, counted = torch.zeros((), device=device), torch.zeros((), device=device)
    rest = (lr, lam, 0.9, 0.999, 1e-8, 0.0, False, False)
    loaded = [[x.clone() for x in own] for own in kinds]
    torch.ops.sparsenn.factorized_adam_(*loaded, [], [torch.zeros((), device=device)], grads, *rest)
    with torch.cuda.device(device):
        adam = torch.cuda.CUDAGraph()
        with torch.cuda.graph(adam):
            torch.ops.sparsenn.factorized_adam_(*kinds, [], [taken], grads, *rest)
        for _ in range(3):
            adam.replay()
            torch.ops.sparsenn.factorized_adam_(*eager, [], [counted], grads, *rest)
        torch.cuda.synchronize(device)
    for a, b in zip(itertools.chain(*kinds), itertools.chain(*eager), strict=True):
        if not torch.equal(a, b) or taken.item() != 3:
            sys.exit(f"gpu_exercise: captured steps of Adam are not those of three calls: {taken.item():g} are counted")

    # A step that waited for the device, or allocated, could not be captured.
    weights, momenta = case.draw(1, torch.float32, 4), case.draw(1, torch.float32, 5)
    lam, zeros = torch.tensor(0.0, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    with torch.cuda.device(device):
        proximal = torch.cuda.CUDAGraph()
        torch.ops.sparsenn.prox_sgd_(weights, momenta, grads, [lam], zeros, lr, 0.9, 0.0, 0.0, False, False)
        with torch.cuda.graph(proximal):
            torch.ops.sparsenn.prox_sgd_(weights, momenta, grads, [lam], zeros, lr, 0.9, 0.0, 0.0, False, False)
        counts = []
        for strength in (0.0, 1e6):
            lam.fill_(strength)
            proximal.replay()
            torch.cuda.synchronize(device)
            counts.append(zeros.item())
    if not counts[0] < counts[1] == weights[0].numel():
        sys.exit(f"gpu_exercise: a captured proximal step does not follow lam: {counts} zeros")

    # Steps of stacks bring tables from memory that is gone when a graph would read it.
    layers, runs = [PatchLayer(4, 2)], [RunSettings(0)]
    tensors = [torch.zeros(shape, device=device) for shape in ((1, 8), (1, 1, 8), (1, 2), (1, 6, 4), (1, 6, 2))]
    tensors[2] = tensors[2].double()
    with torch.cuda.device(device):
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                stacked_steps_(*tensors, *stacked_tables(runs), layers, batch_size=2, epoch=0)
        except RuntimeError as error:
            if "can't be part of a CUDA graph" not in str(error):
                sys.exit(f"gpu_exercise: a stack in a graph is refused by: {error}")
        else:
            sys.exit("gpu_exercise: a graph took steps of a stack")
    return 5


def cases(device: str, short: bool) -> list[Case]:
    """Every depth in plain tensors, and depths of each kind of kernel in the other layouts; fewer of the large shape."""
    if short:
        few = itertools.product([(3, 1031)], [torch.float32, torch.bfloat16], [1, 3, 9], LAYOUTS[1:4])
        return [Case(*kind, device) for kind in few]
    small = [(0, 4), (1, 1), (7, 13), (3, 1031), (2, 3, 5, 7)]
    kinds = itertools.chain(
        itertools.product(small, DTYPES, [1, 2, 3, 4, 5, 6, 7, 8, 9, 12], LAYOUTS[:1]),
        itertools.product(small, DTYPES, [1, 2, 3, 9], LAYOUTS[1:]),
        itertools.product([(64, 4096)], DTYPES, [2, 4, 9], LAYOUTS[:2]),
    )
    return [Case(*kind, device) for kind in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer shapes, dtypes, depths and layouts")
    parser.add_argument("--once", action="store_true", help="call every kernel once, and compare nothing")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    order = ONCE if arguments.once else COMPARED
    with backend("compiled"):
        pass
    if arguments.device != "cpu" and not sparsenn._extension.status()["libraries"]["cuda"].loaded:
        sys.exit(f"gpu_exercise: {sparsenn._extension.status()['libraries']['cuda'].problem}")
    device, count = arguments.device, 0
    for dtype in (torch.float32, torch.bfloat16) if arguments.short else DTYPES:
        count += check_spectral(order, dtype, device, arguments.short) + check_ridge(order, dtype, device)
    for dtype in (torch.float32, torch.float64):
        count += check_stacked(order, dtype, device)
    # torch's allocator, where it is told to keep nothing, lets no graph allocate.
    if device != "cpu" and not os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"):
        count += check_streams()
    print(f"gpu_exercise: {count} calls of spectral layers, ridge norms, stacks, streams and graphs", flush=True)
    work = cases(device, arguments.short)
    for number, case in enumerate(work, start=1):
        count += case.check(order)
        if number % 100 == 0:
            print(f"gpu_exercise: {number} of {len(work)} cases of steps and products", flush=True)
    print(f"gpu_exercise: {count} calls {'were made' if arguments.once else 'agree with the reference'} on {device}")


if __name__ == "__main__":
    main()
