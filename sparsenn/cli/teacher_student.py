"""``sparsenn teacher-student``: the L1 paper's public commands."""

from __future__ import annotations

import argparse
from typing import Any

from sparsenn.cli.paths import path_name

_DESCRIPTION = """\
Students of teachers of twelve inputs, with the flags, configuration files and output files of the L1 paper's public code.

  single    one pair of <type>_<activation>, with the first lr, l1_norm and l2_norm of the file
  multiple  all pairs of relu, tanh and sigmoid (like ones alone if same_act), with all of them, trained as one stack

Types: baselineCNN, splitFilterCNN, multiChannelCNN, and for students fcn_256_32, fcn_128_128, fcn_1024_128. Activations: relu,
sigmoid, tanh, gelu. The file is looked for as a path, in config_files/ and among those that come with the package:
config_[cnn_]{l1,l2,noReg}_{0.2,1}.json. The same command again goes on where it was killed.
"""


def add(commands: Any) -> argparse.ArgumentParser:
    """The flags of ``teacher-student``."""
    parser = commands.add_parser(
        "teacher-student",
        help="students of the L1 paper, by its configuration files",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--mode", metavar="MODE", required=True, help="single or multiple")
    parser.add_argument("--teacher_model", "--teacher-model", metavar="TYPE_ACT", help="for single: baselineCNN_tanh, say")
    parser.add_argument("--student_model", "--student-model", metavar="TYPE_ACT", help="for single: fcn_256_32_relu, say")
    parser.add_argument("--teacher_type", "--teacher-type", metavar="TYPE", help="for multiple")
    parser.add_argument("--student_type", "--student-type", metavar="TYPE", help="for multiple")
    parser.add_argument(
        "--config_path", "--config-path", type=path_name, metavar="FILE", required=True, help="a path, or a name (see above)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of data, weights and order of the samples (default: 42)")
    parser.add_argument("--name", metavar="NAME", help="goes into the names of folder and files (default: noName)")
    parser.add_argument("--optimizer", metavar="NAME", help="sgd, or prox for exact zeros under L1 (default: sgd)")
    parser.add_argument("--quiet", action="store_true", default=False, help="print errors only")
    return parser


def run(args: argparse.Namespace) -> int:
    """Train the students, and say where they are."""
    from sparsenn.papers.l1.teacher_student import run_study

    options = {key: value for key, value in vars(args).items() if key != "command"}
    folder = run_study(options.pop("mode"), options.pop("config_path"), **options)
    if not args.quiet:
        print(f"Written: {folder}")
    return 0
