#!/usr/bin/env bash
# Everything that a GPU has to show, in one command, without a network:
#
#   benchmarks/gpu_check.sh [build] [test] [bench] [cost] [sanitize] [--out DIR] [--seconds N]
#
# All chosen parts together stay under ten minutes, or --seconds, and go as far as they get, what has a target first. For all of it
# say --seconds 2400, or where a command may take no more than ten minutes call it four times:
#
#   for part in test bench cost sanitize; do benchmarks/gpu_check.sh build $part --out DIR; done
#
# PYTHON chooses the interpreter.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ] && [ -x "$here/.venv/bin/python" ]; then PYTHON=$here/.venv/bin/python; fi
exec "${PYTHON:-python3}" "$here/tools/gpu_check.py" "$@"
