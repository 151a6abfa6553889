# Everything runs from .venv, which `make` creates and keeps in step with pyproject.toml and constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEER_ENVS := .venv-peers
PEERS := vllm transformers llama
PIP_FLAGS := -qq --disable-pip-version-check --no-input

export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install venv demo test soak fuzz peers sanitize emulate lint format clean

help:  ## Shows this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## +/\t/' | expand -t 12

install venv: $(STAMP)  ## Creates .venv and installs the project with its tools

# The stamp is as new as what was installed: a change of either file installs again, anything else does not.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"$(PYTHON) is Python {v[0]}.{v[1]}; this project needs 3.11, 3.12 or 3.13. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(BIN)/pip || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Runs a real batch on this machine, from upload to bill
	@exec $(BIN)/python -m examples.invoices.demo $(DEMO_FLAGS)

# Two at a time, each file in one process: half of the tests wait for processes that they have killed.
TEST_PROCESSES ?= 2
test: $(STAMP)  ## Runs every test
	@exec $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_FLAGS)

SOAK_SECONDS ?= 600
soak: $(STAMP)  ## Breaks a running stack at random for SOAK_SECONDS, by a seed that it prints
	@PYTHONPATH=tests exec $(BIN)/python tests/chaos/soak.py --seconds $(SOAK_SECONDS) $(SOAK_FLAGS)

FUZZ_SECONDS ?= 600
fuzz: $(STAMP)  ## Feeds bad input to whatever reads input for FUZZ_SECONDS, by a seed that it prints; FUZZ_SEED repeats it
	@FUZZ_SECONDS=$(FUZZ_SECONDS) exec $(BIN)/python -m pytest -q tests/fuzz $(PYTEST_FLAGS)

# Each in an environment of its own, since they want different versions of the same libraries.
peers: $(PEERS:%=$(PEER_ENVS)/%/.installed)  ## Installs the engines that benchmarks/engine.py measures against
	@ls /usr/lib/*/libtcmalloc_minimal.so.4 >/dev/null 2>&1 || echo "For the peers at their best, install tcmalloc (Debian: libtcmalloc-minimal4)."

$(PEER_ENVS)/%/.installed: benchmarks/peer_runners/requirements-%.txt
	@test -x $(@D)/bin/pip || { rm -rf $(@D) && $(PYTHON) -m venv $(@D); }
	@echo "Installing into $(@D), which takes some minutes."
	@CMAKE_ARGS="-DLLAVA_BUILD=OFF" $(@D)/bin/python -m pip install $(PIP_FLAGS) -r $<
	@$(@D)/bin/python -m pip uninstall $(PIP_FLAGS) -y torchvision torchaudio torchcodec 2>/dev/null
	@touch $@

SANITIZED := build/sanitize
sanitize: $(STAMP)  ## Runs the tests of the CPU kernels with address and undefined-behaviour sanitizers
	cmake -S models/kernels/cpu/src -B $(SANITIZED) -DSANITIZE=ON
	cmake --build $(SANITIZED) --parallel
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 RZ_CPU_KERNELS=$(CURDIR)/$(SANITIZED)/_kernels.so \
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/unit/kernels $(PYTEST_FLAGS)

EMULATED := build/emulate
emulate: $(STAMP)  ## Runs the tests of the CPU kernels for AVX512 and AMX on a machine without, by plain functions
	cmake -S models/kernels/cpu/src -B $(EMULATED) -DCMAKE_BUILD_TYPE=Release \
	    -DEMULATED_INSTRUCTIONS=$(CURDIR)/tests/unit/kernels/emulated_instructions.hpp
	cmake --build $(EMULATED) --parallel
	@RZ_CPU_KERNELS=$(CURDIR)/$(EMULATED)/_kernels.so $(BIN)/python -c \
	    'from models.kernels.cpu.library import choose_isa; assert choose_isa("amx"), "that takes an x86 with AVX2"'
	RZ_CPU_KERNELS=$(CURDIR)/$(EMULATED)/_kernels.so \
	$(BIN)/python -m pytest -q -p no:cacheprovider -n $(TEST_PROCESSES) tests/unit/kernels $(PYTEST_FLAGS)

lint: $(STAMP)  ## Checks style, types and the borders between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/no_floats.py pipeline/billing

format: $(STAMP)  ## Formats the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Removes what the other targets made
	rm -rf $(VENV) demo-output build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
