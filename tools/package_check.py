"""Checks what users install: the sdist is complete, the wheel made of it is tagged rightly and runs its kernels.

Uses the torch that is installed; downloads nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SMOKE = """
import pathlib, sys, warnings
warnings.simplefilter("error")
import sparsenn
assert "torch" not in sys.modules
assert pathlib.Path(sparsenn.__file__).is_relative_to(sys.argv[1]), sparsenn.__file__
import torch
model = torch.nn.Linear(30, 20)
with sparsenn.ops.backend("compiled"):
    optimizer = sparsenn.optim.FactorizedSGD(model.parameters(), lr=0.1, depth=3, lam=1e-3, momentum=0.9)
    model(torch.ones(4, 30)).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, sparsenn.ops.hadamard_product(optimizer.factors(model.weight)))
from sparsenn import _native
print("built with torch", _native.build_info()["torch"], "runs on torch", torch.__version__)
"""


def python(*arguments: str, cwd: Path) -> None:
    subprocess.run([sys.executable, *arguments], cwd=cwd, check=True)


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {name for name in listed if not name.startswith((".", "tools/"))}


def check_sdist(folder: Path) -> Path:
    python("setup.py", "-q", "sdist", "--dist-dir", str(folder), cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
        archive.extractall(folder, filter="data")
    missing = tracked() - names
    if missing:
        sys.exit(f"the sdist lacks {sorted(missing)}; see MANIFEST.in")
    return sdist


def check_wheel(folder: Path, sdist: Path) -> Path:
    python("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(folder), str(sdist), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    _, _, python_tag, abi_tag, _ = wheel.stem.split("-")
    if (python_tag, abi_tag) != (version, version):
        sys.exit(f"the wheel is tagged {python_tag}-{abi_tag}; its NumPy module is for {version} alone")
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
    for stem in ("_cpu", "_native"):
        if not any(name.startswith(f"sparsenn/{stem}.") for name in libraries):
            sys.exit(f"the wheel lacks {stem}; it has {libraries}")
    return wheel


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = check_wheel(folder, check_sdist(folder))
        site = folder / "site"
        python("-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel), cwd=folder)
        subprocess.run([sys.executable, "-c", SMOKE, str(site)], cwd=folder, env={"PYTHONPATH": str(site)}, check=True)
    print(f"package-check: sdist complete, {wheel.name} installs and runs its kernels")


main()
