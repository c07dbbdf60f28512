"""``sparsenn reproduce``: the papers' figures and tables."""

from __future__ import annotations

import argparse
from typing import Any

from sparsenn.cli.paths import path_name
from sparsenn.papers import ITEMS, reproduce
from sparsenn.training.presets import DATASETS, FACTOR_INITS, MODELS


def add(commands: Any) -> argparse.ArgumentParser:
    """The flags of ``reproduce``."""
    items = "\n".join(f"  {paper} {item}  {what}" for paper, own in ITEMS.items() for item, what in own.items())
    parser = commands.add_parser(
        "reproduce",
        help="figures and tables of the papers",
        description=f"Figures and tables of the papers. A killed command goes on where it was.\n\n{items}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("paper", metavar="PAPER", help=", ".join(ITEMS))
    parser.add_argument("item", metavar="ITEM", help="see above")
    parser.add_argument("--out", type=path_name, metavar="DIR", help="the folder (default: one under runs/)")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training set")
    parser.add_argument("--data-root", type=path_name, metavar="DIR", help="as for train")
    several = parser.add_argument_group("items of several papers")
    several.add_argument("--seeds", type=int, metavar="N", help="runs of each kind (default: the item's)")
    several.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:<index> (default: cpu)")
    several.add_argument("--threads", type=int, metavar="N", help="CPU threads; 0 leaves PyTorch its choice (default: 1)")
    dwf = parser.add_argument_group("dwf")
    dwf.add_argument("--dataset", metavar="NAME", help=f"{', '.join(DATASETS)} (default: the item's)")
    dwf.add_argument("--model", metavar="NAME", help=f"{', '.join(MODELS)} (default: the item's)")
    dwf.add_argument("--depths", type=int, nargs="+", metavar="D", help="numbers of factors (default: mostly 2 3 4)")
    dwf.add_argument("--lams", type=float, nargs=2, metavar=("LOW", "HIGH"), help="smallest and largest λ")
    dwf.add_argument("--points", type=int, metavar="N", help="how many λ, log-spaced (default: 13, for some items 7)")
    dwf.add_argument("--lr", type=float, metavar="LR", help="initial learning rate of factorized nets")
    dwf.add_argument("--factor-init", metavar="NAME", help=f"{', '.join(FACTOR_INITS)}")
    dwf.add_argument("--batch-size", type=int, metavar="N", help="images a step (default: the preset's)")
    dwf.add_argument("--compile", action="store_true", help="as for train")
    dwf.add_argument("--batch-sizes", type=int, nargs="+", metavar="N", help="for fig26 and fig27 (default: 16 to 1024)")
    spectral = parser.add_argument_group("spectral")
    spectral.add_argument("--widths", type=int, nargs="+", metavar="H", help="widths of the students' first hidden layer")
    spectral.add_argument("--trials", type=int, metavar="N", help="students of each width and kind")
    spectral.add_argument("--hidden2", type=int, metavar="H", help="width of the second hidden layer (default: 20)")
    spectral.add_argument(
        "--second-layer", action="store_true", default=argparse.SUPPRESS, help="penalise the second hidden layer too"
    )
    spectral.add_argument(
        "--features", type=path_name, metavar="FILE", help="for fig3e: features and classes, .npz or .safetensors"
    )
    students = parser.add_argument_group("l1")
    students.add_argument(
        "--methods",
        metavar="NAME",
        nargs="+",
        help="l1, l2, none, prox (default: l1 l2 none); dwf: dwf, magnitude, snip, synflow, random (all); or the item's own",
    )
    students.add_argument("--scales", metavar="S", nargs="+", type=float, help="of the start (default: 0.2 1)")
    students.add_argument("--pairs", metavar="WHICH", help="all, or matched: activations of teacher and student alike")
    students.add_argument("--size", metavar="N", type=int, help="samples (default: 5120, or 100000 for large students)")
    students.add_argument("--no-train", action="store_true", help="make the item of the rows that are there")
    ridge = parser.add_argument_group("rbv2")
    ridge.add_argument(
        "--choices",
        metavar="NAME=VALUE",
        nargs="+",
        help="what the text leaves open: outputs, batch_size, reduction, skip; and width, lr",
    )
    ridge.add_argument("--width", metavar="K", type=int, help="for beyond: neurons of each block (default: 128)")
    ridge.add_argument("--tasks", metavar="NAME", nargs="+", help="for beyond: california-housing, mnist (default: both)")
    ridge.add_argument(
        "--tolerance", metavar="T", type=float, help="for beyond: the error of a net to be timed, over that without a penalty"
    )
    parser.add_argument("--quiet", action="store_true", default=False, help="print errors only")
    return parser


def run(args: argparse.Namespace) -> int:
    """Make the item, and say where it is."""
    options = {key: value for key, value in vars(args).items() if key != "command"}
    path = reproduce(**options)
    if not args.quiet:
        print(f"Written: {path}")
    return 0
