# The contributor's front door; `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint bench docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

# One stamp: everything is installed once, and again only when what is installed changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	@touch $@

demo: $(VENV)/.installed  ## run the main job offline on a real model and real text
	$(BIN)/probekit demo --overwrite

test: $(VENV)/.installed  ## run the tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed  ## write docs/cli.md from --help
	$(BIN)/python docs/make_cli.py

bench: $(VENV)/.installed  ## run the benchmarks
	$(BIN)/python benchmarks/run_all.py

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
