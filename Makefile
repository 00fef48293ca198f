# Each command sets up what it needs, once: see scripts/setup.sh.

PY := .venv/bin/python
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help app test format bench zoo zoo-full setup setup-dev

help:
	@echo "make app        start the app on the shipped zoo"
	@echo "make test       format, lint, types, import contracts, tests   (PYTEST_ARGS=\"-k name\")"
	@echo "make format     format the code and repair what the linter can repair"
	@echo "make bench      measure every budget, write benchmarks/RESULTS.md   (BENCH_ARGS=...)"
	@echo "make zoo        build the zoo again: texts, then the shipped LoRA experts"
	@echo "make zoo-full   train the fully fine-tuned experts, for the benchmarks"

setup:
	@sh scripts/setup.sh runtime

setup-dev:
	@sh scripts/setup.sh dev

app: setup
	@echo "AWD Studio: http://127.0.0.1:8501   (when that port is taken, the address shown below). Stop with Ctrl-C."
	@.venv/bin/awd app

# In the order of their speed: the cheapest complaint comes first.
test: setup-dev
	@echo "== format: ruff format --check"
	@$(PY) -m ruff format --check .
	@echo "== lint: ruff check"
	@$(PY) -m ruff check .
	@echo "== types: pyright"
	@$(PY) -m pyright
	@echo "== import contracts: lint-imports"
	@.venv/bin/lint-imports
	@echo "== tests: pytest"
	@$(PY) -m pytest $(PYTEST_ARGS)

format: setup-dev
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

bench: setup-dev
	@$(PY) -m benchmarks $(BENCH_ARGS)

zoo: setup
	@$(PY) -m awd_core.zoo.train $(ZOO_ARGS)

zoo-full: setup
	@$(PY) -m awd_core.zoo.train --full $(ZOO_ARGS)
