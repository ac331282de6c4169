# Each target is sufficient alone: it makes or updates the environment first (instant when done).
#   make demo            the whole chain on generated scenes
#   make test            the tests             make test ARGS="-k order -x -n 0"
#   make lint            ruff (lint, format) and mypy
#   make format          what ruff can mend by itself
# Variables: TORCH=cpu|cuda  the build of torch (default: chosen for this machine)
#            PYTHON=...      the Python (3.11 or newer) that the environment is made from
#            VENV=...        where the environment lies: a folder of its own

VENV ?= .venv
TORCH ?= auto
ARGS ?=
BIN = $(abspath $(VENV))/bin
# On the path too, because torch looks there for ninja when DeepSpeed has something to compile.
PY = PATH="$(BIN):$$PATH" $(BIN)/python

CANDIDATES = python3 python3.13 python3.12 python3.11 python3.14
RECENT = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(RECENT)' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format

help:
	@sed -n 's/^# \?//p;/^$$/q' Makefile

setup:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one (apt-get install" \
		"python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) tools/make_venv.py --venv "$(VENV)" --torch "$(TORCH)"

demo: setup
	$(PY) tools/demo.py $(ARGS)

# Two files at a time, one thread each: threads that compete cost more than they bring.
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
