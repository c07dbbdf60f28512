"""``sparsenn bench-model``: how quick a model is, by every way there is to run it."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from sparsenn.cli.paths import path_name


def add(commands: Any) -> argparse.ArgumentParser:
    """The flags of ``bench-model``."""
    parser = commands.add_parser(
        "bench-model",
        help="how quick a model is: PyTorch, ONNX Runtime, compacted, the sparse runtime",
        description="Latency and throughput of a model over batch sizes, one thread, all ways in turns and checked first.",
    )
    parser.add_argument(
        "model", type=path_name, metavar="FILE|module:name", help="a sparse artefact, or a function or module to import"
    )
    parser.add_argument("--sample", metavar="SHAPE", help="the shape of a sample, such as 1,28,28 (default: as FILE notes)")
    parser.add_argument("--batches", metavar="LIST", default="1,8,64,256", help="sizes of batches (default: 1,8,64,256)")
    parser.add_argument("--seconds", type=float, metavar="S", default=1.0, help="time for each batch (default: 1)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--picture", type=path_name, metavar="FILE", help="a PNG of the throughput")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, and print the table."""
    from sparsenn.training.serving import bench_model

    model: Any = args.model
    module, colon, name = model.partition(":")
    if colon and not Path(model).exists():
        try:
            model = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"bench-model: {args.model} cannot be imported: {error}") from error
        try:
            model = model if not isinstance(model, type) and hasattr(model, "state_dict") else model()
        except Exception as error:
            raise ValueError(f"bench-model: {args.model} cannot be called without arguments: {error}") from error
        if not hasattr(model, "state_dict"):
            raise ValueError(f"bench-model: {args.model} gives {type(model).__name__} and no module")
    sample = None if args.sample is None else _sizes("--sample", args.sample)
    batches = _sizes("--batches", args.batches)
    print(bench_model(model, sample, batches, seconds=args.seconds, compiled=args.compile, picture=args.picture))
    return 0


def _sizes(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{flag} is {text!r}; it takes whole numbers with commas between them") from error
