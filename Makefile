# Every target works on a bare clone: the first makes .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
# two processes; tests that share a trained run stay in one of them
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: help demo test test-gpu test-all test-oldest test-mutants bench lint ui install build

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP)  ## make .venv with everything in it (about 3 minutes)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## the main job: FouRA on the bundled ViT, then LoRA beside it
	$(BIN)/python train.py adapter=foura rank=64
	$(BIN)/python train.py adapter=lora rank=64

test: $(STAMP)  ## lint and the fast tests (13 minutes on two quiet cores)
	$(MAKE) lint
	$(PYTEST) -m 'not slow'

test-all: $(STAMP)  ## everything: slow tests, PEFT's own test suite on our tuner, the table of docs/robustness.md (an hour or two)
	$(MAKE) lint
	rm -rf .pytest_cache/survives
	$(PYTEST) --hypothesis-profile=all tests --ignore tests/peers --ignore tests/gpu
	$(BIN)/python -m pytest tests/peers
	$(BIN)/python -m tests.helpers.survives

test-oldest:  ## the unit tests with the oldest versions that pyproject.toml allows, in a venv of their own
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[lab,quantised]' pytest hypothesis
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -m 'not slow' tests/unit

test-mutants: $(STAMP)  ## deliberate faults in what results rest on: the tests must catch every one (half an hour)
	$(BIN)/python -m tests.mutants

test-gpu: $(STAMP)  ## on a GPU: the adapter in every precision, PEFT's own test suite, a run of each family
	$(BIN)/python -m pytest -m gpu tests/gpu
	$(BIN)/python -m pytest tests/peers

bench: $(STAMP)  ## cost of adapters against PEFT's LoRA, and of the framework (15 minutes on a quiet machine)
	$(BIN)/python experiments/benchmarks/bench.py

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(STAMP)  ## a wheel and a source distribution in dist/, checked against the files of the package
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m tests.helpers.built dist

ui: $(STAMP)  ## the MLflow UI over outputs/
	$(BIN)/foura ui
