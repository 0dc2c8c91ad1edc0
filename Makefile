# The two commands of the README, on a fresh machine:  make demo,  make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# as many processes as cores (at most 8), each with one thread
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-interop notebooks lint types docs bench gpu soak clean

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
	$(PYTEST) --jaxtyping-packages=vdiff,shape_checks.checker --ignore=tests/faults --ignore=tests/interop
	$(PYTEST) tests/faults

# diffusers, accelerate and Lightning bring 40 packages: an environment of their own. The last three need torchvision
# and logging for what the tests do not call, and come without: benchmarks/peers.py has stand-ins
INTEROP := .venv-interop
$(INTEROP)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[interop]"
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps azula k-diffusion torchcfm
	touch $@

test-interop: $(INTEROP)/.ready
	OMP_NUM_THREADS=1 $(INTEROP)/bin/python -m pytest --numprocesses auto --maxprocesses 8 tests/interop

# a kernel of Jupyter brings 30 packages: an environment of its own. In full the outputs are stored; QUICK=1 only shows
# that all of them run
NOTEBOOKS := .venv-notebooks
$(NOTEBOOKS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(NOTEBOOKS)
	$(NOTEBOOKS)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(NOTEBOOKS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[notebooks]"
	touch $@

notebooks: $(NOTEBOOKS)/.ready
	$(NOTEBOOKS)/bin/python docs/notebooks/run.py $(if $(QUICK),--quick)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# docs/_build/html/index.html; Sphinx comes into the environment only here, and a broken link is an error
$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

docs: $(VENV)/.docs
	rm -rf docs/_build
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html
	$(BIN)/python docs/_ext/check_site.py docs/_build/html

# each prints what stands in benchmarks/results
bench: $(READY)
	$(BIN)/python benchmarks/loss_overhead.py --pairs 150 --threads 1
	$(BIN)/python benchmarks/schedule_variance.py
	$(BIN)/python benchmarks/evaluation_cost.py
	$(BIN)/python benchmarks/ode_cost.py
	$(BIN)/python benchmarks/step_order.py --out benchmarks/results
	$(BIN)/python benchmarks/sampler_rounding.py
	$(BIN)/python benchmarks/train_step.py --recipe small
	$(BIN)/python benchmarks/train_step.py --batch 1 --rounds 21

# one card, at most eight minutes: right on it, and how fast; QUICK=1 DEVICE=cpu is all of it in small.
# Its Python needs a torch with CUDA: GPU_PYTHON=python3 is the machine's own
DEVICE ?= cuda
QUICK ?=
GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(READY))
	PYTHONPATH=. $(GPU_PYTHON) benchmarks/gpu.py --device $(DEVICE) $(if $(QUICK),--quick)

# what takes an hour or two: coverage of the intervals over 2,000 evaluations, 10,000 damaged data files, runs that are killed,
# runs with flipped bits, evaluations that are killed,
# and the core broken in 500 places, drawn anew each time
soak: $(READY)
	$(BIN)/python -m pytest -m soak -s
	$(BIN)/python tests/soak_data.py 10000
	$(BIN)/python tests/soak_training.py
	$(BIN)/python tests/soak_attack.py
	$(BIN)/python tests/mutation.py --sample 500 --seed $$(date +%s)

clean:
	rm -rf $(VENV) $(INTEROP) $(NOTEBOOKS) build docs/_build *.egg-info
