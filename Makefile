# Both commands below set up .venv themselves on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint types clean

demo: $(VENV)/.demo
	$(BIN)/sgate demo

test: $(VENV)/.dev lint types
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.dev lint types
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	@echo "installing the demo's packages into $(VENV): a few minutes, once"
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	@echo "installing packages into $(VENV): a few minutes, once"
	$(BIN)/python -m pip install --quiet --editable ".[demo,dev]"
	touch $@

clean:
	rm -rf $(VENV) sgate-demo
