"""``sparsenn info``: versions and kernels, what an artefact holds, or which way a sweep would go."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sparsenn import __version__
from sparsenn.cli.paths import path_name
from sparsenn.runtime.container import read
from sparsenn.runtime.report import describe
from sparsenn.training.grid.config import read_sweep


def add(commands: Any) -> argparse.ArgumentParser:
    """The flags of ``info``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="versions and loaded kernels, or what a sparse artefact holds",
        description="Versions, and which kernels run; with FILE, what that sparse artefact holds, without PyTorch, or which "
        "way the stacks of a sweep would go.",
    )
    parser.add_argument(
        "file", type=path_name, metavar="FILE", nargs="?", help="a file that sparsenn.save wrote, or a sweep's .json or .toml"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Print it."""
    if args.file is not None and Path(args.file).suffix in (".json", ".toml"):
        config = read_sweep(args.file)

        from sparsenn.training.grid import sweep

        print("\n".join(sweep.describe(config)))
        return 0
    if args.file is not None:
        print(describe(read(args.file)))
        return 0
    import torch

    import sparsenn.ops  # noqa: F401  (loads the kernels)
    from sparsenn import _extension, _sources

    lines = {"sparsenn": __version__, "Python": f"{platform.python_version()} on {platform.platform()}"}
    lines |= {name: _version_of(name) for name in ("torch", "numpy", "safetensors")}
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    lines["devices"] = f"CPU, {torch.get_num_threads()} threads; {cuda}"
    status = _extension.status()
    lines["sources"] = _sources.DIGEST
    lines["build"] = ", ".join(f"{key} {value}" for key, value in status["build"].items())
    lines |= {f"{name} kernels": _kernels(library) for name, library in status["libraries"].items()}
    lines["sweeps"] = _sweeps()
    width = max(map(len, lines))
    print("\n".join(f"{name:{width}}  {value}" for name, value in lines.items()))
    return 0


def _kernels(library: Any) -> str:
    """Where a compiled library comes from, and what it serves, which is every operator; or why none."""
    from sparsenn.ops.schema import SCHEMAS

    if library.problem:
        return f"not loaded, the reference runs: {library.problem}"
    return f"loaded from {library.path}, for {', '.join(SCHEMAS)}"


def _sweeps() -> str:
    """Which way stacks of small networks go."""
    import torch

    from sparsenn.training.stacked.engine import COVERS
    from sparsenn.training.stacked.fused_engine import has_kernel

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    fused = [device for device in devices if has_kernel(torch.device(device))]
    if not fused:
        return "every network through torch.func; the fused operator has no kernel here"
    return f"through the fused operator on {' and '.join(fused)}: {COVERS}; through torch.func: every other network"


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
