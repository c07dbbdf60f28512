"""``sparsenn train``: one sparse network, and its dense twin beside it."""

from __future__ import annotations

import argparse
from typing import Any

from sparsenn.cli.paths import path_name
from sparsenn.training import config as settings
from sparsenn.training.presets import BALANCED, DATASETS, DTYPES, FACTOR_INITS, METHODS, MODELS, PRESETS, SCHEDULES

_DESCRIPTION = """\
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


def add(commands: Any) -> argparse.ArgumentParser:
    """The flags of ``train``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        usage="sparsenn train [flags]",
        help="train a sparse network and its dense twin, and compare them",
        description=_DESCRIPTION,
        epilog=f"{_preset_table()}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    _add_flags(parser)
    return parser


def _add_flags(parser: argparse.ArgumentParser) -> None:
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
        "--penalize-biases",
        action=argparse.BooleanOptionalAction,
        help="the penalty, and factors, for biases and normalization too (default: yes)",
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
    how.add_argument("--warmup", type=int, metavar="N", help="epochs in which the learning rate grows first (default: 0)")
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
    where.add_argument("--compile", action=argparse.BooleanOptionalAction, help="the net through torch.compile (default: no)")
    where.add_argument(
        "--data-root",
        type=path_name,
        metavar="DIR",
        help="holds a folder a data set, mnist/ say (default: SPARSENN_DATA, else downloaded)",
    )

    files = parser.add_argument_group("files")
    files.add_argument(
        "--out", type=path_name, metavar="DIR", default=None, help="the run's folder, new or empty (default: one under runs/)"
    )
    files.add_argument("--resume", action="store_true", default=False, help="go on with the run in --out from its checkpoint")
    files.add_argument("--checkpoint-every", type=int, metavar="N", help="epochs between two checkpoints")
    files.add_argument(
        "--config", type=path_name, metavar="FILE", default=None, help="a JSON object of settings, as a run's config.json is"
    )
    files.add_argument("--quiet", action="store_true", default=False, help="print errors only")


def _preset_table() -> str:
    head = ("dataset", "model", "depth", "lam", "lr", "epochs", "batch-size", "eval-every")
    rows = [
        (*names, str(p.depth), f"{p.lam:g}", f"{p.lr_at(p.depth):g}", str(p.epochs), str(p.batch_size), str(p.eval_every))
        for names, p in PRESETS.items()
    ]
    lines = ["  " + "".join(f"{cell:16}" if i < 2 else f"{cell:>11}" for i, cell in enumerate(row)) for row in (head, *rows)]
    return "\n".join(["defaults:", *lines])


def run(args: argparse.Namespace) -> int:
    """Train, and say how it went."""
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
        if result.folder is not None and result.untraced is None and result.net.config.dtype == "float32":
            from sparsenn.training.run import ARTEFACT
            from sparsenn.training.serving import summary

            print(f"{summary(result.folder / ARTEFACT)}\n")
        print(f"The run is in {result.folder}")
    return 0
