"""A network that runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from sparsenn.runtime.container import MAX_BYTES, Contents, read
from sparsenn.runtime.costs import costs
from sparsenn.runtime.errors import ArtefactError
from sparsenn.runtime.graph import build, simplify
from sparsenn.runtime.plan import KERNELS, Choice, Plan, plan

_MAX_PLANS = 16


class Model:
    r"""A network from a sparse artefact, run on the CPU from NumPy arrays; made by :func:`load`.

    .. math:: y = f(x), \qquad |y - f(x)| \le 10^{-5} \max|f|

    to rounding what PyTorch computes in eval mode, in float32. Batch normalization is folded into the layer before it, units
    that are constant or that nobody reads are gone, and each layer runs sparse or dense, whichever is quicker here. A sample
    whose input has a NaN or an infinity gives NaN in all its outputs, as through the zeros of a dense product. The last bits
    may depend on the size of the batch, and on the machine, whose costs choose the kernels.

    Any thread may call it. ``str(model)`` says what each layer runs on.
    """

    def __init__(self, contents: Contents, kernels: str, threads: int) -> None:
        if contents.architecture is None:
            raise ArtefactError(
                f"{contents.path}: it holds tensors and no architecture; sparsenn.save stores it unless told not to"
            )
        self._path = contents.path
        try:
            self._nodes = simplify(build(contents.architecture, contents.tensors))
        except ArtefactError as error:
            raise ArtefactError(f"{contents.path}: {error}") from error
        self._kernels, self._threads = kernels, threads
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._lock = threading.Lock()
        self._run: Any = _unplanned

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run a batch.

        Args:
            x: a float32 array, the batch first; any strides, any number of samples, also none.

        Returns:
            A new float32 array, C-contiguous, with as many samples.

        Raises:
            TypeError: for anything else than a float32 array.
            ValueError: for a shape that the network does not take.
        """
        result = self._run(x)
        return self._other(x) if result is None else result

    def choices(self, *shape: int) -> tuple[Choice, ...]:
        """What each layer runs on for samples of this shape; without one, that of the last call.

        Raises:
            ValueError: for a shape that the network does not take, or if none was given nor used yet.
        """
        with self._lock:
            if not shape:
                if not self._plans:
                    raise ValueError("choices: no input was seen yet; give the shape of a sample")
                shape = next(reversed(self._plans))
            return self._known_plan(tuple(shape)).choices

    def __str__(self) -> str:
        if not self._plans:
            return f"{self._path}: {len(self._nodes)} steps, not run yet"
        head = ("layer", "weight", "left", "non-zero", "one sample", "few", "panels")
        rows = [head]
        for c in self.choices():
            shape = "x".join(map(str, c.shape))
            rows.append((c.layer, shape, f"{c.rows}x{c.columns}", f"{c.nonzeros:,}", c.one, c.few, c.batch))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _other(self, x: Any) -> np.ndarray:
        """The way of a call that needs a copy, another plan, or an explanation."""
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x is {type(x).__name__}; the runtime takes a NumPy array of float32")
        if x.dtype != np.float32:
            raise TypeError(f"x is an array of {x.dtype}; the runtime takes float32, as by x.astype(np.float32)")
        if x.ndim < 2:
            raise ValueError(f"x has shape {x.shape}; the runtime takes a batch, as x[None] makes of one sample")
        found = self._plan(x.shape[1:])
        self._run = found.network.run
        result = found.network.run(np.require(x, np.float32, ["C", "ALIGNED"]))
        assert result is not None
        return result

    def _plan(self, sample: tuple[int, ...]) -> Plan:
        with self._lock:
            return self._known_plan(sample)

    def _known_plan(self, sample: tuple[int, ...]) -> Plan:
        found = self._plans.pop(sample, None)
        if found is None:
            try:
                found = plan(self._nodes, sample, costs(), self._kernels, self._threads)
            except ArtefactError as error:
                raise ArtefactError(f"{self._path}: {error}") from error
            if len(self._plans) >= _MAX_PLANS:
                del self._plans[next(iter(self._plans))]
        self._plans[sample] = found  # the last one is the last used
        return found


def _unplanned(x: Any) -> None:
    return None


def load(path: str | Path, *, threads: int = 1, kernels: str = "auto", max_bytes: int = MAX_BYTES) -> Model:
    """Load a sparse artefact to run it without PyTorch.

    Args:
        path: a file that :func:`sparsenn.save` wrote.
        threads: among how many threads large batches are divided, in panels of 64 samples.
        kernels: ``"auto"`` chooses for each layer by what its rows and weights cost on this machine, measured once and kept in
            the user's cache folder; ``"sparse"`` and ``"dense"`` use one kind for all.
        max_bytes: refuse a file, or tensors, that take more.

    Returns:
        A :class:`Model`: call it with a float32 array.

    Raises:
        ArtefactError: for a file that is missing, cut off, damaged or too large, or whose layers do not fit each other.
        ValueError: for unknown ``kernels``, or fewer threads than 1.
        RuntimeError: if the compiled core is not there.

    Example:
        >>> import os, tempfile, numpy, torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = sparsenn.runtime.load(sparsenn.save(net, os.path.join(folder, "net.safetensors")))
        >>> y = model(numpy.ones((5, 4), numpy.float32))
        >>> y.shape, numpy.allclose(y, net(torch.ones(5, 4)).detach(), atol=1e-6)
        ((5, 2), True)
    """
    if kernels not in KERNELS:
        raise ValueError(f"load: kernels is {kernels!r}; it takes one of {', '.join(KERNELS)}")
    if not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise ValueError(f"load: threads is {threads!r}; it takes a whole number from 1 to 1024")
    try:
        from sparsenn import _native  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            f"sparsenn.runtime needs the compiled core, which is not there ({error}); to build it: "
            "pip install --no-build-isolation --force-reinstall --no-deps ."
        ) from error
    return Model(read(path, max_bytes), kernels, threads)
