# Two commands on a fresh machine: `make demo` and `make test`. Each makes the environment it needs, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test test-slow gpu lint clean

demo: $(READY)
	$(BIN)/python -m dynamic_confidence.benchmarks.demo demo

test: $(READY) lint
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term:skip-covered --cov-fail-under=90

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# On a machine with an NVIDIA GPU: its tests, parity with the CPU and latency, item by item.
gpu: $(READY)
	$(BIN)/python -m dynamic_confidence.benchmarks.gpu -o benchmarks/results/gpu.json

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Again only when the dependencies change: the package itself is installed in place.
$(READY): pyproject.toml
	@echo "Setting up $(VENV) (torch is 5 GB: some minutes, once) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[cpu,train,dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
