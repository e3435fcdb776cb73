# The index of commands: "make" lists them. Everything runs in VENV, which is made when it is needed and follows
# requirements-dev.txt, pyproject.toml, setup.py, csrc/ and the variables of the build (README lists them):
# what has not changed is not done again.

PYTHON ?= python3
VENV ?= .venv
MINIMAL_VENV ?= .venv-minimal
# A torch without CUDA. Where the package index serves it under another name, say so here; for PyTorch's own index:
# make test-minimal MINIMAL_TORCH="torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu"
MINIMAL_TORCH ?= torch==2.13.0
SANITIZERS ?= address,undefined
# What cuda-build compiles for.
CUDA_ARCHS ?= 8.0;9.0a
PYTEST_FLAGS ?=
BENCH_FLAGS ?=
MAX_JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
export MAX_JOBS

PY := $(VENV)/bin/python
MINIMAL_PY := $(abspath $(MINIMAL_VENV))/bin/python
# torch compiles one file after the other where it finds no ninja on PATH.
WITH_NINJA := PATH="$(abspath $(VENV))/bin:$$PATH"
BUILD_FILES := pyproject.toml setup.py setup_cuda.py $(shell find csrc -type f -not -name '*.md')
BUILD_VARIABLES := CUDA_HOME CUDA_PATH RAPKERNELS_CUDA RAPKERNELS_STRICT TORCH_CUDA_ARCH_LIST
PYTHON_FILES := $(shell find rapkernels -name '*.py')
CPP_FILES = $(shell find csrc tests/cpp tests/emulation bench/cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
PACKAGE_FILES := pyproject.toml setup.py setup_cuda.py MANIFEST.in README.md LICENSE csrc rapkernels

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test build lint format typecheck cpp-test sanitize test-emulated cuda-build ptxas instructions microbenchmarks bench wheel test-minimal picture clean distclean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: demo/cat_rap.png ## explain a photo of a cat with a real network: demo/cat_rap.png
	@cat demo/cat_rap.txt

test: build ## run the whole test suite (PYTEST_FLAGS=...)
	$(PY) -m pytest $(PYTEST_FLAGS)

build: $(VENV)/.extension ## make the environment and build the extension into it

lint: $(VENV)/.requirements ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_FILES)
	$(PY) -m mypy

format: $(VENV)/.requirements ## format Python and C++ in place
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP_FILES)

typecheck: $(VENV)/.requirements ## check types only
	$(PY) -m mypy

cpp-test: build/cpp/CMakeCache.txt ## build and run the C++ tests
	$(VENV)/bin/cmake --build build/cpp --parallel $(MAX_JOBS)
	$(VENV)/bin/ctest --test-dir build/cpp --output-on-failure

sanitize: build/sanitize/CMakeCache.txt ## the C++ tests under address and undefined-behaviour sanitizers
	$(VENV)/bin/cmake --build build/sanitize --parallel $(MAX_JOBS)
	$(VENV)/bin/ctest --test-dir build/sanitize --output-on-failure

# Which tests: those that run kernels. Python itself is not sanitized, so the libraries must be there before it.
EMULATED_TESTS := $(addprefix tests/test_,ops.py op_rules.py op_targets.py equilibrium_ops.py sharing_ops.py shares.py unaligned.py op_errors.py \
	conservation.py determinism.py linear_blocks.py fused_conv.py \
	golden_layers.py golden_networks.py emulated.py)
test-emulated: build/emulated/CMakeCache.txt ## test the CUDA kernels on the CPU, under sanitizers (PYTEST_FLAGS=...)
	$(VENV)/bin/cmake --build build/emulated --target rapkernels_emulated --parallel $(MAX_JOBS)
	LD_PRELOAD="$(foreach name,asan stdc++,$(shell $(CXX) -print-file-name=lib$(name).so))" \
	ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255 \
	UBSAN_OPTIONS=print_stacktrace=1 OMP_WAIT_POLICY=passive RAPKERNELS_TEST_BACKEND=emulated \
	$(PY) -m pytest --capture=sys $(EMULATED_TESTS) $(PYTEST_FLAGS)

cuda-build: ## build with CUDA kernels (CUDA_ARCHS=...), warnings as errors, and check them; needs nvcc, no GPU
	RAPKERNELS_CUDA=1 RAPKERNELS_STRICT=1 TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHS)" $(MAKE) build
	$(PY) tests/cuda/check_build.py "$(CUDA_ARCHS)"

ptxas: $(VENV)/.requirements ## registers, shared memory and spills of the CUDA kernels (BENCH_FLAGS=--no-spills)
	$(PY) -m bench.ptxas $(BENCH_FLAGS)

instructions: build/cpp/CMakeCache.txt ## count instructions of the CPU kernels, compare with what is committed; needs valgrind
	$(VENV)/bin/cmake --build build/cpp --target count_instructions --parallel $(MAX_JOBS)
	$(PY) -m bench.instructions build/cpp/count_instructions $(BENCH_FLAGS)

microbenchmarks: build/cpp/CMakeCache.txt ## time the CPU kernels alone; needs Google Benchmark (BENCH_FLAGS=--benchmark_filter=...)
	$(VENV)/bin/cmake --build build/cpp --target microbenchmarks --parallel $(MAX_JOBS)
	build/cpp/microbenchmarks $(BENCH_FLAGS)

bench: build ## measure cost in forward passes and renew the tables in README and docs (BENCH_FLAGS=...)
	$(PY) -m bench.models --merge bench/results/models.json $(BENCH_FLAGS)
	$(PY) -m bench.growth --merge bench/results/growth.json
	$(PY) -m bench.ops -o bench/results/ops.json
	$(PY) -m bench.report

wheel: $(VENV)/.requirements ## build a wheel into dist/
	$(call stage,build/wheel)
	$(WITH_NINJA) $(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist build/wheel

test-minimal: $(MINIMAL_VENV)/.wheel ## test the wheel with a CPU-only torch and without torchvision
	rm -rf build/test-minimal && mkdir -p build && cp -r tests/minimal build/test-minimal
	cd build/test-minimal && $(MINIMAL_PY) -m pytest -c /dev/null --rootdir . -p no:cacheprovider check_minimal.py

picture: demo/cat_rap.png ## renew the README's picture from the demo
	$(PY) -c "from PIL import Image; p = Image.open('demo/cat_rap.png').convert('RGB'); p.thumbnail((720, 720), Image.Resampling.LANCZOS); p.save('docs/cat_rap.png', optimize=True)"

clean: ## remove what was built, keep the environments
	rm -rf build dist demo rapkernels/_C*.so *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.extension $(MINIMAL_VENV)/.wheel

distclean: clean ## remove the environments too
	rm -rf $(VENV) $(MINIMAL_VENV)

# A clean copy of what goes into a wheel, so that no object file of another torch can get in.
define stage
	rm -rf $(1) && mkdir -p $(1)
	tar --exclude='*.so' --exclude=__pycache__ -cf - $(PACKAGE_FILES) | tar -xf - -C $(1)
endef

define make_venv
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ": give make PYTHON=...")'
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef

$(VENV)/.requirements: requirements-dev.txt
	$(call make_venv,$(VENV))
	@echo "installing requirements-dev.txt into $(VENV): about 5 GB and a few minutes the first time"
	$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@

# Renewed when a variable of the build changes.
$(VENV)/.variables: $(VENV)/.requirements FORCE
	@echo '$(foreach name,$(BUILD_VARIABLES),$(name)=$($(name)))' > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

FORCE:

$(VENV)/.extension: $(VENV)/.requirements $(VENV)/.variables $(BUILD_FILES)
	@echo "building the extension: about a minute, with CUDA kernels two or three"
	$(WITH_NINJA) $(PY) -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

$(MINIMAL_VENV)/.requirements: requirements-dev.txt
	$(call make_venv,$(MINIMAL_VENV))
	grep -E '^(numpy|setuptools|wheel|pybind11|ninja|pytest)==' $< > $(MINIMAL_VENV)/requirements.txt
	$(MINIMAL_PY) -m pip install --quiet $(MINIMAL_TORCH) -r $(MINIMAL_VENV)/requirements.txt
	@touch $@

$(MINIMAL_VENV)/.wheel: $(MINIMAL_VENV)/.requirements $(BUILD_FILES) $(PYTHON_FILES)
	$(call stage,build/minimal)
	rm -rf build/minimal-wheel
	$(WITH_NINJA) $(MINIMAL_PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/minimal-wheel build/minimal
	$(MINIMAL_PY) -m pip install --quiet --no-deps --force-reinstall build/minimal-wheel/*.whl
	@touch $@

build/cpp/CMakeCache.txt: $(VENV)/.requirements CMakeLists.txt
	$(VENV)/bin/cmake -S . -B build/cpp -G Ninja -DPython_EXECUTABLE=$(abspath $(PY))

build/sanitize/CMakeCache.txt: $(VENV)/.requirements CMakeLists.txt
	$(VENV)/bin/cmake -S . -B build/sanitize -G Ninja -DPython_EXECUTABLE=$(abspath $(PY)) -DRAPKERNELS_SANITIZE=$(SANITIZERS)

# Not optimised as much as it could be: it takes longer to build than to run.
build/emulated/CMakeCache.txt: $(VENV)/.requirements CMakeLists.txt
	$(VENV)/bin/cmake -S . -B build/emulated -G Ninja -DPython_EXECUTABLE=$(abspath $(PY)) \
		-DRAPKERNELS_SANITIZE=$(SANITIZERS) -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1"

demo/cat.png: $(VENV)/.requirements
	@mkdir -p demo
	$(PY) -c "import PIL.Image, skimage.data; PIL.Image.fromarray(skimage.data.chelsea()).save('$@')"

demo/cat_rap.png: demo/cat.png $(VENV)/.extension $(PYTHON_FILES)
	$(VENV)/bin/rapkernels explain demo/cat.png -o $@ > demo/cat_rap.txt
