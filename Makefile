# The contributor's front door; `make` alone lists the targets.
VENV ?= .venv
BIN := $(VENV)/bin
# The first Python that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help demo test test-slow test-lowest smoke dist lint docs docs-serve fuzz kill bench bench-gpu bench-grid bench-errors clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' Makefile

# One stamp: everything is installed once, and again only when what is installed changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "probekit needs Python >= 3.11 with venv (on Debian: apt install python3 python3-venv)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,cluster,demo,dev]'
	@touch $@

# What benchmarks, the site and a release need beside: most contributors never do.
$(VENV)/.bench $(VENV)/.docs $(VENV)/.release: $(VENV)/.%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,cluster,demo,dev,$*]'
	@touch $@

demo: $(VENV)/.installed  ## run an experiment offline on a real model and real text
	$(BIN)/probekit demo --overwrite

test: $(VENV)/.installed  ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: $(VENV)/.release $(VENV)/.docs  ## run the tests that take long: kills, real tasks, the built package in an empty environment, the site, the notebooks
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile

smoke: $(VENV)/.installed  ## the short check for other systems: help, and README's commands on tiny models
	$(BIN)/probekit --help
	$(BIN)/python -m pytest tests/test_pages.py -k readme

dist: $(VENV)/.release  ## build sdist and wheel in dist/, and check them
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/twine check --strict dist/*

# The oldest versions that pyproject.toml admits (pytest 9.1 warns of the old scikit-learn's checks); pulls a CUDA build of torch where no other is at hand.
$(VENV)-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) tests/lowest.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/constraints.txt --editable '.[all,demo]' pytest==9.0.0 pandas
	@touch $@

test-lowest: $(VENV)-lowest/.installed  ## run the tests with the oldest versions that are admitted
	$(VENV)-lowest/bin/python -m pytest --ignore tests/test_house.py --ignore tests/packaging

lint: $(VENV)/.installed  ## ruff, ruff format, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## write docs/cli.md from --help and the pages' figures from benchmarks/results, and build the site into site/
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_tables.py
	$(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/.docs  ## show the site while one writes, at http://127.0.0.1:8000
	$(BIN)/python -m mkdocs serve

fuzz: $(VENV)/.installed  ## damage 2,700 files of every kind, give 4,600 wrong inputs, count what comes of it (an hour; resumes where it stopped)
	$(BIN)/python tests/robustness/fuzz.py --count 2700
	$(BIN)/python tests/robustness/fuzz_inputs.py --count 4600

bench: $(VENV)/.installed  ## run the speed benchmarks (under 20 minutes on 2 quiet cores) and print one table
	$(BIN)/python benchmarks/run_all.py

bench-gpu: $(VENV)/.installed  ## the same for a GPU, under 8 minutes
	$(BIN)/python benchmarks/gpu.py

bench-grid: $(VENV)/.installed  ## when does cleaning pay? linear, then finetuned students (PROBEKIT_DATA; many hours on 2 cores; resumes where it stopped)
	$(BIN)/python benchmarks/regularisation.py
	$(BIN)/python benchmarks/weak_to_strong.py $(GRID)
	$(BIN)/python benchmarks/paper.py $(GRID)
	$(BIN)/python benchmarks/weak_to_strong.py --students brief $(GRID)
	$(BIN)/python benchmarks/weak_to_strong.py --students finetuned $(GRID)

bench-errors: $(VENV)/.bench  ## compare ways to find wrong labels on real tasks (PROBEKIT_DATA; about an hour on 2 cores)
	$(BIN)/python benchmarks/label_errors.py
	$(BIN)/python benchmarks/label_summary.py

kill: $(VENV)/.installed  ## kill commands at any moment and compare with what was never killed (an hour; resumes where it stopped)
	$(BIN)/python tests/robustness/kill.py

clean:  ## remove environments and caches
	rm -rf $(VENV) $(VENV)-lowest build *.egg-info .mypy_cache .ruff_cache .pytest_cache
