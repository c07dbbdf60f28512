"""What a GPU has to show: builds, tests, times and sanitizes the CUDA kernels. benchmarks/gpu_check.sh runs it.

Every step has a limit, and none begins after the time is over. The report is written anew after each, so that whatever ends the
command leaves what was found until then: one JSON, the output of all steps beside it, the benchmarks in pytest-benchmark's own
form, for compare.py, and a folder with the tables of what training costs. A missing tool is said and skipped, and so is what
there was no time for, but for the tests; a step that fails makes the exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cuda_check import find_tool

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("build", "test", "bench", "cost", "sanitize")
SECONDS = 540.0  # of the ten minutes; the rest is for starting and stopping
LATER_SECONDS = 100.0  # that the benchmarks leave to each part that comes after them
COMPARE_SECONDS = 30.0  # and for their comparison
TOO_LATE = "skipped: no time left"
_LEAST = 10.0  # seconds that a step is begun for
_PATIENCE = 10.0  # after an interrupt, before a step is killed

# What has a target comes first: the rest is timed as far as the time goes.
_TARGETS = "cuda and (1e8 or 60x4096)"
_OTHERS = "cuda and not 1e8 and not 60x4096"
BENCHMARKS = (
    ("factorized_sgd", _TARGETS),
    ("hadamard", _TARGETS),
    ("prox_sgd", _TARGETS),
    ("stacked", "cuda"),
    ("spectral_linear", "cuda and not compile"),
    ("factorized_adam", _TARGETS),
    ("balanced_sgd", _TARGETS),
    ("training", "cuda"),
    ("ridge", "cuda"),
    *((name, _OTHERS) for name in ("factorized_sgd", "hadamard", "prox_sgd", "factorized_adam", "balanced_sgd")),
    ("factor_init", "cuda"),
    ("spectral_linear", "cuda and compile"),
)
COST_OF = ("resnet-18", "wide-resnet-16-8", "vgg-19")
_SUMMARY = re.compile(r"SUMMARY: (\d+) ")  # of compute-sanitizer: errors or hazards


class Check:
    """The steps of one call, and where their results are written."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], seconds: float, python: str = sys.executable) -> None:
        self.began = time.monotonic()
        self.end = self.began + seconds
        self.python = python
        self.facts = dict(facts)
        self.steps: list[dict[str, Any]] = []
        self.benchmarks: dict[str, dict[str, Any]] = {}
        self.clocks: dict[str, Any] | None = None
        folder = folder.resolve()  # steps run elsewhere
        label = re.sub(r"[^a-z0-9]+", "-", str(facts["device"]).lower()).strip("-")
        folder.mkdir(parents=True, exist_ok=True)
        self.report = folder / f"gpu-{label}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"
        self.log = self.report.with_suffix(".log")

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    @property
    def failed(self) -> bool:
        """Whether a step did anything but pass or be skipped."""
        return any(step["outcome"] != "passed" and not step["outcome"].startswith("skipped") for step in self.steps)

    def note(self, part: str, name: str, outcome: str, seconds: float = 0.0, **more: Any) -> None:
        """Remember how a step ended, and write the report."""
        say(f"{part}: {name}: {outcome} after {seconds:.0f} s {more or ''}".rstrip())
        self.steps.append({"part": part, "name": name, "outcome": outcome, "seconds": round(seconds, 1), **more})
        self.write()

    def run(
        self, part: str, name: str, limit: float, command: Sequence[str], *, env: Mapping[str, str] | None = None
    ) -> tuple[str, str, float]:
        """Run a command for at most ``limit`` seconds; the outcome, what it printed, and how long it took."""
        limit = min(limit, self.left)
        if limit < _LEAST:
            return TOO_LATE, "", 0.0
        say(f"{part}: {name} (at most {limit:.0f} s)")
        began = time.monotonic()
        with self.log.open("a+", encoding="utf-8", errors="replace") as log:
            log.write(f"\n=== {part}: {name}: {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_hear_interrupts,
            )
            try:
                status = process.wait(limit)
                outcome = "passed" if status == 0 else f"failed with status {status}"
            except subprocess.TimeoutExpired:
                outcome = f"ran past {limit:.0f} s"
            finally:  # also where this process is told to end: none is left on the card
                _stop(process)
            log.seek(start)
            output = log.read()
        if outcome != "passed":
            print("\n".join(output.splitlines()[-15:]), flush=True)
        return outcome, output, time.monotonic() - began

    def write(self) -> None:
        """The report so far, in place of the last."""
        content = {
            **self.facts,
            "seconds": round(time.monotonic() - self.began),
            "steps": self.steps,
            "clocks while benchmarks ran": self.clocks,
            "benchmarks": [_medians(entry) for entry in self.benchmarks.values()],
        }
        _replace(self.report, content)


def build(check: Check) -> None:
    """The libraries in place, by ninja on all cores; where there is no nvcc what was built there before is checked."""
    if not find_tool("nvcc"):
        check.note("build", "extension", "skipped: there is no nvcc; what was built in place is checked")
    elif not _has("pybind11"):
        check.note("build", "extension", "skipped: pybind11 is not installed; what was built in place is checked")
    else:
        env = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": ""}  # for the card that is there, whatever an image's list says
        env |= {"PATH": f"{Path(check.python).parent}{os.pathsep}{os.environ['PATH']}"}
        command = [check.python, "setup.py", "-q", "build_ext", "--inplace"]
        outcome, _, seconds = check.run("build", "extension", 420, command, env=env)
        check.note("build", "extension", outcome, seconds)


def kernels_loaded(check: Check) -> bool:
    """Whether the CUDA library serves the operators: without it the reference would be tested against itself."""
    code = (
        "import sys, sparsenn.ops, sparsenn._extension as e; c = e.status()['libraries']; "
        "sys.exit('; '.join(l.problem for l in c.values() if l.problem) or None)"
    )
    outcome, output, seconds = check.run("build", "kernels", 60, [check.python, "-c", code], env=_path())
    check.note("build", "kernels", outcome, seconds, **({} if outcome == "passed" else {"problem": output.strip()[-500:]}))
    return outcome == "passed"


def test(check: Check) -> None:
    """Every kernel against its reference, and the marked tests of the suite."""
    command = [check.python, "tools/gpu_exercise.py"]
    outcome, output, seconds = check.run("test", "every kernel against its reference", 240, command, env=_path())
    check.note("test", "every kernel against its reference", outcome, seconds, last=_last_line(output))
    if not _has("pytest"):
        check.note("test", "suite, cuda", "skipped: pytest is not installed")
        return
    found = check.report.with_suffix(".xml")
    command = [check.python, "-m", "pytest", "-q", "-m", "cuda", "--tb=short", "--maxfail=60", f"--junitxml={found}"]
    command += ["-n", "6", "--dist", "loadfile"] if _has("xdist") else []
    env = {**_path(), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    outcome, _, seconds = check.run("test", "suite, cuda", 240, command, env=env)
    if outcome == TOO_LATE:
        outcome = "failed: no time left"  # nothing else says that the kernels are right
    counts = _counts(found)
    if outcome == "passed" and not counts.get("tests", 0) - counts.get("skipped", 0):
        outcome = "failed: no test ran"
    check.note("test", "suite, cuda", outcome, seconds, **counts)
    found.unlink(missing_ok=True)


def bench(check: Check, reserve: float = 0.0) -> None:
    """A file of benchmarks after the other, each with results of its own; the clocks are watched meanwhile."""
    if not _has("pytest_benchmark"):
        check.note("bench", "benchmarks", "skipped: pytest-benchmark is not installed")
        return
    raw = check.report.with_name(f"{check.report.stem}-benchmarks.json")
    with _Clocks(check.report.with_suffix(".clocks")) as clocks:
        for name, chosen in BENCHMARKS:
            found = check.report.with_suffix(".part.json")
            command = [check.python, "-m", "pytest", f"benchmarks/bench_{name}.py", "-q", "--benchmark-only", "-k", chosen]
            limit = check.left - reserve - COMPARE_SECONDS
            outcome, _, seconds = check.run("bench", name, limit, [*command, f"--benchmark-json={found}"], env=_path())
            count = _merge(raw, found, check.benchmarks)
            check.clocks = clocks.summary()
            if outcome.startswith("ran past") and chosen != _TARGETS:
                outcome = f"skipped: no time left to end it ({outcome})"
            check.note("bench", f"{name} ({chosen})", outcome, seconds, rows=count)
    if raw.exists():
        command = [check.python, "benchmarks/compare.py", str(raw)]
        outcome, output, seconds = check.run("bench", "targets", 60, command, env=_path())
        targets = [line.strip() for line in output.splitlines() if "cuda" in line and re.search("reached|MISSED", line)]
        check.note("bench", "targets", outcome, seconds, targets=targets)


def cost(check: Check) -> None:
    """Time and memory of a training step of large nets, dense and factorized: Figures 26 and 27 of the paper."""
    folder = check.report.with_suffix("")
    for model in COST_OF:
        for item in ("fig26", "fig27"):
            command = [check.python, "-m", "sparsenn", "reproduce", "dwf", item, "--device", "cuda", "--model", model]
            command += ["--batch-sizes", "64", "128", "256", "--out", str(folder)]
            outcome, output, seconds = check.run("cost", f"{item}, {model}", 200, command, env=_path())
            over = _over_dense(folder / f"{item}-{model}-cuda.csv")
            check.note("cost", f"{item}, {model}", outcome, seconds, last=_last_line(output), over_dense_at_128=over)


def sanitize(check: Check) -> None:
    """A short list of calls under each tool of compute-sanitizer."""
    sanitizer = find_tool("compute-sanitizer")
    if not sanitizer:
        check.note("sanitize", "compute-sanitizer", "skipped: it is not installed")
        return
    # torch's allocator hands out parts of large blocks, in which an access out of bounds would go unseen.
    env = {**_path(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    exercise = [check.python, "tools/gpu_exercise.py", "--short", "--once"]
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        command = [sanitizer, "--tool", tool, "--launch-timeout", "0", "--error-exitcode", "9", "--show-backtrace", "no"]
        if tool == "memcheck":
            command += ["--report-api-errors", "no"]
        if tool != "initcheck":  # which has to see what torch's kernels write
            command += ["--kernel-name", "kns=sparsenn"]
        outcome, output, seconds = check.run("sanitize", tool, 120, [*command, *exercise], env=env)
        found = _SUMMARY.findall(output)
        if "Device not supported" in output:
            outcome = "skipped: compute-sanitizer does not support this device"
        elif outcome == "passed" and found != ["0"]:
            outcome = f"failed: summaries {found}"
        check.note("sanitize", tool, outcome, seconds)


class _Clocks:
    """Asks for the card's clocks twice a second as long as it is entered."""

    _names = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Clocks:
        self._process = None
        if tool := shutil.which("nvidia-smi"):
            query = [tool, f"--query-gpu={','.join(self._names)}", "--format=csv,noheader,nounits", "-lms", "500"]
            with self._path.open("w") as out:
                self._process = subprocess.Popen(query, stdout=out, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
        self._path.unlink(missing_ok=True)

    def summary(self) -> dict[str, Any] | None:
        """Median and largest value of each until now."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        rows = [re.findall(r"[\d.]+", line) for line in lines]
        columns = zip(*([float(x) for x in row] for row in rows if len(row) == len(self._names)), strict=True)
        pairs = zip(self._names, columns, strict=False)
        return {name: {"median": statistics.median(own), "most": max(own)} for name, own in pairs} or None


def _hear_interrupts() -> None:
    """A shell's background job ignores interrupts, and what it starts would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a step that still runs, which lets pytest write what it has; then kill it and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _counts(found: Path) -> dict[str, int]:
    """Tests, failures, errors and skips of a JUnit file."""
    try:
        suites = list(ET.parse(found).getroot().iter("testsuite"))
    except (OSError, ET.ParseError):  # of a run that was killed
        return {}
    counts = [{name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")} for suite in suites]
    return {name: sum(own[name] for own in counts) for name in counts[0]} if counts else {}


def _merge(raw: Path, found: Path, benchmarks: dict[str, dict[str, Any]]) -> int:
    """Add a run's benchmarks to those of the runs before; how many there were."""
    try:
        run = json.loads(found.read_text())
    except (OSError, ValueError):  # of a run that was killed
        return 0
    finally:
        found.unlink(missing_ok=True)
    benchmarks |= {entry["fullname"]: entry for entry in run["benchmarks"]}
    _replace(raw, {**run, "benchmarks": list(benchmarks.values())})
    return len(run["benchmarks"])


def _over_dense(table: Path, batch: str = "128") -> dict[str, float]:
    """Time or memory over the dense net's at one batch size, the median over turns, of every way to train factors."""
    if not table.exists():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["batch_size"] == batch]
    figures = {(row["way"], row["depth"]): [float(x) for x in row["figures"].split()] for row in rows}
    dense = figures.pop(("dense", "1"), [])
    return {
        f"{way}, D = {depth}": round(statistics.median(own / its for own, its in zip(turns, dense, strict=True)), 4)
        for (way, depth), turns in figures.items()
    }


def _medians(entry: Mapping[str, Any]) -> dict[str, Any]:
    stats = {name: entry["stats"][name] for name in ("median", "iqr", "min", "rounds")}
    return {"group": entry["group"], **entry["extra_info"], **stats}


def _replace(path: Path, content: Any) -> None:
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _path() -> dict[str, str]:
    """The sources, which are importable where they were built in place and not installed."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def _last_line(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "")


def say(message: str) -> None:
    """A line of progress."""
    print(f"gpu_check: {message}", flush=True)


def output_of(*command: str) -> str | None:
    """What a command prints, or None where it is not there."""
    if not shutil.which(command[0]):
        return None
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip() or None


def facts() -> dict[str, Any]:
    """The machine and the versions; the process ends where there is no GPU to check."""
    try:
        import torch
    except ImportError:
        _nothing("this Python has no torch; set PYTHON to one that has")
    if torch.version.cuda is None:
        _nothing(f"torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        _nothing(f"torch {torch.__version__} finds no GPU")
    name, nvcc = torch.cuda.get_device_name(0), find_tool("nvcc")
    query = "driver_version,power.limit,clocks.max.sm,clocks.max.mem"
    return {
        "device": name,
        "machine": f"{name} x {torch.cuda.device_count()}, {platform.machine()}, {os.cpu_count()} CPUs",
        "driver": output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv"),
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": os.environ.get("GPU_CHECK_COMMIT") or output_of("git", "rev-parse", "--short", "HEAD"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda of torch": torch.version.cuda,
            "nvcc": (output_of(nvcc, "--version") or "none").splitlines()[-1] if nvcc else None,
        },
    }


def _nothing(problem: str) -> None:
    print(f"gpu_check: nothing to check here: {problem}", file=sys.stderr)
    raise SystemExit(3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen parts; 0 where all passed, 1 where something failed, 3 without a GPU."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all, in this order)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder of the results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="when to stop (default: %(default)g)")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if unknown := [part for part in chosen.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; it takes {', '.join(PARTS)}")
    parts = [part for part in PARTS if part in chosen.parts] or list(PARTS)
    check = Check(chosen.out, facts(), chosen.seconds)
    if "build" in parts:
        build(check)
    if kernels_loaded(check):
        if "test" in parts:
            test(check)
        if "bench" in parts:
            bench(check, LATER_SECONDS * len({"cost", "sanitize"} & set(parts)))
        if "cost" in parts:
            cost(check)
        if "sanitize" in parts:
            sanitize(check)
    say(f"{'FAILED' if check.failed else 'passed'} after {time.monotonic() - check.began:.0f} s: {check.report}")
    return int(check.failed)


if __name__ == "__main__":
    raise SystemExit(main())
