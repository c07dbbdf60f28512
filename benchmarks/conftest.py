"""Measures the providers of a group interleaved, each after its result was checked, and hands the samples to pytest-benchmark.

pytest-benchmark times one test after the other, and on a shared machine the load changes between them. Here the first test of a
group measures all its selected providers in turns (A B C, B C A, ...); each test then replays its own provider's samples on a
clock that stands still otherwise. Tables and JSON hold the measured seconds per call; sample i of two providers of one group
belongs to the same turn, so that ``compare.py`` can take the median of their ratios.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import random
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cases import LARGE, Case, Provider, Run, check
from sparsenn import _extension


@dataclass(frozen=True)
class Effort:
    """How long a group is measured."""

    seconds: float
    least_turns: int
    most_turns: int
    sample_seconds: float  # a quick call is repeated within a sample until it takes so long


FULL = Effort(seconds=2.5, least_turns=7, most_turns=61, sample_seconds=5e-4)
QUICK = Effort(seconds=0.3, least_turns=3, most_turns=15, sample_seconds=2e-4)
CACHED_SECONDS = 0.02  # a call that takes longer works in memory, not in the caches
GPU_SAMPLE_SECONDS = 1e-2  # what Python does before the first launch of a sample is not hidden behind another
LOAD = round(os.getloadavg()[0], 2)  # before anything of ours runs
MEMORY_SHARE = 0.8  # of what is free, that one group may take


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmarks: few turns, no sizes beyond the caches")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    if config.option.benchmark_only:  # the suite's options disable benchmarks
        config.option.benchmark_enable = True
    if not config.option.benchmark_columns:
        config.option.benchmark_columns = ["median", "iqr", "min", "rounds"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if _case_of(item)]
    for item in ours:
        item.add_marker(pytest.mark.benchmark(timer=measured_seconds))
    if config.option.quick:
        large = {item for item in ours if _case_of(item).size in LARGE}
        config.hook.pytest_deselected(items=list(large))
        items[:] = [item for item in items if item not in large]


def pytest_report_header() -> str:
    busy = ": others are at work here, trust no single figure" if LOAD > 0.5 else ""
    return f"machine: {machine_label()}, one thread, load {LOAD}{busy}"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["sparsenn"] = {
        "label": machine_label(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "load": LOAD,
        "quick": config.option.quick,
    }


def machine_label() -> str:
    """Processor (and GPU), cores and torch version; SPARSENN_BENCH_LABEL overrides it."""
    if label := os.environ.get("SPARSENN_BENCH_LABEL"):
        return label
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", info, re.MULTILINE))
    names = [fields.get("model name", platform.machine()), fields.get("cpu family", ""), fields.get("model", "")]
    names += [f"{os.cpu_count()} cores", f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        names.insert(0, torch.cuda.get_device_name())
    return re.sub(r"[^a-z0-9.+]+", "-", " ".join(name for name in names if name).lower()).strip("-")


@pytest.fixture(scope="session")
def _measured() -> dict[Case, dict[str, Any]]:
    """For the group at hand: each provider's samples and the calls in one, or the error that kept it from being timed."""
    return {}


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any, _measured: dict) -> Callable[..., None]:
    """Checks and times the providers of a case, and reports one of them."""

    def report(case: Case, provider: Provider, prepare: Callable[[Case], Any]) -> None:
        if case.device == "cuda" and not (library := _extension.status()["libraries"]["cuda"]).loaded:
            pytest.fail(f"the reference would be timed in the place of the kernels: {library.problem}")
        if case not in _measured:
            _measured.clear()
            chosen = [item.callspec.params["provider"] for item in request.session.items if _case_of(item) == case]
            effort = QUICK if request.config.option.quick else FULL
            _measured[case] = _measure(case, chosen, prepare, effort, timed=benchmark.enabled)
        outcome = _measured[case][provider.name]
        if isinstance(outcome, BaseException):
            benchmark.skipped = True  # pytest-benchmark would warn of a fixture that was not used
            raise outcome
        samples, calls = outcome
        benchmark.group = case.group
        benchmark.extra_info = {
            **asdict(case),
            "provider": provider.name,
            "role": provider.role,
            "bytes": provider.bytes(case),
            "calls": calls,
        }
        replay = iter(samples)
        benchmark.pedantic(lambda: _advance(next(replay)), rounds=len(samples))

    return report


_elapsed = 0.0


def measured_seconds() -> float:
    """The clock that pytest-benchmark reads: it moves only by what was measured."""
    return _elapsed


def _advance(seconds: float) -> None:
    global _elapsed
    _elapsed += seconds


def _case_of(item: pytest.Item) -> Case | None:
    return item.callspec.params.get("case") if "measure" in getattr(item, "fixturenames", ()) else None


def _measure(
    case: Case, providers: list[Provider], prepare: Callable[[Case], Any], effort: Effort, *, timed: bool
) -> dict[str, Any]:
    gc.collect()
    torch.compiler.reset()  # a graph that was compiled for one case must not be one of many that the next has to choose from
    needed, free = (len(providers) + 2) * case.footprint, _free_memory(case.device)
    if needed > MEMORY_SHARE * free:
        skipped = pytest.skip.Exception(f"needs about {needed / 2**30:.0f} GiB of memory; {free / 2**30:.0f} are free")
        return {provider.name: skipped for provider in providers}
    inputs = prepare(case)
    outcomes: dict[str, Any] = {}
    runs: dict[str, Run] = {}
    for provider in providers:
        try:
            run = provider.build(inputs)
            check(run, inputs)
        except Exception as error:
            outcomes[provider.name] = error
        else:
            runs[provider.name] = run
            outcomes[provider.name] = ([0.0], 1)
    if timed and runs:
        try:
            outcomes |= _interleaved({name: run.call for name, run in runs.items()}, case.device, effort)
        except Exception as error:  # known, so that the next provider does not measure the group once more
            outcomes |= dict.fromkeys(runs, error)
    return outcomes


def _interleaved(calls: dict[str, Callable[[], Any]], device: str, effort: Effort) -> dict[str, tuple[list[float], int]]:
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def seconds(call: Callable[[], Any], count: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        synchronize()
        return (time.perf_counter() - start) / count

    sample_seconds = GPU_SAMPLE_SECONDS if device == "cuda" else effort.sample_seconds
    once = {name: min(seconds(call, 1) for _ in range(2)) for name, call in calls.items()}
    counts = {name: max(1, math.ceil(sample_seconds / duration)) for name, duration in once.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + effort.seconds
        turns = 0
        while turns < effort.least_turns or (turns < effort.most_turns and time.perf_counter() < end):
            shuffle(order)  # who runs before whom must not matter
            for name in order:
                if once[name] < CACHED_SECONDS:
                    calls[name]()  # fetches what the others have pushed out of the caches
                samples[name].append(seconds(calls[name], counts[name]))
            turns += 1
    finally:
        gc.enable()
    return {name: (own, counts[name]) for name, own in samples.items()}


def _free_memory(device: str) -> int:
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return int(found.group(1)) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
