# Each target does all the set-up it needs on a machine with nothing but Python 3.11+ and make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RAY    := $(VENV)/.installed-ray
DEMO   := build/demo
LIMIT  ?= 30

# Tests start dozens of processes; without bytecode each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint fmt bench fp8-cost docs-check size clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## create the virtual environment and install everything

$(STAMP): pyproject.toml constraints.txt
	@echo "[1/2] virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/2] installing Glimt and its tools (about a minute; the largest part is torch)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on \
	    -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## ask a model about fresh pictures, with the truth beside
	@$(BIN)/python tools/demo.py --folder $(DEMO)

test: $(STAMP) ## the CPU test suite (five to six minutes on two cores)
	@$(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder -m 'not slow and not gpu and not gpu2'

$(RAY): pyproject.toml constraints.txt | $(STAMP)
	@echo "Ray, for its slow tests (half a gigabyte)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on \
	    -c constraints.txt -e '.[ray]'
	@touch $@

test-all: $(STAMP) $(RAY) ## also the slow tests
	@$(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder -m 'not gpu and not gpu2'

lint: $(STAMP) ## format, lint, types, import contracts, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory docs-check

fmt: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## the numbers that a CPU can give, and a report of a whole server in build/bench
	@$(BIN)/python benchmarks/run_all.py

fp8-cost: $(STAMP) ## measure what FP8 costs the built-in model, on LIMIT tasks of each skill (docs/fp8-cost.md)
	@$(BIN)/python tools/measure_fp8.py --limit $(LIMIT)

docs-check: $(STAMP) ## every file, link and command that the documents name exists
	@$(BIN)/python tools/check_docs.py

size: ## lines per package
	@for package in glimt glimt/*/; do \
	    printf '%6d  %s\n' $$(cat $$(find $$package -maxdepth 1 -name '*.py') | wc -l) $$package; done

clean: ## remove everything that was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
