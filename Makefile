# make demo   set up, then train and evaluate a selector on the reference VLM
# make test   set up, then lint, types and tests
# make help   everything else
#
# Variables: PYTHON (interpreter, 3.11 or newer), TORCH (pip requirement), PIP_TORCH (pip options for
# TORCH, such as --index-url for a CPU or CUDA build), TEST (arguments of pytest), JOBS (test files
# that run at the same time), PORT (TCP port of the dashboard).

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_TORCH ?=
TEST ?= tests
JOBS ?= 2
PORT ?= 5000
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
NATIVE := $(wildcard csrc/* csrc/*/*)
BENCH := .venv-bench
BENCH_PIP := $(BENCH)/bin/python -m pip --disable-pip-version-check install --quiet
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo report dashboard test lint format cluster-test sanitize test-bench clean

help:
	@echo "make demo          train and evaluate a selector on the reference VLM, into runs/demo"
	@echo "make report        compare the demo's selector with all baselines, into runs/report"
	@echo "make dashboard     serve the MLflow pages on http://127.0.0.1:$(PORT)"
	@echo "make test          run lint, type checks and all tests"
	@echo "make cluster-test  run the tests on a real Slurm (installs one on this host)"
	@echo "make test-bench    run the tests that need lmms-eval, in a separate environment"
	@echo "make sanitize      run the CPU kernels under AddressSanitizer and UBSan"
	@echo "make setup         make only the virtual environment and the extension"
	@echo "make clean         remove the virtual environment and build outputs; runs/ is kept"

setup: $(VENV)/.package

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: PYTHON=$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || \
	  { echo "error: no C++ compiler ($${CXX:-c++}); install one, for example: apt-get install g++"; exit 1; }
	@echo "[setup 1/3] virtual environment in $(VENV), then $(TORCH)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "setuptools>=77" wheel
	@$(PIP) $(PIP_TORCH) "$(TORCH)"
	@touch $@

$(VENV)/.requirements: $(VENV)/.torch requirements.lock
	@echo "[setup 2/3] packages of requirements.lock"
	@$(PIP) ninja pybind11
	@DS_BUILD_OPS=0 $(PIP) --no-build-isolation -r requirements.lock
	@touch $@

$(VENV)/.package: $(VENV)/.requirements setup.py pyproject.toml $(NATIVE)
	@echo "[setup 3/3] autoselect and its native extension"
	@$(PIP) --no-build-isolation --no-deps --editable .
	@$(BIN)/autoselect info
	@touch $@

demo: setup
	@$(BIN)/autoselect demo

report: setup
	@$(BIN)/autoselect report

dashboard: setup
	@$(BIN)/autoselect dashboard --port $(PORT)

test: setup lint
	@echo "[test] pytest $(TEST)"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TEST)

lint: setup
	@echo "[lint] ruff, mypy, clang-format, shell syntax"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(filter-out %.sh,$(wildcard csrc/*.* csrc/*/*.*))
	@for script in slurm/*.sh; do bash -n $$script; done

format: setup
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/clang-format -i $(filter-out %.sh,$(wildcard csrc/*.* csrc/*/*.*))

cluster-test: setup
	@bash tests/cluster/run.sh

test-bench: $(BENCH)/.package
	@$(BENCH)/bin/python -m pytest tests/lmms

$(BENCH)/.torch:
	@$(PYTHON) -m venv $(BENCH)
	@$(BENCH_PIP) "setuptools>=77" wheel ninja pybind11
	@$(BENCH_PIP) $(PIP_TORCH) "$(TORCH)"
	@touch $@

# lmms-eval needs an older protobuf. A torchvision that does not fit this torch is taken out again.
$(BENCH)/.package: $(BENCH)/.torch requirements.lock setup.py pyproject.toml $(NATIVE)
	@grep -vi '^protobuf==' requirements.lock > $(BENCH)/constraints.txt
	@DS_BUILD_OPS=0 $(BENCH_PIP) --no-build-isolation -c $(BENCH)/constraints.txt "$(TORCH)" \
	  --editable '.[bench,dev]'
	@$(BENCH)/bin/python -c 'import torchvision' 2>/dev/null || \
	  $(BENCH)/bin/python -m pip uninstall --quiet --yes torchvision timm
	@touch $@

sanitize: setup
	@PYTHON=$(BIN)/python bash csrc/sanitize.sh

clean:
	rm -rf $(VENV) $(BENCH) build dist *.egg-info autoselect/_C*.so
