"""The command line: it reads flags, calls the library and prints. PyTorch is imported only once a command runs.

Each command is a module: ``add`` gives it its flags, ``run`` is what it does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sparsenn import __version__
from sparsenn.cli import bench_model, info, reproduce, sweep, teacher_student, train

_COMMANDS = (info, train, sweep, reproduce, teacher_student, bench_model)
_DESCRIPTION = "Train sparse neural networks by principled means."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; None for those of the process.

    Returns:
        The exit code: 0 done, 1 data or a package is missing or damaged, or nobody reads the output, 2 wrong usage, 3 the loss
        is no longer finite, 130 (128 + signal) stopped with a resumable folder.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without λ shows a question mark instead of failing
    try:
        code = _run(argv)
        print(end="", flush=True)  # a reader that has gone, as head has, is met here and not at exit
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere
        return 1


def _run(argv: Sequence[str] | None) -> int:
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
    for command in _COMMANDS:
        command.add(commands).set_defaults(command=command.run)
    return parser
