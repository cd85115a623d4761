# `make` alone lists the targets. PYTHON is only used to create the environment: make test PYTHON=/usr/bin/python3.12
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# The environment is made once; it is updated only when one of these two files is newer than the stamp.
STAMP := $(VENV)/.installed
# transformers' common model tests are only in its source archive, so the archive of the tested version is fetched.
TRANSFORMERS := $(shell sed -n 's/^transformers==/transformers-/p' constraints.txt)
COMMON_TESTS := $(VENV)/$(TRANSFORMERS)

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow fuzz check format docs wheel check-wheel bench clean

help:  ## show this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv with the tested versions and ldae in editable mode

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

$(COMMON_TESTS)/PKG-INFO: $(STAMP)
	$(BIN)/python -m pip download --quiet --no-deps --no-binary transformers --dest $(VENV) $(subst -,==,$(TRANSFORMERS))
	tar -xzf $(VENV)/$(TRANSFORMERS).tar.gz -C $(VENV)
	@touch $@

quickstart: $(STAMP)  ## pre-train a tiny l-DAE on real digits, probe it and load it back (about 4 minutes on 2 cores)
	$(BIN)/python training/quickstart.py

# One thread per process: tiny models gain nothing from more, and the processes would compete for the cores.
PYTEST := LDAE_TRANSFORMERS_TESTS=$(COMMON_TESTS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

test: $(STAMP) $(COMMON_TESTS)/PKG-INFO  ## run the tests on up to four cores (about 5 minutes on 2)
	$(PYTEST) -n auto --maxprocesses 4 --dist loadfile

test-slow: $(STAMP)  ## run the tests that take minutes: kills, several processes, large networks
	$(PYTEST) -m slow

# FUZZ names families or single cases: make fuzz FUZZ=images:17, make fuzz FUZZ="recipes tables --seed 3".
fuzz: $(STAMP)  ## damage images, recipes, checkpoints, tables and command lines; report what came of it (3 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(FUZZ)

check: $(STAMP)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src

format: $(STAMP)  ## apply the formatting and the safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)  ## build the documentation to build/site/index.html; a broken link or name is an error
	$(BIN)/mkdocs build --strict

wheel: $(STAMP)  ## build the wheel in dist/
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

check-wheel: wheel  ## use the wheel in an empty environment, away from this folder
	.ci/check_wheel $(BIN)/python dist/*.whl

bench: $(STAMP)  ## speed and memory against transformers and scikit-learn, as ratios measured in one run
	$(BIN)/python benchmarks/run_all.py

clean:  ## remove the environment, builds and caches; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
