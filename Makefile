# Everything works from a fresh clone with bash, git, make and Python 3.11 or newer: the set-up happens by itself, once.
#   make quickstart   train a small dual encoder on the data inside the package and show what it finds
#   make check        what to run before a commit: ruff, mypy and the fast tests
#   make test         everything that CI runs; make test-gpu: what needs a CUDA device
#   make bench        figures of speed into bench.json, on an idle machine; make bench-gpu: those of a CUDA device
#   make clean        remove the virtual environment, caches and quickstart's run

SHELL := /bin/bash
.DELETE_ON_ERROR:

VENV ?= .venv
# The first interpreter that is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Without an NVIDIA driver, the torch release that was tested here; a newer one would bring gigabytes of CUDA libraries.
HAS_GPU := $(wildcard /proc/driver/nvidia/version)$(shell command -v nvidia-smi)
TORCH ?= $(if $(HAS_GPU),torch,torch==2.13.0)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Written from the torch that was installed, so that no later package replaces it.
CONSTRAINTS := $(VENV)/constraints.txt
RUN := runs/quickstart
FIGURES ?= bench.json

# One thread for each process, because the tests start several; DeepSpeed's compiled parts in a folder of our own, because
# a lock left by a killed process makes DeepSpeed wait for ever.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONHASHSEED=0 \
	TORCH_EXTENSIONS_DIR="$(CURDIR)/.torch_extensions" \
	env -u DS_ACCELERATOR -u ACCELERATE_USE_CPU -u ACCELERATE_USE_DEEPSPEED -u ACCELERATE_USE_FSDP -u WORLD_SIZE -u RANK
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest
FAST := not slow and not distributed and not gpu

.PHONY: quickstart lint format check test test-gpu bench bench-gpu clean

quickstart: $(VENV)/.package
	$(BIN)/accel-train train configs/quickstart.yaml
	$(BIN)/accel-train evaluate $(RUN) --contact-sheet $(RUN)/contact_sheet.png

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint
	$(PYTEST) -q -n 2 -m "$(FAST)"

# Two workers: one takes tests/distributed, one after the other, the other tests/faults and tests/slurm; then both the rest.
test: lint
	mkdir -p .torch_extensions && find .torch_extensions -name lock -delete
	$(PYTEST) -n 2 --dist loadgroup -m "not gpu" --durations 15

test-gpu: $(VENV)/.dev
	$(PYTEST) tests/gpu -v

# One after the other, so that nothing else runs beside a figure. `scripts/compare_bench.py` compares two such files.
bench: $(VENV)/.dev
	BENCH_FIGURES="$(FIGURES)" $(PYTEST) tests/benchmarks -q -rs --tb=short -p no:cacheprovider

bench-gpu: $(VENV)/.dev
	BENCH_FIGURES="$(FIGURES)" $(PYTEST) tests/gpu -m benchmark -q -rs --tb=short -p no:cacheprovider

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found on PATH." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(CONSTRAINTS): | $(VENV)/bin/python
	$(PIP) install "$(TORCH)"
	$(PIP) freeze | grep -i '^torch==' > $@

$(VENV)/.package: setup.cfg $(CONSTRAINTS)
	$(PIP) install -c $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.package
	$(PIP) install -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .torch_extensions .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info $(RUN)
