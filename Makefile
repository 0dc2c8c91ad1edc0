# The two commands of the README, on a fresh machine:  make demo,  make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types bench clean

# a bare `torch` would bring gigabytes of CUDA packages: the pin of constraints.txt is installed by itself first
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/python examples/digits.py --out runs/digits

# shapes in the signatures are checked by the first run; the second tests the library's own messages for wrong ones
test: $(READY)
	$(BIN)/python -m pytest --jaxtyping-packages=vdiff,shape_checks.checker --ignore=tests/faults
	$(BIN)/python -m pytest tests/faults

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/loss_overhead.py

clean:
	rm -rf $(VENV) build *.egg-info
