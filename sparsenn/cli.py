"""The command line: it reads flags, calls the library and prints. PyTorch is imported only once a command runs."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import platform
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from sparsenn import __version__
from sparsenn.papers import ITEMS, reproduce
from sparsenn.runtime.container import read
from sparsenn.runtime.report import describe
from sparsenn.training import config as settings
from sparsenn.training.grid import config as sweep_settings
from sparsenn.training.presets import BALANCED, DATASETS, DTYPES, FACTOR_INITS, METHODS, MODELS, PRESETS, SCHEDULES

_DESCRIPTION = "Train sparse neural networks by principled means."
_TRAIN = """\
Train a network that becomes sparse while it trains. A run writes one folder: settings, metrics, checkpoint, model, report and
pictures.

Without flags it trains LeNet-300-100 on the digits that come with scikit-learn, and its dense twin beside it, in well under a
minute. A larger --lam means fewer weights; the methods are

  dwf             every weight and bias is a product of D factors, loss + (λ/D) Σ‖ω_d‖², which is loss + λ‖w‖_{2/D}^{2/D}; a
                  learning rate just short of instability works best, and more --depth means fewer weights; dwf-adam: by Adam
  prox            loss + λ‖w‖₁ by proximal steps: exact zeros at every step
  l1-subgradient  loss + λ‖w‖₁ by adding λ sign(w) to the gradient: weights hover near 0, for comparison
  dense           no penalty
  magnitude       the dense net for half of the epochs, then the largest weights alone for the other half
  snip, synflow   the weights that matter most at initialization, by the loss's gradient or by the paths through them
  random          weights drawn at random, for comparison; --compression says how many each of these four keeps
"""
_TEACHER_STUDENT = """\
Students of teachers of twelve inputs, with the flags, configuration files and output files of the L1 paper's public code.

  single    one pair of <type>_<activation>, with the first lr, l1_norm and l2_norm of the file
  multiple  all pairs of relu, tanh and sigmoid (like ones alone if same_act), with all of them, trained as one stack

Types: baselineCNN, splitFilterCNN, multiChannelCNN, and for students fcn_256_32, fcn_128_128, fcn_1024_128. Activations: relu,
sigmoid, tanh, gelu. The file is looked for as a path, in config_files/ and among those that come with the package:
config_[cnn_]{l1,l2,noReg}_{0.2,1}.json. The same command again goes on where it was killed.
"""
_EXAMPLES = """\
examples:
  sparsenn train
  sparsenn train --depth 3 --lam 1e-3 --seed 1 --out runs/deeper
  sparsenn train --method prox --lam 2e-4
  sparsenn train --target-sparsity 0.95
  sparsenn train --method magnitude --compression 30
  sparsenn train --dataset fashion-mnist --data-root ~/data --depth 3 --epochs 75
  sparsenn train --dataset mnist --model lenet-5 --device cuda --twin
  sparsenn train --config run.json --lr 0.1        a flag wins over the file, the file over the defaults
  sparsenn train --out runs/deeper --resume        after Ctrl-C, a crash or a power cut: the same bits

exit codes: 0 done, 1 data or a package is missing or damaged, 2 wrong usage, 3 the loss is no longer finite,
            130 stopped by Ctrl-C with a folder to resume
"""
_SWEEP = """\
Train every combination of the settings in CONFIG, a JSON or TOML file: many small networks at once, as stacks.

A value may be a list wherever it is swept. The example below stands for 3 × 3 pairs of activations, 2 starts, 3 penalties and 5
seeds: 270 runs. Runs that end become lines of runs.jsonl; runs.csv is written at the end. Ctrl-C, a crash or a power cut lose
less than a minute of work, and --resume ends in the same table.
"""
_SWEEP_EXAMPLE = """\
example (sweep.json):
  {"student": "multiChannelCNN", "teacher": "splitFilterCNN",
   "student_activation": ["relu", "sigmoid", "tanh"], "teacher_activation": ["relu", "sigmoid", "tanh"],
   "init_scale": [0.2, 1], "penalty": ["l1", "l2", "none"], "lam": 1e-5, "seed": [0, 1, 2, 3, 4],
   "samples": 5120, "lr": 0.005, "max_epochs": 100000, "patience": 100}

  sparsenn sweep sweep.json --plan                 which runs become a stack, and which way they go
  sparsenn sweep sweep.json --out runs/pairs
  sparsenn sweep --out runs/pairs --resume
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
        "info",
        help="versions and loaded kernels, or what a sparse artefact holds",
        description="Versions, and which kernels run; with FILE, what that sparse artefact holds, without PyTorch.",
    )
    info.add_argument("file", metavar="FILE", nargs="?", help="a file that sparsenn.save wrote")
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
    _add_sweep(commands)
    _add_reproduce(commands)
    _add_teacher_student(commands)
    _add_bench_model(commands)
    return parser


def _add_sweep(commands: Any) -> None:
    keys = "\n".join(textwrap.wrap(f"settings: {', '.join(sweep_settings.KEYS)}", 118, subsequent_indent="  "))
    swept = "\n".join(textwrap.wrap(f"swept by a list: {', '.join(sweep_settings.SWEPT)}", 118, subsequent_indent="  "))
    parser = commands.add_parser(
        "sweep",
        usage="sparsenn sweep [CONFIG] [flags]",
        help="train a grid of small networks at once, into one table",
        description=_SWEEP,
        epilog=f"{keys}\n\n{swept}\n\n{_SWEEP_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="the grid; may be left out with --resume")
    parser.add_argument("--out", metavar="DIR", help="the sweep's folder, new or empty (default: a new one under runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in --out")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads; 0 leaves PyTorch its choice (default: the file's)"
    )
    parser.add_argument("--format", metavar="NAME", default="csv", help="csv (default), parquet or jsonl: the table at the end")
    parser.add_argument("--plan", action="store_true", help="train nothing; say what would be trained, and which way")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.set_defaults(command=_sweep)


def _add_bench_model(commands: Any) -> None:
    parser = commands.add_parser(
        "bench-model",
        help="how quick a model is: PyTorch, ONNX Runtime, compacted, the sparse runtime",
        description="Latency and throughput of a model over batch sizes, one thread, all ways in turns and checked first.",
    )
    parser.add_argument("model", metavar="FILE|module:name", help="a sparse artefact, or a function or module to import")
    parser.add_argument("--sample", metavar="SHAPE", help="the shape of a sample, such as 1,28,28 (default: as FILE notes)")
    parser.add_argument("--batches", metavar="LIST", default="1,8,64,256", help="sizes of batches (default: 1,8,64,256)")
    parser.add_argument("--seconds", type=float, metavar="S", default=1.0, help="time for each batch (default: 1)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--picture", metavar="FILE", help="a PNG of the throughput")
    parser.set_defaults(command=_bench_model)


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
    parser.add_argument("--out", metavar="DIR", help="the folder (default: one under runs/)")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training set")
    parser.add_argument("--data-root", metavar="DIR", help="as for train")
    dwf = parser.add_argument_group("dwf")
    dwf.add_argument("--dataset", metavar="NAME", help=f"{', '.join(DATASETS)} (default: the item's)")
    dwf.add_argument("--model", metavar="NAME", help=f"{', '.join(MODELS)} (default: the item's)")
    dwf.add_argument("--depths", type=int, nargs="+", metavar="D", help="numbers of factors (default: mostly 2 3 4)")
    dwf.add_argument("--lams", type=float, nargs=2, metavar=("LOW", "HIGH"), help="smallest and largest λ")
    dwf.add_argument("--points", type=int, metavar="N", help="how many λ, log-spaced (default: 13, for some items 7)")
    dwf.add_argument("--seeds", type=int, metavar="N", help="runs of each kind (default: 3, for some items 1)")
    dwf.add_argument("--lr", type=float, metavar="LR", help="initial learning rate of factorized nets")
    dwf.add_argument("--factor-init", metavar="NAME", help=f"{', '.join(FACTOR_INITS)}")
    dwf.add_argument("--batch-size", type=int, metavar="N", help="images a step (default: the preset's)")
    dwf.add_argument("--batch-sizes", type=int, nargs="+", metavar="N", help="for fig26 and fig27 (default: 16 to 1024)")
    dwf.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:<index> (default: cpu)")
    dwf.add_argument("--threads", type=int, metavar="N", help="CPU threads; 0 leaves PyTorch its choice (default: 1)")
    spectral = parser.add_argument_group("spectral")
    spectral.add_argument("--widths", type=int, nargs="+", metavar="H", help="widths of the students' first hidden layer")
    spectral.add_argument("--trials", type=int, metavar="N", help="students of each width and kind")
    spectral.add_argument("--hidden2", type=int, metavar="H", help="width of the second hidden layer (default: 20)")
    spectral.add_argument(
        "--second-layer", action="store_true", default=argparse.SUPPRESS, help="penalise the second hidden layer too"
    )
    spectral.add_argument("--features", metavar="FILE", help="for fig3e: features and classes, .npz or .safetensors")
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
    parser.set_defaults(command=_reproduce)


def _add_teacher_student(commands: Any) -> None:
    parser = commands.add_parser(
        "teacher-student",
        help="students of the L1 paper, by its configuration files",
        description=_TEACHER_STUDENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--mode", metavar="MODE", required=True, help="single or multiple")
    parser.add_argument("--teacher_model", "--teacher-model", metavar="TYPE_ACT", help="for single: baselineCNN_tanh, say")
    parser.add_argument("--student_model", "--student-model", metavar="TYPE_ACT", help="for single: fcn_256_32_relu, say")
    parser.add_argument("--teacher_type", "--teacher-type", metavar="TYPE", help="for multiple")
    parser.add_argument("--student_type", "--student-type", metavar="TYPE", help="for multiple")
    parser.add_argument("--config_path", "--config-path", metavar="FILE", required=True, help="a path, or a name (see above)")
    parser.add_argument("--seed", type=int, metavar="N", help="of data, weights and order of the samples (default: 42)")
    parser.add_argument("--name", metavar="NAME", help="goes into the names of folder and files (default: noName)")
    parser.add_argument("--optimizer", metavar="NAME", help="sgd, or prox for exact zeros under L1 (default: sgd)")
    parser.add_argument("--quiet", action="store_true", default=False, help="print errors only")
    parser.set_defaults(command=_teacher_student)


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to train")
    what.add_argument("--dataset", metavar="NAME", help=f"{', '.join(DATASETS)} (default: digits)")
    what.add_argument("--model", metavar="NAME", help=f"{', '.join(MODELS)} (default: the data set's first, see below)")
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
    sparsity.add_argument(
        "--compression", type=float, metavar="C", help="all parameters over those that a pruning method keeps (default: 20)"
    )
    sparsity.add_argument(
        "--prune-epoch", type=int, metavar="N", help="epochs before pruning (default: half for magnitude, else 0)"
    )
    sparsity.add_argument("--retrain-lr", type=float, metavar="LR", help="learning rate after that (default: that of --lr)")
    sparsity.add_argument(
        "--prune-biases", action=argparse.BooleanOptionalAction, help="prune biases and normalization too (default: no)"
    )
    sparsity.add_argument("--factor-init", metavar="NAME", help=f"for dwf: {', '.join(FACTOR_INITS)} (default: preserve)")
    sparsity.add_argument("--balanced", metavar="WHEN", help=f"one root for SGD's balanced factors: {', '.join(BALANCED)}")

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
    how.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, help="flip, shift and rotate images (default: for colour images)"
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
        "--data-root", metavar="DIR", help="holds a folder a data set, mnist/ say (default: SPARSENN_DATA, else downloaded)"
    )

    files = parser.add_argument_group("files")
    files.add_argument("--out", metavar="DIR", default=None, help="the run's folder, new or empty (default: one under runs/)")
    files.add_argument("--resume", action="store_true", default=False, help="go on with the run in --out from its checkpoint")
    files.add_argument("--checkpoint-every", type=int, metavar="N", help="epochs between two checkpoints")
    files.add_argument("--config", metavar="FILE", default=None, help="a JSON object of settings, as a run's config.json is")
    files.add_argument("--quiet", action="store_true", default=False, help="print errors only")


def _preset_table() -> str:
    head = ("dataset", "model", "depth", "lam", "lr", "epochs", "batch-size", "eval-every")
    rows = [
        (*names, str(p.depth), f"{p.lam:g}", f"{p.lr_at(p.depth):g}", str(p.epochs), str(p.batch_size), str(p.eval_every))
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
        print(f"{result}\n")
        if result.folder is not None and result.net.config.dtype == "float32":
            from sparsenn.training.run import ARTEFACT
            from sparsenn.training.serving import summary

            print(f"{summary(result.folder / ARTEFACT)}\n")
        print(f"The run is in {result.folder}")
    return 0


def _sweep(args: argparse.Namespace) -> int:
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
        print("\n".join(grid.describe(config)))
        return 0
    out = args.out or fresh(Path("runs") / f"sweep-{Path(args.config).stem}")
    rows = grid.sweep(config, out, resume=args.resume, format=args.format, quiet=args.quiet)
    if not args.quiet:
        diverged = sum(row["status"] == "diverged" for row in rows)
        print(f"{len(rows)} runs{f', {diverged} of them diverged' if diverged else ''}. The table is in {out}")
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    options = {key: value for key, value in vars(args).items() if key != "command"}
    path = reproduce(**options)
    if not args.quiet:
        print(f"Written: {path}")
    return 0


def _teacher_student(args: argparse.Namespace) -> int:
    from sparsenn.papers.l1.teacher_student import run_study

    options = {key: value for key, value in vars(args).items() if key != "command"}
    folder = run_study(options.pop("mode"), options.pop("config_path"), **options)
    if not args.quiet:
        print(f"Written: {folder}")
    return 0


def _bench_model(args: argparse.Namespace) -> int:
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


def _info(args: argparse.Namespace) -> int:
    if args.file is not None:
        print(describe(read(args.file)))
        return 0
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
    lines["sweeps"] = _sweeps()
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
