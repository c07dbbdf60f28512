"""Many steps of many small networks in one call: the structure, the settings of a run, checks and the public function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsenn.ops import library  # noqa: F401  (registers the operators)
from sparsenn.ops.permutation import MAX_SIZE
from sparsenn.ops.reference.stacked import ACTIVATIONS, OPTIMIZERS, PENALTIES

_ops = torch.ops.sparsenn

MAX_DEPTH = 8
_COLUMNS = {"codes": 7, "rates": 8}


class PatchLayer(NamedTuple):
    """A layer of all networks of a stack: a convolution over patches that do not overlap; the defaults make it linear.

    Weights are (filters, out_channels, in_channels, kernel) and biases (filters, out_channels): of ``length`` inputs a channel,
    ⌊length / kernel⌋ patches are read, and patch p meets filter p mod ``filters``.
    """

    in_channels: int
    out_channels: int
    length: int = 1
    kernel: int = 1
    filters: int = 1
    bias: bool = False

    @property
    def inputs(self) -> int:
        """How many numbers the layer takes for a sample: (in_channels, length), row-major."""
        return self.in_channels * self.length

    @property
    def outputs(self) -> int:
        """How many it gives: (out_channels, patches), row-major."""
        return self.out_channels * (self.length // self.kernel)

    @property
    def parameters(self) -> int:
        """How many weights and biases it has."""
        return self.filters * self.out_channels * (self.in_channels * self.kernel + bool(self.bias))


def state_rows(optimizer: str, depth: int) -> int:
    """How many numbers one of `OPTIMIZERS` keeps for a weight: a momentum, two moments, or its factors and their momenta."""
    return {"factorized": 2 * depth, "adam": 2}.get(optimizer, 1)


_STATE_ROWS = np.array([[state_rows(optimizer, depth) for depth in range(MAX_DEPTH + 1)] for optimizer in OPTIMIZERS])


class RunSettings(NamedTuple):
    """What may differ between the runs of a stack; see `stacked_steps_`."""

    seed: int = 0
    data: int = 0
    activation: str = "relu"
    last: str = "relu"
    optimizer: str = "sgd"
    penalty: str = "none"
    depth: int = 2
    lr: float = 0.005
    lam: float = 0.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clipping: float = 0.0
    weight_decay: float = 0.0

    @property
    def state_rows(self) -> int:
        """How many numbers the optimizer keeps for a weight."""
        return state_rows(self.optimizer, self.depth)


def stacked_tables(runs: Sequence[RunSettings]) -> tuple[Tensor, Tensor]:
    """The settings of runs as the two tables that `stacked_steps_` takes.

    Args:
        runs: One for each run.

    Returns:
        int64 codes and float64 rates, a row for each run, on the CPU. A seed is taken modulo 2^64.

    Raises:
        ValueError: for a setting that is unknown or out of its range; the message names it and the run.

    Example:
        >>> from sparsenn.ops import RunSettings, stacked_tables
        >>> codes, rates = stacked_tables([RunSettings(seed=7, activation="tanh", optimizer="prox", lam=1e-3)])
        >>> codes.tolist()
        [[7, 0, 2, 1, 1, 0, 2]]
    """
    codes, rates = [], []
    for n, run in enumerate(runs):
        _check_settings(n, run)
        seed = run.seed % 2**64
        codes.append(
            [
                seed - 2**64 if seed >> 63 else seed,
                run.data,
                ACTIVATIONS.index(run.activation),
                ACTIVATIONS.index(run.last),
                OPTIMIZERS.index(run.optimizer),
                PENALTIES.index(run.penalty),
                run.depth,
            ]
        )
        rates.append([float(x) for x in run[_COLUMNS["codes"] :]])
    tables = torch.tensor(codes, dtype=torch.int64), torch.tensor(rates, dtype=torch.float64)
    return tables[0].view(-1, _COLUMNS["codes"]), tables[1].view(-1, _COLUMNS["rates"])


def _check_settings(n: int, run: RunSettings) -> None:
    where = f"stacked_tables: run {n}"
    names = {"activation": ACTIVATIONS, "last": ACTIVATIONS, "optimizer": OPTIMIZERS, "penalty": PENALTIES}
    for name, known in names.items():
        if getattr(run, name) not in known:
            raise ValueError(f"{where}: {name} is {getattr(run, name)!r}; it takes {', '.join(map(repr, known))}")
    ranges: dict[str, tuple[bool, str]] = {
        "data": (run.data >= 0, "0 or more"),
        "depth": (1 <= run.depth <= MAX_DEPTH, f"1 to {MAX_DEPTH}"),
        "lr": (0 <= run.lr < math.inf, "a finite number, 0 or more"),
        "lam": (0 <= run.lam < math.inf, "a finite number, 0 or more"),
        "momentum": (0 <= run.momentum < 1, "0 <= momentum < 1"),
        "beta1": (0 <= run.beta1 < 1, "0 <= beta1 < 1"),
        "beta2": (0 <= run.beta2 < 1, "0 <= beta2 < 1"),
        "eps": (0 <= run.eps < math.inf, "a finite number, 0 or more"),
        "clipping": (0 <= run.clipping < math.inf, "a finite number, 0 or more"),
        "weight_decay": (0 <= run.weight_decay < math.inf, "a finite number, 0 or more"),
    }
    for name, (fits, takes) in ranges.items():
        if not fits:
            raise ValueError(f"{where}: {name} is {getattr(run, name)}; it takes {takes}")
    if run.penalty != "none" and run.optimizer in ("prox", "factorized"):
        raise ValueError(
            f"{where}: penalty is {run.penalty!r}; it takes 'none' with optimizer {run.optimizer!r}, whose own step has lam"
        )


def stacked_steps_(
    weights: Tensor,
    state: Tensor,
    losses: Tensor,
    x: Tensor,
    y: Tensor,
    codes: Tensor,
    rates: Tensor,
    layers: Sequence[PatchLayer],
    *,
    batch_size: int,
    epoch: int,
    first: int = 0,
    steps: int | None = None,
    active: Tensor | None = None,
) -> None:
    r"""Train R small networks of one structure for steps of an epoch, each as if it were alone, in place.

    Step s of a run takes the samples π(sB), ..., π(sB + B − 1), where π is the `permutation` of N, the seed and the epoch; the
    last batch of an epoch may be smaller. It adds the mean loss of the batch and the penalty, both before the step, to
    ``losses``, and moves the weights by their gradient g:

    - ``"sgd"``: v ← μ v + g, w ← w − η v.
    - ``"prox"``: the same, then soft thresholding at ηλ / (1 − μ): `sparsenn.optim.ProxSGD`. Its penalty is λ Σ|w|.
    - ``"factorized"``: the same on each of D factors by :math:`g \prod_{k \ne d} \omega_k + 2\lambda\omega_d / D`; w becomes
      their product: `sparsenn.optim.FactorizedSGD`. Its penalty is (λ / D) Σ ω².
    - ``"adam"``: torch.optim.Adam.

    A penalty of ``"l1"`` (λ Σ|w|) or ``"l2"`` (λ Σ w²) is part of the loss: g holds λ sign(w) or 2λ w. A ``weight_decay`` of κ
    adds κ w to g, as in `torch.optim`, and nothing to the loss. Both act on biases too. After a step, weights with \|w\| below
    ``clipping`` become 0; factors stay as they are.

    The bits of a run depend on nothing but its own settings and numbers: not on R, its company, the threads, how the steps are
    cut into calls, or the level of x86-64. A diverged run disturbs no other.

    Args:
        weights: (R, P), float32 or float64, contiguous: each run's parameters, layer after layer, weights before biases.
        state: (R, K, P), as ``weights``, with K at least every run's ``state_rows``: the momentum v; D factors, then their D
            momenta; or Adam's first and second moments. They start at 0, but for the factors, whose product is to be w.
        losses: (R, 2), float64, contiguous: sums over steps of the data loss and of the penalty; added to.
        x: (S, N, inputs of the first layer), as ``weights``: S data sets of N samples.
        y: (S, N, outputs of the last layer), as ``weights``, for the mean squared error over samples and outputs; or int64
            labels (S, N) for the cross-entropy of the outputs.
        codes: Of `stacked_tables`: seed, data set, activation, that of the last layer, optimizer, penalty, depth.
        rates: Of `stacked_tables`: lr, lam, momentum, beta1, beta2, eps, clipping, weight_decay.
        layers: The structure; a layer takes as many numbers as the one before gives. The activation follows every layer.
        batch_size: B ≥ 1.
        epoch: Which epoch, from 0 on; Adam's count of steps is epoch ⌈N / B⌉ + s + 1.
        first: The first step within the epoch.
        steps: How many; by default all that are left in the epoch.
        active: The runs that move: int64, none twice; by default all.

    Raises:
        ValueError: for tensors of other shapes, dtypes, devices or layouts, layers that don't fit each other, settings out of
            range, steps that the epoch does not have.

    Source: the sweeps of Schulz and Poggio, L1-regularization: The path to sparsity, Section 3; `sparsenn.optim` for the steps.

    Example:
        >>> import torch
        >>> from sparsenn.ops import PatchLayer, RunSettings, stacked_steps_, stacked_tables
        >>> x = torch.randn(1, 64, 3)
        >>> weights, losses = torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.float64)
        >>> runs = [RunSettings(last="identity", lr=0.1, momentum=0.0, seed=seed) for seed in (1, 2)]
        >>> for epoch in range(50):
        ...     stacked_steps_(
        ...         weights, torch.zeros(2, 1, 3), losses, x, x.sum(2, keepdim=True), *stacked_tables(runs), [PatchLayer(3, 1)],
        ...         batch_size=16, epoch=epoch
        ...     )
        >>> [round(w, 3) for w in weights.flatten().tolist()]
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    runs = len(weights) if weights.dim() else 0
    if active is None:
        active = torch.arange(runs)
    _check_layers(layers)
    _check_tensors(weights, state, losses, x, y, layers)
    _check_tables(weights, state, x, codes, rates, active)
    batches = -(-x.shape[1] // batch_size) if batch_size > 0 else 0
    steps = batches - first if steps is None else steps
    if batch_size < 1:
        raise ValueError(f"stacked_steps_: batch_size is {batch_size}; it takes 1 or more")
    if epoch < 0:
        raise ValueError(f"stacked_steps_: epoch is {epoch}; it takes 0 or more")
    if first < 0 or steps < 0 or first + steps > batches:
        raise ValueError(f"stacked_steps_: first is {first} and steps {steps}; the epoch has {batches} steps, from 0 on")
    flat = [int(n) for layer in layers for n in (layer[0], layer[2], layer[1], *layer[3:])]
    _ops.stacked_steps_(weights, state, losses, x, y, codes, rates, active, flat, batch_size, epoch, first, steps)


def _check_layers(layers: Sequence[PatchLayer]) -> None:
    if not layers:
        raise ValueError("stacked_steps_: layers is empty; it takes one layer or more")
    for n, layer in enumerate(layers):
        if min(layer[:5]) < 1 or layer.length < layer.kernel:
            raise ValueError(f"stacked_steps_: layer {n} is {layer}; its sizes are 1 or more, and length is at least kernel")
        if n and layers[n - 1].outputs != layer.inputs:
            raise ValueError(
                f"stacked_steps_: layer {n} takes {layer.inputs} numbers, but layer {n - 1} gives {layers[n - 1].outputs}"
            )


def _check_tensors(weights: Tensor, state: Tensor, losses: Tensor, x: Tensor, y: Tensor, layers: Sequence[PatchLayer]) -> None:
    if weights.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"stacked_steps_: weights have dtype {weights.dtype}; they take float32 or float64")
    runs, parameters = len(weights) if weights.dim() else 0, sum(layer.parameters for layer in layers)
    sets, size = (x.shape[0], x.shape[1]) if x.dim() == 3 else (0, 0)
    rows = state.shape[1] if state.dim() == 3 else 1
    labels = y.dtype == torch.int64
    wanted: dict[str, tuple[Tensor, tuple[int, ...], torch.dtype]] = {
        "weights": (weights, (runs, parameters), weights.dtype),
        "state": (state, (runs, rows, parameters), weights.dtype),
        "losses": (losses, (runs, 2), torch.float64),
        "x": (x, (sets, size, layers[0].inputs), weights.dtype),
        "y": (y, (sets, size) if labels else (sets, size, layers[-1].outputs), torch.int64 if labels else weights.dtype),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"stacked_steps_: {name} is {tuple(tensor.shape)}, {tensor.dtype}; it takes {shape}, {dtype}")
        if tensor.device != weights.device:
            raise ValueError(f"stacked_steps_: {name} lies on {tensor.device}, weights on {weights.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"stacked_steps_: {name} is not contiguous; pass a contiguous tensor")
    if size > MAX_SIZE:
        raise ValueError(f"stacked_steps_: x has {size} samples; it takes at most {MAX_SIZE}")
    if labels and y.numel() and not 0 <= int(y.min()) <= int(y.max()) < layers[-1].outputs:
        raise ValueError(
            f"stacked_steps_: y has labels {int(y.min())} to {int(y.max())}; it takes 0 to {layers[-1].outputs - 1}"
        )


def _check_tables(weights: Tensor, state: Tensor, x: Tensor, codes: Tensor, rates: Tensor, active: Tensor) -> None:
    runs = len(weights)
    for name, table, dtype in (("codes", codes, torch.int64), ("rates", rates, torch.float64)):
        shape = (runs, _COLUMNS[name])
        if tuple(table.shape) != shape or table.dtype != dtype or table.device.type != "cpu":
            raise ValueError(
                f"stacked_steps_: {name} is {tuple(table.shape)}, {table.dtype}, on {table.device}; "
                f"it takes {shape}, {dtype}, on the CPU, as stacked_tables makes it"
            )
    if active.dim() != 1 or active.dtype != torch.int64 or active.device.type != "cpu" or not active.is_contiguous():
        raise ValueError(
            f"stacked_steps_: active is {tuple(active.shape)}, {active.dtype}, on {active.device}; it takes numbers of runs, "
            "int64, contiguous, on the CPU"
        )
    found = active.tolist()
    if len(set(found)) != len(found) or (found and not 0 <= min(found) <= max(found) < runs):
        raise ValueError(f"stacked_steps_: active is {found}; it takes runs from 0 to {runs - 1}, none twice")
    # By NumPy: a step of a small stack takes as long as a few calls of torch.
    _, sets, _, _, optimizers, _, depths = codes.numpy()[found].T
    if found and sets.max() >= len(x):
        raise ValueError(f"stacked_steps_: a run learns data set {sets.max()}; x has {len(x)}")
    rows = _STATE_ROWS[optimizers.clip(0, len(OPTIMIZERS) - 1), depths.clip(0, MAX_DEPTH)]  # the operator refuses other codes
    if found and rows.max() > state.shape[1]:
        raise ValueError(f"stacked_steps_: state has {state.shape[1]} rows for a run; an optimizer here keeps {rows.max()}")
