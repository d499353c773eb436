# Everything a person or CI runs. Each target sets up what it needs; a second run reuses it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

BUDGET ?= 3h

.PHONY: help setup demo test test-slow test-nightly check format schemas lock licenses clean

help:
	@echo "make demo       set up, then synthetic rankings -> reward model -> report, in minutes"
	@echo "make test       set up, then the tests (the bar: 10 minutes on 2 quiet cores)"
	@echo "make test-slow  the suites that take longer"
	@echo "make test-nightly  the same, each module in a process of its own, within BUDGET=3h; a table in nightly.txt"
	@echo "make check      ruff, format, pyright, import-linter"
	@echo "make format     let ruff write what it can"
	@echo "make schemas    write schemas/ from the code"
	@echo "make lock       write locks/ from constraints.txt, with the hashes of the package index"
	@echo "make licenses   write docs/licenses.md from what is installed"

setup: $(READY)

# Every file is checked against locks/; nothing but DeepSpeed is built, and that with the pinned setuptools.
# One line a package, so that minutes of downloads are seen to go on; bash, for the exit status of a pipe.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
INSTALL := $(BIN)/pip install --disable-pip-version-check --progress-bar off
SHOWN := | sed -u -n -E '/^ *(Collecting|Building wheel|Installing collected)/{s/^(.{100}).*/\1 .../;p}'
LOCKED := --require-hashes --only-binary :all: --no-binary deepspeed --no-build-isolation

$(READY): pyproject.toml $(wildcard locks/*.txt)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@echo "setting up .venv: about 200 packages, 2 GB on disk, three to five minutes"
	$(INSTALL) $(LOCKED) --requirement locks/build.txt $(SHOWN)
	$(INSTALL) $(LOCKED) --no-deps --requirement locks/torch-cpu.txt 2>/dev/null $(SHOWN) || echo "no known CPU build of torch: taking PyPI's"
	$(INSTALL) $(LOCKED) --requirement locks/plain.txt --requirement locks/dev.txt --constraint locks/cuda.txt $(SHOWN)
	$(INSTALL) --no-deps --no-build-isolation --editable . $(SHOWN)
	@touch $@

demo: $(READY)
	$(BIN)/python jobs/demo.py

# Two workers, each with one group of tests at a time (tests/support/systems/worker_groups.py), and one thread for each process's sums.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --no-loadscope-reorder -m "not slow and not gpu" --durations=15

test-slow: $(READY)
	$(BIN)/pytest -m "slow" -rP
	$(BIN)/pytest -m "hypothesis and not slow" --hypothesis-profile=search

test-nightly: $(READY)
	$(BIN)/python tests/nightly.py --budget $(BUDGET)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	@test ! -e platform/__init__.py || { echo "platform/__init__.py would hide Python's own platform module; remove it"; exit 1; }

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(READY)
	$(BIN)/pairwright schemas --overwrite

lock: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python locks/lock.py

licenses: $(READY)
	$(BIN)/python locks/licenses.py

clean:
	rm -rf demo
