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

CXX_FILES = $(shell find csrc tests/cuda_emulator -name '*.cpp' -o -name '*.h' -o -name '*.cu*')

# Where it is not what torch needs, so it is installed beside it: 0.6 and 1 GB.
TRITONS := 3.6.0 3.9.0

SANITIZED := build/sanitize
EMULATED := build/emulator
CONFIGURE = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
            -DPython_EXECUTABLE=$(abspath $(BIN))/python \
            -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
ON_EMULATOR = FASTCTC_EMULATE_CUDA=1 FASTCTC_LIBRARY=$$(echo $(abspath .)/$(EMULATED)/_C*.so) \
              $(BIN)/python -m pytest -p no:cacheprovider -q
EMULATED_TESTS := $(addprefix tests/test_loss,.py _autograd.py _contract.py _device.py \
                    _accuracy.py _limits.py _fuzz.py) tests/test_align_cuda.py
# Streams stay on the CPU, whose last bits are others; CUDA refuses large bonuses in other words; and the emulator runs
# one launch at a time.
ON_CPU_ALONE := streams or sums_cannot_hold or many_threads
EMULATED_SEARCH := $(addprefix tests/test_,beam_search_cuda.py beam_search.py decoder_fusion.py)
# These take too long to be run in every order of the threads.
EMULATED_LONG := larger_than_caches or checkpoints or 5000_frames or extreme_scores or \
                 230x2 or 900x1 or 700x1 or 1300x1
SANITIZED_TESTS := tests/test_loss_device.py tests/test_loss_fuzz.py::test_random_batches \
                   $(addprefix tests/test_beam_search_cuda.py::test_,equals_the_cpu half_precision \
                     models_lexicons_and_hotwords)
ASAN_LIBRARIES = $(shell for name in libasan.so libubsan.so libstdc++.so.6; do \
                   $(or $(CXX),c++) -print-file-name=$$name; done)

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint format wheel sdist sanitize test-emulator planted-bugs \
        cuda-gates triton-gates gpu-check constraints clean distclean

help:
	@echo 'make demo         set up, then train the small speech model on the built-in corpus'
	@echo 'make test         set up, then run all tests (PYTEST_ARGS="-k name" for some)'
	@echo 'make bench        set up, then measure against torch and others (BENCH_ARGS="--suite norm", "--quick")'
	@echo 'make lint         ruff, mypy and clang-format, changing nothing'
	@echo 'make format       let ruff and clang-format change the files'
	@echo 'make sanitize     build the CPU kernels with ASan and UBSan and run the fuzz tests on them'
	@echo 'make test-emulator  run the CUDA kernels on the host, through the tests of loss and search'
	@echo 'make planted-bugs   put bugs into copies of the CUDA kernels and see each caught'
	@echo 'make triton-gates compile the Triton kernels for all GPUs, and run them in its interpreter'
	@echo 'make cuda-gates   compile the CUDA kernels for all GPUs and hold them against their table'
	@echo 'make gpu-check OUT=dir  all that needs a GPU: build, tests, sanitizers, benchmarks; see below'
	@echo 'make wheel        build a wheel to hand out into dist/ and check it'
	@echo 'make sdist        build the source archive into dist/'
	@echo 'make constraints  choose new exact versions (needs uv)'
	@echo 'make clean        remove what was built; make distclean also removes $(VENV)'
	@echo ''
	@echo 'PYTHON=python3.12 names the Python to start from, VENV=dir another environment,'
	@echo 'FASTCTC_CUDA=auto|0|1 whether the CUDA library is built (auto: where nvcc is found), for make wheel;'
	@echo 'in $(VENV) it is built where there is a GPU too.'
	@echo 'gpu-check installs nothing: $$(PYTHON) has to have torch, pytest, hypothesis and numba.'

$(BIN)/python:
	@$(PYTHON) packaging/check_tools.py
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras. It is made anew when the native sources or the versions change;
# Python files need no second install, because the install is editable.
# Where no GPU could run them, the CUDA kernels are left out: compiling them for all GPUs takes
# minutes. `make wheel` has them wherever nvcc is.
$(VENV)/.installed-%: export FASTCTC_CUDA ?= $(if $(wildcard /dev/nvidia0),auto,0)
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
	  tests/test_align_fuzz.py tests/test_beam_search.py tests/test_decoder_fusion.py $(PYTEST_ARGS)

# The CUDA kernels on the host: the emulator's own tests, the tests of the loss and of forced alignment
# with the threads in five orders, and some of them under sanitizers.
test-emulator: $(VENV)/.installed-test
	$(BIN)/python -m pytest -p no:cacheprovider -q tests/cuda_emulator/check_emulator.py
	$(CONFIGURE) -B $(EMULATED) -DCMAKE_BUILD_TYPE=Release -DFASTCTC_CUDA=emulate
	$(BIN)/cmake --build $(EMULATED)
	FASTCTC_SIMT_ORDER=0 $(ON_EMULATOR) $(EMULATED_TESTS) $(PYTEST_ARGS)
	FASTCTC_SIMT_ORDER=0 $(ON_EMULATOR) $(EMULATED_SEARCH) -k 'not ($(ON_CPU_ALONE))' $(PYTEST_ARGS)
	FASTCTC_SIMT_ORDER=3 $(ON_EMULATOR) $(firstword $(EMULATED_SEARCH)) $(PYTEST_ARGS)
	for order in 1 2 3 4; do \
	  FASTCTC_SIMT_ORDER=$$order $(ON_EMULATOR) $(EMULATED_TESTS) -k 'not ($(EMULATED_LONG))' \
	    $(PYTEST_ARGS) || exit; \
	done
	$(CONFIGURE) -B $(EMULATED)-sanitized -DCMAKE_BUILD_TYPE=Debug -DFASTCTC_CUDA=emulate \
	  -DFASTCTC_SANITIZE=address,undefined
	$(BIN)/cmake --build $(EMULATED)-sanitized
	LD_PRELOAD="$(ASAN_LIBRARIES)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  FASTCTC_SIMT_ORDER=2 $(subst $(EMULATED)/,$(EMULATED)-sanitized/,$(ON_EMULATOR)) -s \
	  $(SANITIZED_TESTS) $(PYTEST_ARGS)

# Mistakes put into copies of the CUDA kernels one at a time, each of which has to be noticed.
planted-bugs: | $(BIN)/python
	$(BIN)/python tests/cuda_emulator/planted_bugs.py

cuda-gates: | $(BIN)/python
	$(BIN)/python packaging/cuda_resources.py

build/triton/%: | $(BIN)/python
	$(BIN)/python -m pip install -q --no-deps --target $@ triton==$*

triton-gates: $(VENV)/.installed-test $(TRITONS:%=build/triton/%)
	for version in $(TRITONS); do \
	  export PYTHONPATH=build/triton/$$version && \
	  $(BIN)/python packaging/triton_resources.py && \
	  TRITON_INTERPRET=1 $(BIN)/python -m pytest -p no:cacheprovider tests/test_norm_triton.py \
	    tests/test_norm_triton_public.py tests/test_triton_resources.py \
	    $(PYTEST_ARGS) || exit 1; \
	done

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
