# `make help` lists the commands. Everything is installed into $(VENV), from constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# PYTHON is only asked for once; afterwards the virtual environment's own Python is used.
export PIP_DISABLE_PIP_VERSION_CHECK = 1

NATIVE := CMakeLists.txt pyproject.toml fastctc/_version.py constraints.txt \
          $(shell find csrc cmake -type f)

BUILD_TOOLS := scikit-build-core pybind11 cmake ninja
PIP := $(BIN)/python -m pip install -q -c constraints.txt

CXX_FILES = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

SANITIZED := build/sanitize
ASAN_LIBRARIES = $(shell for name in libasan.so libubsan.so libstdc++.so.6; do \
                   $(or $(CXX),c++) -print-file-name=$$name; done)

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint format wheel sdist sanitize cuda-gates gpu-check constraints clean \
        distclean

help:
	@echo 'make demo         set up, then train the small speech model on the built-in corpus'
	@echo 'make test         set up, then run all tests (PYTEST_ARGS="-k name" for some)'
	@echo 'make bench        set up, then measure against torch (BENCH_ARGS="--quick" for a short run)'
	@echo 'make lint         ruff, mypy and clang-format, changing nothing'
	@echo 'make format       let ruff and clang-format change the files'
	@echo 'make sanitize     build the CPU kernels with ASan and UBSan and run the fuzz tests on them'
	@echo 'make cuda-gates   compile the CUDA kernels for all GPUs and hold them against their table'
	@echo 'make gpu-check OUT=dir  all that needs a GPU: build, tests, sanitizers, benchmarks; see below'
	@echo 'make wheel        build a wheel to hand out into dist/ and check it'
	@echo 'make sdist        build the source archive into dist/'
	@echo 'make constraints  choose new exact versions (needs uv)'
	@echo 'make clean        remove what was built; make distclean also removes $(VENV)'
	@echo ''
	@echo 'PYTHON=python3.12 names the Python to start from, VENV=dir another environment,'
	@echo 'FASTCTC_CUDA=auto|0|1 whether the CUDA library is built (auto: where nvcc is found).'
	@echo 'gpu-check installs nothing: $$(PYTHON) has to have torch, pytest, hypothesis and numba.'

$(BIN)/python:
	@$(PYTHON) packaging/check_tools.py
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras. It is made anew when the native sources or the versions change;
# Python files need no second install, because the install is editable.
$(VENV)/.installed-%: $(NATIVE) | $(BIN)/python
	@$(BIN)/python packaging/check_tools.py
	@echo 'Installing fastctc[$*] into $(VENV)'
	$(PIP) $(BUILD_TOOLS)
	$(PIP) --no-build-isolation -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-train
	$(BIN)/fastctc demo $(DEMO_ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

wheel: $(VENV)/.installed-test
	$(BIN)/python packaging/build_wheel.py --out dist
	$(BIN)/python packaging/check_wheel.py dist/*.whl

sdist: $(VENV)/.installed-test
	$(BIN)/python -m build --sdist --no-isolation -o dist

# The runtime libraries go first because Python itself is not built with them. CPython and torch
# keep memory until the end of the process, so leaks are not looked for. Output is not captured: a
# finding ends the process, and what pytest had captured would go with it.
sanitize: $(VENV)/.installed-test
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DCMAKE_BUILD_TYPE=Debug \
	  -DFASTCTC_SANITIZE=address,undefined -DFASTCTC_CUDA=0 \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build $(SANITIZED)
	LD_PRELOAD="$(ASAN_LIBRARIES)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  FASTCTC_LIBRARY=$$(echo $(abspath $(SANITIZED))/_C*.so) \
	  $(BIN)/python -m pytest -p no:cacheprovider -v -s tests/test_loss_fuzz.py \
	  tests/test_align_fuzz.py tests/test_beam_search.py $(PYTEST_ARGS)

cuda-gates: | $(BIN)/python
	$(BIN)/python packaging/cuda_resources.py

gpu-check:
	$(PYTHON) packaging/gpu_check.py --out $(or $(OUT),build/gpu-check-results)

constraints:
	$(PYTHON) packaging/lock.py

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.installed-*
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
