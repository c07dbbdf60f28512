"""Measures the providers of a group interleaved, each after its result was checked, and hands the samples to pytest-benchmark.

pytest-benchmark times one test after the other, and on a shared machine the load changes between them. Here the first test of a
group measures all its selected providers in turns (A B C, B C A, ...); each test then replays its own provider's samples on a
clock that stands still otherwise. Tables and JSON hold the measured seconds per call; sample i of two providers of one group
belongs to the same turn, so that ``compare.py`` can take the median of their ratios.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cases import LARGE, Case, Provider, Run, check


@dataclass(frozen=True)
class Effort:
    """How long a group is measured."""

    seconds: float
    least_turns: int
    most_turns: int
    sample_seconds: float  # a quick call is repeated within a sample until it takes so long


FULL = Effort(seconds=3.0, least_turns=9, most_turns=61, sample_seconds=5e-4)
QUICK = Effort(seconds=0.3, least_turns=3, most_turns=15, sample_seconds=2e-4)
MEMORY_SHARE = 0.7  # of what is free, that one group may take


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmarks: few turns, no sizes beyond the caches")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    if config.option.benchmark_only:  # the suite's options disable benchmarks
        config.option.benchmark_enable = True
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = ["median", "iqr", "min", "rounds"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.quick:
        large = [item for item in items if _case(item) is not None and _case(item).size in LARGE]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]


def pytest_report_header() -> str:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = " The machine is busy: trust ratios, and those not far." if load > 0.5 else ""
    return f"machine: {machine_label()}, one thread, load {load:.1f} on {cores} cores.{busy}"


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["sparsenn"] = {
        "label": machine_label(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "load": round(os.getloadavg()[0], 2),
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
    """For each case, each provider's samples and the number of calls in one; or the error that kept it from being timed."""
    return {}


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any, _measured: dict) -> Callable[..., None]:
    """Checks and times the providers of a case, and reports one."""

    def report(case: Case, provider: Provider, prepare: Callable[[Case], Any]) -> None:
        if case not in _measured:
            _measured.clear()
            chosen = [item.callspec.params["provider"] for item in request.session.items if _case(item) == case]
            effort = QUICK if request.config.option.quick else FULL
            _measured[case] = _measure(case, chosen, prepare, effort, timed=benchmark.enabled)
        outcome = _measured[case][provider.name]
        if isinstance(outcome, BaseException):
            raise outcome
        samples, calls = outcome
        benchmark.group = case.group
        benchmark.extra_info.update(
            op=case.op, direction=case.direction, device=case.device, size=case.size, depth=case.depth,
            provider=provider.name, role=provider.role, bytes=provider.bytes(case), calls=calls,
        )  # fmt: skip
        if benchmark.enabled:
            replay = iter(samples)
            benchmark.pedantic(lambda: _Clock.advance(next(replay)), rounds=len(samples))
        else:
            benchmark(lambda: None)

    return report


class _Clock:
    """A clock that moves only by the durations that were measured."""

    now = 0.0

    @classmethod
    def read(cls) -> float:
        return cls.now

    @classmethod
    def advance(cls, seconds: float) -> None:
        cls.now = seconds if cls.now == 0.0 else 0.0
