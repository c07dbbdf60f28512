"""Reads a benchmark run and prints ratios, shares of the physical limit, targets, and what changed since the stored run.

    python benchmarks/compare.py                       # runs the benchmarks, then compares
    python benchmarks/compare.py run.json --save       # a run of pytest --benchmark-json=run.json, and keeps it

Ratios are medians over the turns of one run, in each of which every provider of a group was timed once.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

HERE = Path(__file__).resolve().parent
LOSS = 0.10
LIMIT = "add_"
YARDSTICKS = ("peer", "floor", "limit")


@dataclass(frozen=True)
class Row:
    """One provider of one group: seconds per call in each turn."""

    provider: str
    role: str
    bytes: int | None
    seconds: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.seconds)


class Group:
    """The providers of one case, timed in the same turns."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {row.provider: row for row in rows}

    @property
    def ours(self) -> str | None:
        return next((row.provider for row in self.rows.values() if row.role == "ours"), None)

    def ratio(self, slow: str, fast: str) -> float | None:
        """Median of time of `slow` over time of `fast`."""
        if slow not in self.rows or fast not in self.rows:
            return None
        pairs = zip(self.rows[slow].seconds, self.rows[fast].seconds, strict=False)
        return median(a / max(b, 1e-9) for a, b in pairs)

    def share(self, provider: str, limit: str = LIMIT) -> float | None:
        """Bytes that the operation must move per second, over the same figure of the limit at equal footprint."""
        ratio = self.ratio(limit, provider)
        if ratio is None or self.rows[provider].bytes is None:
            return None
        return ratio * self.rows[provider].bytes / self.rows[limit].bytes


@dataclass(frozen=True)
class Target:
    """What one group must reach: at least `bound`, or at most where it is a cost."""

    group: str
    says: str
    bound: float
    value: Any  # Group -> float | None
    at_most: bool = False

    def verdict(self, value: float | None) -> str:
        if value is None:
            return "not measured"
        return "reached" if (value <= self.bound if self.at_most else value >= self.bound) else "MISSED"


def step(device: str, size: str, depth: int) -> str:
    return f"factorized_sgd · step · {device} · {size} · D={depth}"


def runtime(size: str, batch: int) -> str:
    return f"runtime · forward · cpu · {size} · B={batch}"


# Single layers at batch 1, 8 and 256, or 1 and 256: what a kernel reached whose inputs and outputs lie by features.
LAYERS = {
    "784x300-s90": (1.9, 3.4, 2.6),
    "784x300-s95": (3.4, 6.3, 5.3),
    "784x300-s98": (7, 14, 13),
    "784x300-s99": (12, 23, 23),
    "784x300-s99.5": (19, 35, 41),
    "784x300-s99.8": (21, 45, 81),
    "4096x4096-s90": (3.4, 1.7),
    "4096x4096-s99": (35, 17),
}


def over_best_dense(group: Group) -> float | None:
    """The time of the quickest dense engine over ours."""
    ratios = [group.ratio(engine, "runtime") for engine in ("onnx-runtime", "onednn", "dense")]
    return min((ratio for ratio in ratios if ratio is not None), default=None)


def targets() -> Iterator[Target]:
    """What each kernel must reach; the step through the real optimizer class."""
    cpu = "cpu"

    def faster_than(peer: str) -> Any:
        return lambda group: group.ratio(peer, "optimizer")

    for size, bounds in (("1e4", (6, 8)), ("2.7e5", (2.6, 4.3)), ("1.1e7", (6, 11))):
        for depth, bound in zip((2, 4), bounds, strict=True):
            yield Target(step(cpu, size, depth), "step: eager ÷ ours", bound, faster_than("eager-foreach"))
    for depth in (2, 3, 4):
        yield Target(step(cpu, "1e4", depth), "step: torch.compile ÷ ours", 3.5, faster_than("compile"))
    for size, depth, bound in (("2.7e5", 2, 1.5), ("2.7e5", 4, 1.4), *((s, d, 1.0) for s in ("1.1e7", "4e7") for d in (2, 4))):
        yield Target(step(cpu, size, depth), "step: torch.compile ÷ ours", bound, faster_than("compile"))
    for size in ("1.1e7", "4e7"):
        for depth in (2, 3, 4) if size == "1.1e7" else (2, 4):
            yield Target(step(cpu, size, depth), "step: share of the in-place limit", 0.95, lambda g: g.share("optimizer"))
    for size, bound in (("1e4", 0.75), ("2.7e5", 0.75), ("1.1e7", 1.0), ("1000x1000", 0.3)):
        group = f"prox_sgd · proximal · cpu · {size} · D=1"
        yield Target(group, "proximal: ours ÷ dense", bound, lambda g: g.ratio("optimizer", "dense"), at_most=True)
    for size in ("1e4", "2.7e5", "1.1e7", "4e7"):
        group = f"prox_sgd · proximal · cpu · {size} · D=1"
        yield Target(group, "proximal: torch.compile ÷ ours", 1.0, faster_than("compile"))
        if size in ("1.1e7", "4e7"):
            yield Target(group, "proximal: share of the in-place limit", 0.95, lambda g: g.share("optimizer"))
    for direction in ("forward", "backward"):
        for size in ("1e4", "2.7e5", "1.1e7", "4e7"):
            group = f"hadamard · {direction} · cpu · {size} · D=4"
            yield Target(group, f"{direction}: eager with out= ÷ ours", 1.4, lambda g: g.ratio("eager-out", "out"))
            if size in ("1.1e7", "4e7"):
                yield Target(group, f"{direction}: share of the limit", 0.80, lambda g: g.share("out"))
    for batch, bounds in (("lenet-b64", (1.05, 1.10, 1.15)), ("lenet-b1024", (1.03, 1.03, 1.03))):
        for depth, bound in zip((2, 3, 4), bounds, strict=True):
            group = f"training · step · cpu · {batch} · D={depth}"
            yield Target(group, "training: ours ÷ dense", bound, lambda g: g.ratio("optimizer", "dense"), at_most=True)

    students = {"fcn_256_32 · R=10": (25, 3), "fcn_256_32 · R=45": (25, 3)}
    students |= dict.fromkeys(("baselineCNN · R=32", "multiChannelCNN · R=32"), (1000, 10))
    for size, (loop, bmm) in students.items():
        group = f"stacked_steps · cpu · {size}"
        yield Target(group, "stack: the ordinary loop ÷ ours", loop, lambda g: g.ratio("loop", "fused"))
        yield Target(group, "stack: compiled bmm ÷ ours", bmm, lambda g: g.ratio("compiled-bmm", "fused"))
    for nets in (1, 3):
        group = f"ridge · norm · cpu · R={nets}"
        yield Target(group, "epoch of a ridge net: eager ÷ ours", 2, lambda g: g.ratio("eager", "stack"))

    served = [(runtime("lenet-c100", 1), 10), (runtime("lenet-c500", 1), 16)]
    served += [(runtime("lenet-c100", 256), 9), (runtime("lenet-c500", 256), 27)]
    served += [(runtime("lenet5-c50", batch), 3) for batch in (1, 8, 256)]
    for size, bounds in LAYERS.items():
        batches = (1, 8, 256) if len(bounds) == 3 else (1, 256)
        served += [(runtime(size, batch), bound) for batch, bound in zip(batches, bounds, strict=True)]
    for group, bound in served:
        yield Target(group, "best dense ÷ ours", bound, over_best_dense)
    for size in (*(f"784x300-s{zeros}" for zeros in (0, 50, 70, 80, 90, 95, 99)), "lenet-c1", "lenet5-c1"):
        for batch in (1, 8, 32, 256) if size != "lenet5-c1" else (1, 8, 256):
            yield Target(runtime(size, batch), "never slower: best dense ÷ ours", 1 / 1.05, over_best_dense)

    for size in ("784x300", "1024x1024", "4096x4096"):
        for batch in (1, 8, 32, 64, 256, 1024):
            group = f"spectral_linear · forward · cpu · {size} · B={batch}"
            floors = [("compose", 1.0), ("onednn", 1.1)] + ([("linear", 0.9 if batch == 1 else 0.65)] if batch <= 256 else [])
            for floor, bound in floors:
                value = functools.partial(Group.ratio, slow="operator", fast=floor)
                yield Target(group, f"spectral forward: ours ÷ {floor}", bound, value, at_most=True)
            group = f"spectral_linear · both · cpu · {size} · B={batch}"
            if batch <= 8 or batch >= 256:
                value = functools.partial(Group.ratio, slow="operator", fast="linear")
                yield Target(group, "spectral both: ours ÷ linear", 0.7 if batch <= 8 else 1.03, value, at_most=True)
        group = f"spectral_linear · gradients · cpu · {size} · B=1"
        yield Target(group, "spectral gradients: share of the limit", 0.80, lambda g: g.share("operator"))

    cuda = "cuda"
    for depth in (2, 3, 4):
        says = "share of the copy bandwidth"
        yield Target(step(cuda, "1e8", depth), f"step: {says}", 0.92, lambda g: g.share("optimizer", "copy_"))
        for direction in ("forward", "backward"):
            group = f"hadamard · {direction} · cuda · 1e8 · D={depth}"
            yield Target(group, f"{direction}: {says}", 0.92, lambda g: g.share("out", "copy_"))
        small = step(cuda, "60x4096", depth)
        yield Target(small, "60 tensors: eager foreach ÷ ours", 5.0, faster_than("eager-foreach"))
        yield Target(small, "60 tensors: torch.compile ÷ ours", 1.0, faster_than("compile"))
    yield Target("prox_sgd · proximal · cuda · 1e8 · D=1", f"proximal: {says}", 0.92, lambda g: g.share("optimizer", "copy_"))
    over_linear = functools.partial(Group.ratio, slow="operator", fast="linear")
    over_ours = functools.partial(Group.ratio, slow="two-products", fast="operator")
    for direction in ("forward", "both"):
        large = f"spectral_linear · {direction} · cuda · 4096x4096 · B=1024"
        yield Target(large, f"spectral {direction}: ours ÷ linear", 1.03, over_linear, at_most=True)
        yield Target(large, f"spectral {direction}: the formula ÷ ours", 1.8, over_ours)
    single = "spectral_linear · forward · cuda · 4096x4096 · B=1"
    yield Target(single, "spectral forward: ours ÷ linear", 1.10, over_linear, at_most=True)


def read(path: Path) -> tuple[dict[str, Group], dict[str, Any]]:
    """The groups of a run, and the machine they ran on."""
    run = json.loads(path.read_text())
    rows: dict[str, list[Row]] = {}
    for benchmark in run["benchmarks"]:
        info = benchmark["extra_info"]
        if "provider" in info:
            row = Row(info["provider"], info["role"], info["bytes"], benchmark["stats"]["data"])
            rows.setdefault(benchmark["group"], []).append(row)
    return {name: Group(own) for name, own in rows.items()}, run["machine_info"].get("sparsenn", {})


def summary(group: Group) -> dict[str, dict[str, Any]]:
    """What is kept of a group: medians in µs, ratios to ours, shares of the limit."""

    def rounded(x: float | None) -> float | None:
        return None if x is None else float(f"{x:.4g}")

    return {
        name: {
            "us": rounded(row.median * 1e6),
            "to_ours": rounded(group.ratio(name, group.ours)) if group.ours else None,
            "share": rounded(group.share(name)),
        }
        for name, row in group.rows.items()
    }


def print_group(name: str, group: Group) -> None:
    print(f"\n{name}")
    print(f"  {'':18}{'median':>12}{'÷ ours':>9}{'GB/s':>8}{'of limit':>10}")
    kept = summary(group)
    for provider, row in sorted(group.rows.items(), key=lambda item: item[1].median):
        to_ours, share = kept[provider]["to_ours"], kept[provider]["share"]
        print(
            f"  {provider:18}{_time(row.median):>12}"
            f"{'' if to_ours is None else f'{to_ours:.2f}':>9}"
            f"{'' if row.bytes is None else f'{row.bytes / row.median / 1e9:.1f}':>8}"
            f"{'' if share is None else f'{share:.0%}':>10}"
        )


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns"


def print_targets(groups: dict[str, Group]) -> int:
    """Those of the groups that were measured. Returns how many are missed."""
    print(f"\ntargets\n  {'group':52}{'what':48}{'target':>8}{'is':>8}")
    missed = 0
    for target in targets():
        if target.group not in groups:
            continue
        value = target.value(groups[target.group])
        verdict = target.verdict(value)
        missed += verdict == "MISSED"
        bound = f"{'≤' if target.at_most else '≥'} {target.bound:.3g}"
        print(f"  {target.group:52}{target.says:48}{bound:>8}{'' if value is None else f'{value:.2f}':>8}  {verdict}")
    return missed


def print_changes(groups: dict[str, Group], stored: dict[str, Any]) -> int:
    """Returns how many of our rows lost more than LOSS, both in their own time and measured by the others of their group.

    The two together: a machine that is slower today slows the others as well, and a peer that became faster is no loss of ours.
    """
    print(f"\nsince the stored run ({stored['label']}): time, and speed relative to the others of the group")
    losses = compared = 0
    for name, group in groups.items():
        before, now = stored["groups"].get(name, {}), summary(group)
        for provider, row in now.items():
            yardsticks = [p for p in now.keys() & before.keys() if group.rows[p].role in YARDSTICKS]
            if group.rows[provider].role != "ours" or provider not in before or not yardsticks:
                continue
            compared += 1
            time = row["us"] / before[provider]["us"]
            speed = geometric_mean(
                (now[p]["us"] / row["us"]) / (before[p]["us"] / before[provider]["us"]) for p in sorted(yardsticks)
            )
            if time > 1 + LOSS and speed < 1 / (1 + LOSS):
                losses += 1
                print(f"  LOSS  {name} · {provider}: time ×{time:.2f}, relative speed ×{speed:.2f}")
    print(f"  {compared} rows compared, {losses} lost more than {LOSS:.0%}")
    return losses


def save(path: Path, label: str, machine: dict[str, Any], groups: dict[str, Group]) -> None:
    """Groups that were not measured this time stay as they are stored."""
    kept = json.loads(path.read_text())["groups"] if path.exists() else {}
    kept |= {name: summary(group) for name, group in groups.items()}
    versions = {key: machine.get(key) for key in ("torch", "python", "cuda", "load")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"label": label, **versions, "groups": kept}, indent=1, ensure_ascii=False) + "\n")
    print(f"\nsaved as {path.name}")


def run(arguments: argparse.Namespace, path: Path) -> None:
    command = [sys.executable, "-m", "pytest", str(HERE), "--benchmark-only", "--benchmark-quiet", f"--benchmark-json={path}"]
    command += ["--quick"] if arguments.quick else []
    command += ["-k", arguments.k] if arguments.k else []
    if code := subprocess.run(command, cwd=HERE.parent, check=False).returncode:
        print(f"compare: pytest ended with code {code}: see above; what was measured follows", file=sys.stderr)
        if not path.exists():
            raise SystemExit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="?", type=Path, help="a run of pytest --benchmark-json; else the benchmarks run now")
    parser.add_argument("--quick", action="store_true", help="run few turns and no large sizes")
    parser.add_argument("-k", metavar="EXPRESSION", help="run only these, as in pytest")
    parser.add_argument("--save", action="store_true", help="keep medians and ratios in results/<label>.json")
    parser.add_argument("--label", default=os.environ.get("SPARSENN_BENCH_LABEL"), help="machine label; else the run's own")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the stored runs")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a target is missed or speed was lost")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = arguments.json or Path(folder) / "run.json"
        if arguments.json is None:
            run(arguments, path)
        groups, machine = read(path)
    label = arguments.label or machine.get("label", "unknown")
    stored = arguments.results / f"{label}.json"

    print(f"machine {label}, load {machine.get('load')} at the start")
    for name, group in groups.items():
        print_group(name, group)
    missed = print_targets(groups)
    losses = print_changes(groups, json.loads(stored.read_text())) if stored.exists() else 0
    if not stored.exists():
        print(f"\nno stored run of this machine ({label})")
    if arguments.save:
        if machine.get("quick"):
            print("\nnot saved: a --quick run is too short to keep; run without it", file=sys.stderr)
            return 2
        save(stored, label, machine, groups)
    return int(arguments.strict and bool(missed or losses))


if __name__ == "__main__":
    raise SystemExit(main())
