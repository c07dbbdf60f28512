#!/usr/bin/env bash
# Everything that a GPU has to show, in one command, without a network:
#
#   benchmarks/gpu_check.sh [build] [test] [bench] [sanitize] [--out DIR] [--seconds N]
#
# All chosen parts together stay under ten minutes, or --seconds: the benchmarks go as far as they get, what has a target first.
# PYTHON chooses the interpreter.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ] && [ -x "$here/.venv/bin/python" ]; then PYTHON=$here/.venv/bin/python; fi
exec "${PYTHON:-python3}" "$here/tools/gpu_check.py" "$@"
