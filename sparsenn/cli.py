"""The command line: it reads flags, calls the library and prints. PyTorch is imported only once a command runs."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from sparsenn import __version__
from sparsenn.papers import ITEMS, reproduce
from sparsenn.training import config as settings
from sparsenn.training.presets import DATASETS, DTYPES, FACTOR_INITS, METHODS, MODELS, PRESETS, SCHEDULES

_DESCRIPTION = "Train sparse neural networks by principled means."
_TRAIN = """\
Train a network that becomes sparse while it trains. A run writes one folder: settings, metrics, checkpoint, model, report and
pictures.

Without flags it trains LeNet-300-100 on the digits that come with scikit-learn, and its dense twin beside it, in well under a
minute. A larger --lam means fewer weights; the methods are

  dwf             every weight and bias is a product of D factors, loss + (λ/D) Σ‖ω_d‖², which is loss + λ‖w‖_{2/D}^{2/D}; a
                  learning rate just short of instability works best, and more --depth means fewer weights
  prox            loss + λ‖w‖₁ by proximal steps: exact zeros at every step
  l1-subgradient  loss + λ‖w‖₁ by adding λ sign(w) to the gradient: weights hover near 0, for comparison
  dense           no penalty
"""
_EXAMPLES = """\
examples:
  sparsenn train
  sparsenn train --depth 3 --lam 1e-3 --seed 1 --out runs/deeper
  sparsenn train --method prox --lam 2e-4
  sparsenn train --target-sparsity 0.95
  sparsenn train --dataset fashion-mnist --data-root ~/data --depth 3 --epochs 75
  sparsenn train --dataset mnist --model lenet-5 --device cuda --twin
  sparsenn train --config run.json --lr 0.1        a flag wins over the file, the file over the defaults
  sparsenn train --out runs/deeper --resume        after Ctrl-C, a crash or a power cut: the same bits

exit codes: 0 done, 1 data or a package is missing or damaged, 2 wrong usage, 3 the loss is no longer finite,
            130 stopped by Ctrl-C with a folder to resume
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; None for those of the process.

    Returns:
        The exit code: 0 done, 1 data or a package is missing or damaged, 2 wrong usage, 3 the loss is no longer finite,
        130 (128 + signal) stopped with a resumable folder.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without λ shows a question mark instead of failing
    try:
        args = _parser().parse_args(argv)
        return args.command(args)
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        code = getattr(error, "exit_code", 2 if isinstance(error, ValueError | OverflowError) else None)
        if code is None:
            raise
        print(f"sparsenn: {error}", file=sys.stderr)
        return code


class _Parser(argparse.ArgumentParser):
    """argparse, with an error of one sentence instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sparsenn", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"sparsenn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    info = commands.add_parser(
        "info", help="versions, and which kernels are loaded", description="Versions, and which kernels run."
    )
    info.set_defaults(command=_info)
    train = commands.add_parser(
        "train",
        usage="sparsenn train [flags]",
        help="train a sparse network and its dense twin, and compare them",
        description=_TRAIN,
        epilog=f"{_preset_table()}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    _add_train_flags(train)
    train.set_defaults(command=_train)
    _add_reproduce(commands)
    return parser


def _add_reproduce(commands: Any) -> None:
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
    parser.add_argument("--out", metavar="DIR", help="the folder (default: runs/dwf-fig1, runs/spectral)")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training set")
    parser.add_argument("--data-root", metavar="DIR", help="as for train")
    dwf = parser.add_argument_group("dwf")
    dwf.add_argument("--dataset", metavar="NAME", help=f"{', '.join(DATASETS)} (default: digits)")
    dwf.add_argument("--model", metavar="NAME", help=f"{', '.join(MODELS)} (default: lenet-300-100)")
    dwf.add_argument("--lams", type=float, nargs=2, metavar=("LOW", "HIGH"), help="smallest and largest λ")
    dwf.add_argument("--points", type=int, metavar="N", help="how many λ, log-spaced")
    dwf.add_argument("--seeds", type=int, metavar="N", help="runs of each λ (default: 1)")
    spectral = parser.add_argument_group("spectral")
    spectral.add_argument("--widths", type=int, nargs="+", metavar="H", help="widths of the students' first hidden layer")
    spectral.add_argument("--trials", type=int, metavar="N", help="students of each width and kind")
    spectral.add_argument("--hidden2", type=int, metavar="H", help="width of the second hidden layer (default: 20)")
    spectral.add_argument(
        "--second-layer", action="store_true", default=argparse.SUPPRESS, help="penalise the second hidden layer too"
    )
    spectral.add_argument("--features", metavar="FILE", help="for fig3e: features and classes, .npz or .safetensors")
    parser.add_argument("--quiet", action="store_true", default=False, help="print errors only")
    parser.set_defaults(command=_reproduce)


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to train")
    what.add_argument("--dataset", metavar="NAME", help=f"{', '.join(DATASETS)} (default: digits)")
    what.add_argument("--model", metavar="NAME", help=f"{', '.join(MODELS)} (default: lenet-300-100)")
    what.add_argument("--method", metavar="NAME", help=f"{', '.join(METHODS)} (default: dwf)")
    what.add_argument(
        "--twin", action=argparse.BooleanOptionalAction, help="the dense net of the same start too (default: for digits)"
    )

    sparsity = parser.add_argument_group("how sparse")
    sparsity.add_argument("--depth", type=int, metavar="D", help="factors a weight, for dwf: 2 is L1, 3 is L_2/3, 4 is L_1/2")
    sparsity.add_argument("--lam", type=float, metavar="λ", help="strength of the penalty")
    sparsity.add_argument(
        "--lam-schedule", metavar="NAME", help=f"{', '.join(SCHEDULES)} (default: cosine, to 0, for digits, else constant)"
    )
    sparsity.add_argument(
        "--target-sparsity", type=float, metavar="S", help="find λ while training so that this share of weights ends at zero"
    )
    sparsity.add_argument("--factor-init", metavar="NAME", help=f"for dwf: {', '.join(FACTOR_INITS)} (default: preserve)")

    how = parser.add_argument_group("how to train")
    how.add_argument("--lr", type=float, metavar="LR", help="initial learning rate")
    how.add_argument("--schedule", metavar="NAME", help=f"{', '.join(SCHEDULES)} (default: cosine, to 0)")
    how.add_argument("--epochs", type=int, metavar="N", help="passes over the training set")
    how.add_argument("--batch-size", type=int, metavar="N", help="images a step")
    how.add_argument("--momentum", type=float, metavar="M", help="momentum of SGD (default: 0.9)")
    how.add_argument(
        "--clip-norm", type=float, metavar="C", help="longest gradient; 0: no limit (default: 1 for digits, else 0)"
    )
    how.add_argument(
        "--input-noise", type=float, metavar="σ", help="noise on the training images (default: 0.2 for digits, else 0)"
    )
    how.add_argument("--seed", type=int, metavar="N", help="of weights, factors and the order of the images (default: 0)")
    how.add_argument("--eval-every", type=int, metavar="N", help="epochs between two evaluations")

    where = parser.add_argument_group("where and with what")
    where.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:<index> (default: cpu)")
    where.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads; 0 leaves PyTorch its choice (default: 1 for digits, else 0)"
    )
    where.add_argument("--dtype", metavar="NAME", help=f"{', '.join(DTYPES)} (default: float32)")
    where.add_argument(
        "--data-root", metavar="DIR", help="holds mnist/ or fashion-mnist/ (default: SPARSENN_DATA, else downloaded)"
    )

    files = parser.add_argument_group("files")
    files.add_argument(
        "--out", metavar="DIR", default=None, help="the run's folder, new or empty (default: a new one under runs/)"
    )
    files.add_argument(
        "--resume", action="store_true", default=False, help="go on with the run in --out from its last checkpoint"
    )
    files.add_argument("--checkpoint-every", type=int, metavar="N", help="epochs between two checkpoints")
    files.add_argument(
        "--config", metavar="FILE", default=None, help="a JSON object of settings, in the form of a run's config.json"
    )
    files.add_argument("--quiet", action="store_true", default=False, help="print errors only")


def _preset_table() -> str:
    head = ("dataset", "model", "depth", "lam", "lr", "epochs", "batch-size", "eval-every")
    rows = [
        (*names, str(p.depth), f"{p.lam:g}", f"{p.lr:g}", str(p.epochs), str(p.batch_size), str(p.eval_every))
        for names, p in PRESETS.items()
    ]
    lines = ["  " + "".join(f"{cell:16}" if i < 2 else f"{cell:>11}" for i, cell in enumerate(row)) for row in (head, *rows)]
    return "\n".join(["defaults:", *lines])


def _train(args: argparse.Namespace) -> int:
    flags = {key: value for key, value in vars(args).items() if key in settings.KEYS}
    given: dict[str, Any] = {**(settings.read_config_file(args.config) if args.config else {}), **flags}
    if args.resume and args.out is None:
        raise settings.ConfigError("--resume needs --out DIR, the folder of the run to go on with")
    config = None if args.resume else settings.configure(**given)

    from sparsenn import training
    from sparsenn.training.folder import fresh_name

    if config is None:
        result = training.resume(args.out, quiet=args.quiet, **given)
    else:
        result = training.train(config, args.out or fresh_name("runs", config), quiet=args.quiet)
    if not args.quiet:
        print(f"{result}\n\nThe run is in {result.folder}")
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    options = {key: value for key, value in vars(args).items() if key != "command"}
    picture = reproduce(**options)
    if not args.quiet:
        print(f"The picture is {picture}")
    return 0


def _info(args: argparse.Namespace) -> int:
    import torch

    import sparsenn.ops  # noqa: F401  (loads the kernels)
    from sparsenn import _extension

    lines = {"sparsenn": __version__, "Python": f"{platform.python_version()} on {platform.platform()}"}
    lines |= {name: _version_of(name) for name in ("torch", "numpy", "safetensors")}
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    lines["devices"] = f"CPU, {torch.get_num_threads()} threads; {cuda}"
    status = _extension.status()
    lines["build"] = ", ".join(f"{key} {value}" for key, value in status["build"].items())
    lines |= {f"{name} kernels": _kernels(name, library) for name, library in status["libraries"].items()}
    width = max(map(len, lines))
    print("\n".join(f"{name:{width}}  {value}" for name, value in lines.items()))
    return 0


def _kernels(device: str, library: Any) -> str:
    """Which operators a compiled library serves, or why none: PyTorch's reference runs the others."""
    import torch

    from sparsenn.ops.schema import NAMESPACE, SCHEMAS

    if library.problem:
        return f"not loaded, the reference runs: {library.problem}"
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    served = [name for name in SCHEMAS if has_kernel(f"{NAMESPACE}::{name}", device.upper())]
    return f"loaded from {library.path}, for {', '.join(served)}"


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
