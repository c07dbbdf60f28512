"""Builds the kernels: a CPU library, a CUDA library where it can be built, and a small NumPy module that needs no torch."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent.resolve()

try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError:
    sys.exit(
        "sparsenn: building needs PyTorch in the environment that builds. With torch already installed use\n"
        "    pip install --no-build-isolation .\n"
        "which downloads nothing, or let `pip install .` fetch the torch that pyproject.toml pins for the build."
    )

# Built against a newer torch, the libraries load on every torch from this one on.
STABLE_ABI_TARGET = "0x020a000000000000"  # 2.10


def say(message: str) -> None:
    print(f"sparsenn build: {message}", file=sys.stderr, flush=True)


def cuda_decision() -> tuple[bool, str]:
    """Whether to build the CUDA library, and why."""
    forced = os.environ.get("FORCE_CUDA", "")
    if forced not in ("", "0", "1"):
        sys.exit(f"sparsenn: FORCE_CUDA={forced!r}; it takes 0 (never), 1 (or fail), or nothing (where it can be built)")
    if forced == "0":
        return False, "FORCE_CUDA=0"
    nvcc = shutil.which("nvcc") or (cpp_extension.CUDA_HOME and shutil.which("nvcc", path=f"{cpp_extension.CUDA_HOME}/bin"))
    found = f"torch {torch.__version__} has CUDA {torch.version.cuda}, nvcc is {nvcc or 'not found'}"
    if torch.version.cuda and nvcc:
        return True, found
    if forced == "1":
        sys.exit(f"sparsenn: FORCE_CUDA=1, but {found}. Install a CUDA build of torch and the CUDA toolkit it was built with.")
    return False, found


def architectures() -> str:
    """TORCH_CUDA_ARCH_LIST, else the cards that are here, else those torch was built for; PTX of the newest comes last."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return os.environ["TORCH_CUDA_ARCH_LIST"]
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    if not found:
        codes = [name.removeprefix("sm_").rstrip("af") for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
        found = {(int(code[:-1]), int(code[-1])) for code in codes}
    names = [f"{major}.{minor}" for major, minor in sorted(found or {(8, 0), (9, 0)})]
    return ";".join([*names[:-1], names[-1] + "+PTX"])


def stamp(cuda: bool, reason: str) -> dict[str, str]:
    """What `sparsenn info` says of the build."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    git = shutil.which("git")
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() if git else ""
    return {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda) if cuda else "not built",
        "cuda_reason": reason,
        "commit": commit or "unknown",
        "schemas": runpy.run_path(str(ROOT / "sparsenn" / "ops" / "schema.py"))["FINGERPRINT"],
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def host_flags() -> list[str]:
    flags = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno"]
    flags += ["-fvisibility=hidden", "-g0", f"-ffile-prefix-map={ROOT}/="]
    if os.uname().machine == "x86_64":
        flags.append("-mprefer-vector-width=512")
    return flags


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}"))


def extensions(cuda: bool) -> list:
    from pybind11.setup_helpers import Pybind11Extension

    headers = sources("*.h", "*/*.h", "*/*.cuh")
    stable = [("TORCH_TARGET_VERSION", STABLE_ABI_TARGET)]
    # py_limited_api leaves libtorch_python out: these libraries are no Python modules, they only register operators.
    modules = [
        cpp_extension.CppExtension(
            "sparsenn._cpu",
            sources("cpu/*.cpp", "registration/cpu.cpp"),
            include_dirs=[str(ROOT / "csrc")],
            define_macros=stable,
            extra_compile_args=host_flags(),
            depends=headers,
            py_limited_api=True,
        )
    ]
    if cuda:
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
        modules.append(
            cpp_extension.CUDAExtension(
                "sparsenn._cuda",
                sources("cuda/*.cu", "registration/cuda.cpp"),
                include_dirs=[str(ROOT / "csrc")],
                define_macros=[*stable, ("USE_CUDA", None)],
                extra_compile_args={"cxx": host_flags(), "nvcc": ["-std=c++20", "-O3", "--fmad=false"]},
                depends=headers,
                py_limited_api=True,
            )
        )
    modules.append(
        Pybind11Extension(
            "sparsenn._native",
            sources("registration/native.cpp", "registration/runtime.cpp", "runtime/*.cpp"),
            include_dirs=[str(ROOT / "csrc")],
            extra_compile_args=host_flags(),
            depends=headers,
            cxx_std=20,
        )
    )
    return modules


class BuildKernels(cpp_extension.BuildExtension):
    """Compiles the CPU kernels once: the NumPy module links the objects that the CPU library was made of.

    The stamp is a header, since a macro on the command line would compile every file of the module again each time.
    """

    stamp: dict[str, str]

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "sparsenn._native":
            ext.extra_objects = self.compiler.object_filenames(sources("cpu/*.cpp"), output_dir=self.build_temp)
            folder = Path(self.build_temp).resolve()
            (folder / "registration").mkdir(parents=True, exist_ok=True)
            lines = [f'#define SPARSENN_BUILD_{key.upper()} "{value}"\n' for key, value in self.stamp.items()]
            (folder / "registration/build_info.h").write_text("".join(lines), encoding="utf-8")
            ext.include_dirs.append(str(folder))
        super().build_extension(ext)


def main() -> None:
    if os.environ.get("SPARSENN_KERNELS") == "0":
        say("no kernels (SPARSENN_KERNELS=0); the package will run on its PyTorch reference")
        setup()
        return
    cuda, reason = cuda_decision()
    say(f"{'CPU and CUDA' if cuda else 'CPU only'} ({reason})")
    if cuda:
        say(f"architectures {architectures()}")
    BuildKernels.stamp = stamp(cuda, reason)
    setup(
        ext_modules=extensions(cuda),
        cmdclass={"build_ext": BuildKernels},
    )


main()
