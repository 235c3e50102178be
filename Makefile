# agenttop: everything a person types. `make run` and `make test` install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Of those tests that run beside each other two groups mostly wait.
JOBS ?= $(shell expr $$(nproc) + 2)

# Tests start hundreds of processes: each would compile all of agenttop again without the bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-long test-newest lint lock bench screenshots lab clean

$(VENV)/.run: pyproject.toml setup.sh requirements/run.txt
	./setup.sh $(VENV) run
	touch $@

$(VENV)/.test: pyproject.toml setup.sh requirements/test.txt
	./setup.sh $(VENV) test
	touch $@ $(VENV)/.run

# Both parts run, and either fails the whole: what needs no machine for itself in parallel, and
# then the rest alone. (Plain pytest runs everything, one test after the other.)
pytest = failed=0; \
	$(1) -m pytest -n $(JOBS) --dist loadgroup -m "not alone and $(2)" || failed=1; \
	$(1) -m pytest -m "alone and $(2)" || failed=1; \
	exit $$failed

run: $(VENV)/.run
	$(BIN)/agenttop demo

test: $(VENV)/.test
	@# The tests' bytecode is made once, beside mypy, in the place of once in each worker.
	@$(BIN)/python -m pytest --collect-only >/dev/null 2>&1 & $(MAKE) --no-print-directory lint; linted=$$?; wait; exit $$linted
	@$(call pytest,$(BIN)/python,not long)

# What is not needed each time: more kills, more fuzzing, pictures of all sizes.
test-long: $(VENV)/.test
	@$(call pytest,$(BIN)/python,long)

# The tests with the newest releases that pyproject.toml allows, in place of the locked ones.
test-newest:
	./setup.sh $(VENV)-newest newest
	@$(call pytest,$(VENV)-newest/bin/python,not long)

# Renew what run and test install: the newest releases, with their hashes, for every machine.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --upgrade uv
	$(call compile,test,--extra test --upgrade)
	$(call compile,run,--constraint requirements/test.txt)
compile = $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header --no-emit-index-url --no-emit-find-links $(2) \
	--output-file requirements/$(1).txt pyproject.toml requirements/build.in

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

bench: $(VENV)/.test
	$(BIN)/python -m bench

screenshots: $(VENV)/.test
	$(BIN)/python screenshots/make.py

# Policies against real DVFS, C-states, uclamp and NVMe: emulated machines, some minutes.
lab: $(VENV)/.run
	$(BIN)/python lab/run.py

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-lock .pytest_cache .mypy_cache .ruff_cache .hypothesis
