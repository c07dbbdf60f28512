"""Compiles the CUDA sources for every architecture and fails on a register spill or a local-memory frame: `make cuda-check`.

It needs nvcc, and no GPU. Kernels are also read as PTX: none may touch local memory, and the vector stores must be there.
The binding is compiled against the installed torch, and the objects are checked to hold every launcher that it calls.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# setup.py compiles with these too; `check_flags` holds the two together.
NVCC_FLAGS = ["-std=c++20", "-O3", "--fmad=false"]
MACROS = {"TORCH_TARGET_VERSION": "0x020a000000000000", "USE_CUDA": None}

# name -> nvcc's -gencode. The newest also leaves its PTX, for cards to come.
ARCHITECTURES = {
    "sm_80": "arch=compute_80,code=sm_80",
    "sm_90": "arch=compute_90,code=sm_90",
    "sm_100": "arch=compute_100,code=[sm_100,compute_100]",
}

PROPERTIES = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\w+)'\n"
    r".*?Function properties for \S+\n"
    r"\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)"
)


def find_tool(name: str) -> str | None:
    """Where a tool of CUDA's is: on the path, else in CUDA_HOME, else where the toolkit is installed by default."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which(name) or next((n for h in homes if h and (n := shutil.which(name, path=f"{h}/bin"))), None)


def run(command: list[str]) -> str:
    """Standard error of a command; the check ends where it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if result.returncode:
        raise SystemExit(f"cuda-check: failed: {' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stderr


def compile_kernels(nvcc: str, source: Path, arch: str, out: Path) -> str:
    """What ptxas reports on one source for one architecture; the object is left, and the PTX."""
    scratch = out / f"{source.stem}-{arch}"
    scratch.mkdir()
    keep = ["-keep", "-keep-dir", str(scratch)]
    command = [nvcc, *NVCC_FLAGS, "-Xptxas", "-v", "-Icsrc", "-gencode", ARCHITECTURES[arch], *keep]
    # Host code is the same for every architecture: once is enough.
    stage, suffix = ("-c", "o") if arch == "sm_90" else ("-fatbin", "fatbin")
    return run([*command, stage, "-o", str(scratch / f"{source.stem}.{suffix}"), str(source)])


def compile_binding(nvcc: str, out: Path) -> str | None:
    """Compiles the binding against the installed torch, where there is one."""
    try:
        from torch.utils.cpp_extension import include_paths
    except ImportError:
        return None
    toolkit = Path(nvcc).resolve().parents[1]
    includes = ["csrc", *include_paths(), str(toolkit / "include"), *map(str, toolkit.glob("targets/*/include"))]
    macros = [f"-D{name}" + (f"={value}" if value else "") for name, value in MACROS.items()]
    obj = out / "registration.o"
    compiler = os.environ.get("CXX", "g++")
    flags = ["-std=c++20", "-O1", "-fPIC", "-Wall", *macros, *(f"-I{path}" for path in includes)]
    run([compiler, *flags, "-c", "csrc/registration/cuda.cpp", "-o", str(obj)])
    return str(obj)


def check_flags() -> list[str]:
    """What this check compiles with and setup.py does not."""
    text = (ROOT / "setup.py").read_text()
    wanted = [*NVCC_FLAGS, *(value or name for name, value in MACROS.items())]
    return [f"setup.py does not compile with {flag}; this check does" for flag in wanted if flag not in text]


def check_ptx(path: Path) -> list[str]:
    """Local memory, or operands that are not stored by vectors, in the PTX of one source."""
    text = path.read_text()
    problems = []
    if re.search(r"^\s*\.local|\b(ld|st)\.local", text, re.MULTILINE):
        problems.append(f"{path.stem}: the PTX uses local memory")
    elementwise = "cuda::write(" in (ROOT / f"csrc/cuda/{path.stem.split('.')[0]}.cu").read_text()
    if elementwise and not re.search(r"\bst\.global[\w.]*\.v4\.", text):
        problems.append(f"{path.stem}: the PTX holds no 16-byte store")
    return problems


def check_symbols(objects: list[str]) -> list[str]:
    """Launchers that the binding calls and no CUDA source defines."""
    listed = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True).stdout
    symbols = {match.groups() for match in re.finditer(r"^[0-9a-f ]* ([A-Za-z]) (.*sparsenn::.*)$", listed, re.MULTILINE)}
    defined = {name for kind, name in symbols if kind not in "Uu"}
    missing = sorted({name for kind, name in symbols if kind == "U"} - defined)
    return [f"the binding calls {name}, which no CUDA source defines" for name in missing]


def short_names(names: list[str]) -> dict[str, str]:
    """Mangled kernel names, readable."""
    demangle = shutil.which("c++filt") or shutil.which("cu++filt")
    if not demangle:
        return {name: name for name in names}
    text = subprocess.run([demangle], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    readable = {}
    for name, full in zip(names, text.splitlines(), strict=True):
        full = full.removeprefix("void ").partition(">(")[0].strip()
        walks = full.startswith("sparsenn::cuda::kernel<")
        full = full.removeprefix("sparsenn::cuda::kernel<").removeprefix("sparsenn::cuda::phases<")
        full = full.removeprefix("sparsenn::cuda::team<").strip()
        full = re.sub(r"sparsenn::(\(anonymous namespace\)::|cuda::)?|\(anonymous namespace\)::", "", full)
        walk, table, operation = full.split(", ", 2) if walks else ("", "Table<0>", full)
        readable[name] = f"{operation} {walk.lower()}{', large table' if int(table.strip('Table<>')) > 512 else ''}"
    return readable


def main() -> int:
    """Compile, print the table, and return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    most = min(2, os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=most, help="compilations at a time (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="print every kernel, not the float ones alone")
    arguments = parser.parse_args()

    nvcc = find_tool("nvcc")
    if nvcc is None:
        print("cuda-check: no nvcc: skipped")
        return 0
    start = time.perf_counter()
    problems = check_flags()
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"), key=lambda path: -path.stat().st_size)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        out = Path(folder)
        pairs = itertools.product(sources, ARCHITECTURES)
        jobs = [(pair, pool.submit(compile_kernels, nvcc, *pair, out)) for pair in pairs]
        binding = pool.submit(compile_binding, nvcc, out)
        reports = [(source.stem, job.result()) for (source, _), job in jobs]
        for source in sources:
            (ptx,) = (out / f"{source.stem}-sm_100").glob("*.ptx")
            problems += check_ptx(ptx)
        if bound := binding.result():
            objects = (str(out / f"{source.stem}-sm_90" / f"{source.stem}.o") for source in sources)
            problems += check_symbols([bound, *objects])
        else:
            print("cuda-check: no torch: the binding was not compiled")

    found = [match.groupdict() | {"stem": stem} for stem, report in reports for match in PROPERTIES.finditer(report)]
    names = short_names(sorted({kernel["name"] for kernel in found}))
    table: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for kernel in found:
        table[f"{kernel['stem']}: {names[kernel['name']]}"][kernel["arch"]] = kernel  # sources have kernels of one name
    print(f"{'registers of':64}" + "".join(f"{arch:>8}" for arch in ARCHITECTURES) + "   spills  stack  shared (bytes, worst)")
    for name, by_arch in sorted(table.items()):
        worst = [max(int(kernel[key]) for kernel in by_arch.values()) for key in ("stores", "loads", "stack")]
        shared = max(int(m[1]) if (m := re.search(r"(\d+) bytes smem", k["rest"])) else 0 for k in by_arch.values())
        bad = any(worst)
        if bad or arguments.all or "<float," in name:
            registers = "".join(f"{by_arch[arch]['registers'] if arch in by_arch else '-':>8}" for arch in ARCHITECTURES)
            print(f"{name:64}{registers}{max(worst[:2]):9}{worst[2]:7}{shared:8}{'   <--' if bad else ''}")
        if bad:
            problems.append(f"{name}: {worst[0]} bytes of spill stores, {worst[1]} of spill loads, {worst[2]} of stack")
        problems += [f"{name}: no report for {arch}" for arch in ARCHITECTURES if arch not in by_arch]
    if not table:
        problems.append("nvcc reported on no kernel")
    hidden, seconds = "" if arguments.all else " (all of them: --all)", time.perf_counter() - start
    print(f"cuda-check: {len(table)} kernels{hidden}, {len(ARCHITECTURES)} architectures and PTX, {seconds:.0f} s")
    for problem in problems:
        print(f"cuda-check: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
