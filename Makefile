# agenttop: everything a person types. `make run` and `make test` install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint bench screenshots lab clean

$(VENV)/.run: pyproject.toml setup.sh
	./setup.sh $(VENV) run
	touch $@

$(VENV)/.test: pyproject.toml setup.sh
	./setup.sh $(VENV) test
	touch $@ $(VENV)/.run

run: $(VENV)/.run
	$(BIN)/agenttop demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python -m bench

screenshots: $(VENV)/.test
	$(BIN)/python screenshots/make.py

# Policies against real DVFS, C-states, uclamp and NVMe: emulated machines, some minutes.
lab: $(VENV)/.run
	$(BIN)/python lab/run.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
