# Each target is complete on a machine with Python (3.10 or later), a C++ compiler and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A build of torch for CPUs alone is enough for all of these; to use another one, install it into $(VENV) first.
TORCH ?= torch==2.13.0
DEMO ?=

.PHONY: demo test python-test lint cuda-check core-test package-check bench clean

demo: $(VENV)/.demo
	$(BIN)/sparsenn train $(DEMO)

# Its two parts can run side by side: make -j2 test
test: python-test core-test

python-test: $(VENV)/.test
	$(BIN)/python -m pytest

# The C++ tests of the torch-free core, plain and under the address and undefined-behaviour sanitizers.
core-test: $(VENV)/.test
	$(BIN)/cmake -S . -B build/core -DCMAKE_BUILD_TYPE=Release
	$(BIN)/cmake --build build/core --parallel 2
	$(BIN)/ctest --test-dir build/core --output-on-failure
	$(BIN)/cmake -S . -B build/sanitized -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSPARSENN_SANITIZE=ON
	$(BIN)/cmake --build build/sanitized --parallel 2
	$(BIN)/ctest --test-dir build/sanitized --output-on-failure

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/csrc/*')

cuda-check: $(VENV)/.demo
	$(BIN)/python tools/cuda_check.py
	$(BIN)/python tools/gpu_exercise.py --device cpu --short

# The sdist holds all that the build needs, and the wheel that is made of it works in an environment of its own.
package-check: $(VENV)/.test
	$(BIN)/python tools/package_check.py

bench: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks --benchmark-only

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel "pybind11>=2.13" ninja numpy
	touch $@

SOURCES := $(shell find csrc -type f 2>/dev/null) setup.py pyproject.toml

$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --no-build-isolation -e ".[experiments]"
	touch $@

# More than the demo needs, and not after it: the kernels are compiled once.
$(VENV)/.test: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --no-build-isolation -e ".[experiments,test]" cmake
	touch $(VENV)/.demo $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet ruff mypy clang-format
	touch $@

clean:
	rm -rf build dist $(VENV) sparsenn/*.so *.egg-info
