# `make demo` and `make test` each do all the set-up on a fresh machine.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

PYTEST = $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
FAILED = --last-failed --last-failed-no-failures none

.PHONY: help demo test test-all check chaos format clean

help:
	@echo "make demo   set up, then walk the whole way on drawn scenes (under 6 minutes on 2 cores)"
	@echo "make test   set up, then run every check and all tests but the longest"
	@echo "make test-all  the longest tests too: several Ray nodes, lives under kills, whole guides"
	@echo "make chaos  kill drivers and workers over an ingest and whole lives, on a disk and on S3"
	@echo "make check  format, lint, types, layers, spelling"
	@echo "make format rewrite the code in the house format"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	# Tests read exports with it. Its own limits on numpy and transformers are older than ours.
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps mosaicml-streaming
	touch $@

demo: $(INSTALLED)
	$(BIN)/pixelese demo

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(BIN)/lint-imports
	$(BIN)/codespell

# Some tests race a real clock (sockets, deadlines, killed processes) and can lose where other work
# takes the cores. What failed gets one more run, alone and in order; what fails then has failed.
test: check
	$(PYTEST) -m "not long" || { test $$? -eq 1 && $(BIN)/pytest -m "not long" $(FAILED); }

test-all: check
	$(PYTEST) || { test $$? -eq 1 && $(BIN)/pytest $(FAILED); }

chaos: $(INSTALLED)
	$(BIN)/python -m tests.chaos.ingest --kills 20 --rows 3000
	$(BIN)/python -m tests.chaos.life --kills 50

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
