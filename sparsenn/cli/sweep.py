"""``sparsenn sweep``: a grid of small networks at once."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from sparsenn.cli.paths import path_name
from sparsenn.training import config as settings
from sparsenn.training.grid import config as sweep_settings

_DESCRIPTION = """\
Train every combination of the settings in CONFIG, a JSON or TOML file: many small networks at once, as stacks.

A value may be a list wherever it is swept. The example below stands for 3 × 3 pairs of activations, 2 starts, 3 penalties and 5
seeds: 270 runs. Runs that end become lines of runs.jsonl; runs.csv is written at the end. Ctrl-C, a crash or a power cut lose
less than a minute of work, and --resume ends in the same table.
"""
_EXAMPLE = """\
example (sweep.json):
  {"student": "multiChannelCNN", "teacher": "splitFilterCNN",
   "student_activation": ["relu", "sigmoid", "tanh"], "teacher_activation": ["relu", "sigmoid", "tanh"],
   "init_scale": [0.2, 1], "penalty": ["l1", "l2", "none"], "lam": 1e-5, "seed": [0, 1, 2, 3, 4],
   "samples": 5120, "lr": 0.005, "max_epochs": 100000, "patience": 100}

  sparsenn sweep sweep.json --plan                 which runs become a stack, and which way they go
  sparsenn sweep sweep.json --out runs/pairs
  sparsenn sweep --out runs/pairs --resume
"""


def add(commands: Any) -> argparse.ArgumentParser:
    """The flags of ``sweep``."""
    keys = "\n".join(textwrap.wrap(f"settings: {', '.join(sweep_settings.KEYS)}", 118, subsequent_indent="  "))
    swept = "\n".join(textwrap.wrap(f"swept by a list: {', '.join(sweep_settings.SWEPT)}", 118, subsequent_indent="  "))
    parser = commands.add_parser(
        "sweep",
        usage="sparsenn sweep [CONFIG] [flags]",
        help="train a grid of small networks at once, into one table",
        description=_DESCRIPTION,
        epilog=f"{keys}\n\n{swept}\n\n{_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=path_name, metavar="CONFIG", nargs="?", help="the grid; may be left out with --resume")
    parser.add_argument(
        "--out", type=path_name, metavar="DIR", help="the sweep's folder, new or empty (default: a new one under runs/)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in --out")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads; 0 leaves PyTorch its choice (default: the file's)"
    )
    parser.add_argument("--format", metavar="NAME", default="csv", help="csv (default), parquet or jsonl: the table at the end")
    parser.add_argument("--plan", action="store_true", help="train nothing; say what would be trained, and which way")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    return parser


def run(args: argparse.Namespace) -> int:
    """Train the grid, or say what would be trained."""
    if args.config is None and not args.resume:
        raise settings.ConfigError("sweep needs CONFIG, the file with the grid")
    if args.resume and args.out is None:
        raise settings.ConfigError("--resume needs --out DIR, the folder of the sweep to go on with")
    config = sweep_settings.read_sweep(args.config) if args.config is not None else None
    if config is not None and args.threads is not None:
        config = dataclasses.replace(config, threads=args.threads)

    from sparsenn.training.folder import fresh
    from sparsenn.training.grid import sweep as grid

    if config is None:
        config = grid.stored_sweep(args.out)
        config = config if args.threads is None else dataclasses.replace(config, threads=args.threads)
    if args.plan:
        grid.check_format(args.format)
        print("\n".join(grid.describe(config)))
        return 0
    out = args.out or fresh(Path("runs") / f"sweep-{Path(args.config).stem}")
    rows = grid.sweep(config, out, resume=args.resume, format=args.format, quiet=args.quiet)
    if not args.quiet:
        diverged = sum(row["status"] == "diverged" for row in rows)
        print(f"{len(rows)} runs{f', {diverged} of them diverged' if diverged else ''}. The table is in {out}")
    return 0
