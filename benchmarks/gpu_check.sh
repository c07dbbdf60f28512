#!/usr/bin/env bash
# Everything that a GPU has to show, in one command, without a network:
#
#   benchmarks/gpu_check.sh [build] [test] [sanitize] [bench]      (no argument: all four, under ten minutes)
#
# It builds against the torch that is there, in place; runs the test suite, the marked tests first; runs every kernel under
# compute-sanitizer; runs the benchmarks. The result is one JSON in benchmarks/results/. A missing tool is said and skipped; a part
# that fails makes the exit status 1. PYTHON chooses the interpreter.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

say() { printf 'gpu_check: %s\n' "$*"; }

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit "$1"
}

parts=()
for part in "$@"; do
  case "$part" in
    build | test | sanitize | bench) parts+=("$part") ;;
    -h | --help) usage 0 ;;
    *)
      say "unknown part '$part'; it takes build, test, sanitize and bench" >&2
      exit 2
      ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(build test sanitize bench)

python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi

problem=$("$python" - <<'PY' 2>&1
try:
    import torch
except ImportError:
    print("this Python has no torch; set PYTHON to one that has")
else:
    if torch.version.cuda is None:
        print(f"torch {torch.__version__} is built without CUDA")
    elif not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no GPU")
PY
) || problem="$python does not run: $problem"
if [ -n "$problem" ]; then
  say "nothing to check here: $problem" >&2
  exit 3
fi

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
started=$SECONDS
failed=0

# run PART SECONDS NAME COMMAND...: notes how a step ended, and never runs past its limit or the ten minutes.
run() {
  local part=$1 limit=$2 name=$3 status=0 begin=$SECONDS outcome left=$((580 - SECONDS + started))
  shift 3
  if [ "$left" -lt 10 ]; then
    failed=1
    skip "$part" "$name" "the ten minutes are over"
    return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  say "$part: $name (at most $limit s)"
  timeout --kill-after=10 "$limit" "$@" || status=$?
  case "$status" in
    0) outcome=passed ;;
    124 | 137) outcome="ran past $limit s" ;;
    *) outcome="failed with status $status" ;;
  esac
  [ "$outcome" = passed ] || failed=1
  say "$part: $name: $outcome after $((SECONDS - begin)) s"
  printf '%s\t%s\t%s\t%s\n' "$part" "$name" "$outcome" "$((SECONDS - begin))" >>"$work/steps"
}

skip() {
  say "$1: $2: skipped, $3"
  printf '%s\t%s\tskipped: %s\t0\n' "$1" "$2" "$3" >>"$work/steps"
}

has_module() { "$python" -c "import $1" 2>/dev/null; }

part_build() {
  if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    skip build extension "there is no nvcc; what is installed is checked"
    return
  fi
  if has_module pip && has_module pybind11; then
    run build 240 extension env FORCE_CUDA=1 "$python" -m pip install -q --no-build-isolation --no-deps --no-index -e .
  elif has_module pybind11; then
    run build 240 extension env FORCE_CUDA=1 "$python" setup.py -q build_ext --inplace
  else
    skip build extension "pybind11 is not installed; what is installed is checked"
  fi
}

part_test() {
  # The sources must be importable where they were built in place and not installed.
  export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
  run test 120 "every kernel against its reference" "$python" tools/gpu_exercise.py
  if ! has_module pytest; then
    skip test suite "pytest is not installed"
    return
  fi
  # 5: no test is marked, which is nothing that failed.
  # shellcheck disable=SC2016
  run test 150 "suite, cuda" bash -c '"$@"; status=$?; [ $status -eq 5 ] || exit $status' - \
    "$python" -m pytest -q -m cuda
  run test 240 "suite, the rest" "$python" -m pytest -q -x -m "not cuda"
}

part_sanitize() {
  local tool sanitizer
  sanitizer=$(command -v compute-sanitizer || true)
  [ -n "$sanitizer" ] || sanitizer=${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer
  if [ ! -x "$sanitizer" ]; then
    skip sanitize compute-sanitizer "it is not installed"
    return
  fi
  export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
  # torch's allocator hands out parts of large blocks, in which an access out of bounds would go unseen.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck initcheck; do
    run sanitize 60 "$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 --kernel-name kns=sparsenn \
      "$python" tools/gpu_exercise.py --short
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
}

part_bench() {
  if ! has_module pytest_benchmark; then
    skip bench benchmarks "pytest-benchmark is not installed"
    return
  fi
  export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
  run bench 240 benchmarks "$python" -m pytest benchmarks -q --benchmark-only -k cuda --benchmark-json="$work/benchmarks.json"
}

: >"$work/steps"
for part in "${parts[@]}"; do
  case "$part" in
    build) part_build ;;
    test) part_test ;;
    sanitize) part_sanitize ;;
    bench) part_bench ;;
  esac
done

GPU_CHECK_WORK=$work GPU_CHECK_SECONDS=$((SECONDS - started)) "$python" - <<'PY' || failed=1
import json, os, platform, re, shutil, subprocess, sys
from datetime import datetime, timezone
from pathlib import Path

import torch


def output(*command):
    if not shutil.which(command[0]):
        return None
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


work = Path(os.environ["GPU_CHECK_WORK"])
name = torch.cuda.get_device_name(0)
query = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,pstate"
rows = output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
nvcc = shutil.which("nvcc") or f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc"
steps = [line.split("\t") for line in (work / "steps").read_text().splitlines()]
benchmarks = work / "benchmarks.json"
report = {
    "machine": f"{name} x {torch.cuda.device_count()}, {platform.machine()}, {os.cpu_count()} CPUs",
    "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "commit": output("git", "rev-parse", "--short", "HEAD"),
    "versions": {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda,
        "nvcc": (output(nvcc, "--version") or "none").splitlines()[-1],
    },
    "devices": [dict(zip(query.split(","), row.split(", "), strict=False)) for row in (rows or "").splitlines()],
    "seconds": int(os.environ["GPU_CHECK_SECONDS"]),
    "steps": [dict(zip(("part", "name", "outcome", "seconds"), [*s[:3], int(s[3])], strict=True)) for s in steps],
    "benchmarks": json.loads(benchmarks.read_text())["benchmarks"] if benchmarks.exists() else None,
}
for entry in report["benchmarks"] or []:
    entry["stats"].pop("data", None)
folder = Path("benchmarks/results")
folder.mkdir(parents=True, exist_ok=True)
label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
path = folder / f"gpu-{label}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"
part = path.with_suffix(".part")
part.write_text(json.dumps(report, indent=1) + "\n")
part.replace(path)
print(f"gpu_check: {path}")
PY

if [ "$failed" -eq 0 ]; then say "passed in $((SECONDS - started)) s"; else say "FAILED after $((SECONDS - started)) s"; fi
exit "$failed"
