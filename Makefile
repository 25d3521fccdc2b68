# The commands of this project. Two of them do everything: `make demo` and `make test`.
#
# Environments are made on first use: .venv (PyTorch, tests, linters), .venv-fakegpu (PyTorch's
# CUDA build on a fake GPU, x86-64 Linux only), .venv-oldest and .venv-newest (other releases of
# PyTorch), .venv-wheel (the built package). None needs a GPU.

PYTHON ?= python3
VENV := .venv
FAKE := .venv-fakegpu
BIN := $(VENV)/bin
TORCH := 2.13.0
TORCHVISION := 0.28.0
# For `make test-oldest`, the oldest release that bsfind takes; for `make test-newest`, the newest that pip finds.
TORCH_oldest := torch==2.6.0
TORCH_newest := torch

CAN_FAKE := $(shell [ "$$(uname -sm)" = "Linux x86_64" ] && command -v gcc >/dev/null && echo yes)
# A process that has run out of tests takes some of those that are left to another.
PYTEST := pytest -n auto --dist worksteal
HAS_GPU := $(shell command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)

.PHONY: help setup demo test test-exhaustive test-fast faults fuzz test-gpu test-oldest test-newest dist test-wheel lint format typecheck check bench peers holds search-cost corpus simulation-accuracy torch-releases torch-pairs published-table real-points real-gpu cudnn-samples cudnn-trees cudnn-accuracy docs clean held-out cudnn-asked
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet "torch==$(TORCH)"
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

$(FAKE)/.ready: pyproject.toml $(wildcard tests/fakegpu/*.py tests/fakegpu/*.sh tests/fakegpu/csrc/*)
	PYTHON=$(PYTHON) sh tests/fakegpu/install.sh $(FAKE)
	$(FAKE)/bin/pip install --quiet --upgrade 'pip>=25.1'
	$(FAKE)/bin/pip install --quiet --no-deps --editable .
	touch $@

# For its tests on the CPU, torch comes without CUDA's libraries: see tests/without_cuda.py.
.venv-oldest/.ready .venv-newest/.ready: .venv-%/.ready: pyproject.toml tests/without_cuda.py tests/fakegpu/stubs.py
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-$*/bin/pip install --quiet --no-deps '$(TORCH_$*)'
	.venv-$*/bin/python tests/without_cuda.py > .venv-$*/requirements.txt
	.venv-$*/bin/pip install --quiet --no-warn-conflicts --requirement .venv-$*/requirements.txt \
		--group test typer rich nvidia-ml-py matplotlib
	.venv-$*/bin/pip install --quiet --no-deps --editable .
	touch $@

setup: $(VENV)/.ready $(if $(CAN_FAKE),$(FAKE)/.ready) ## Make the environments

DEMO := bsfind run bsfind.demo:SmallResNet --input-shape 3,96,96

demo: $(VENV)/.ready ## Find the batch size of a small model: on the GPU, or predicted for one
	$(BIN)/$(DEMO) $(if $(HAS_GPU),,--gpu rtx-4090)

test: setup ## Run the tests, on a fake GPU where there is no real one (but for those of `make faults`, `fuzz`, `test-exhaustive`)
	$(BIN)/python -m $(PYTEST) --durations=40 --durations-min=5 -m "not faults and not fuzz and not exhaustive" tests

test-exhaustive: setup ## Run the tests of `make test` on the inputs that it leaves out (a quarter of an hour on two cores)
	$(BIN)/python -m $(PYTEST) --durations=40 --durations-min=5 -m exhaustive tests

test-fast: $(VENV)/.ready ## Run the tests of the units, the command line and the training step (some minutes)
	$(BIN)/python -m $(PYTEST) -m "not faults and not slow and not exhaustive" tests/unit tests/cli tests/workload

faults: setup ## Run the tests that kill, hang, fill disks and take memory away
	$(BIN)/python -m $(PYTEST) -m "faults and not exhaustive" tests

# The seed decides what is thrown, and FUZZ_TIMES how much: `make fuzz FUZZ_SEED=$$RANDOM FUZZ_TIMES=10`.
FUZZ_SEED ?= 1
FUZZ_TIMES ?= 1

fuzz: $(VENV)/.ready ## Throw random logs, reports, settings and streams at bsfind (some minutes; FUZZ_SEED, FUZZ_TIMES)
	@echo "FUZZ_SEED=$(FUZZ_SEED) FUZZ_TIMES=$(FUZZ_TIMES)"
	FUZZ_TIMES=$(FUZZ_TIMES) $(BIN)/python -m $(PYTEST) --hypothesis-seed=$(FUZZ_SEED) --timeout=1800 -m fuzz tests/fuzz

test-gpu: setup ## Run the tests that need a GPU, on a real one if there is one, else on a fake one
	$(BIN)/python -m $(PYTEST) -m "not exhaustive" tests/gpu

# What depends on the release of PyTorch: of the units, those that import it.
WITH_TORCH := $(shell grep -lE '(import|from) torch' tests/unit/test_*.py) \
	tests/cli/test_prediction.py tests/cli/test_python.py tests/workload tests/simulation

test-oldest: .venv-oldest/.ready ## Run what depends on PyTorch with the oldest release that bsfind takes
test-newest: .venv-newest/.ready ## Run what depends on PyTorch with the newest release that pip finds
test-oldest test-newest: test-%:
	.venv-$*/bin/python -m $(PYTEST) -m "not faults and not gpu and not slow and not exhaustive and not one_torch" $(WITH_TORCH)
	.venv-$*/bin/$(DEMO) --gpu rtx-4090

dist: $(VENV)/.ready ## Build the package, a wheel and a source archive, and check them
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*

test-wheel: dist ## Install the built wheel in an empty environment, and predict with it
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/pip install --quiet 'torch==$(TORCH)' dist/*.whl
	.venv-wheel/bin/python tests/check_wheel.py
	cd .venv-wheel && bin/$(DEMO) --gpu rtx-4090

lint: $(VENV)/.ready ## Look for mistakes and for formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(VENV)/.ready ## Check the types, strictly
	$(BIN)/mypy

check: lint typecheck test faults ## The greater part of what CI runs (.ci/run)

bench: setup $(FAKE)/.models ## Measure what the README promises of the search (an hour on two cores)
	$(FAKE)/bin/python benchmarks/search_accuracy.py

$(VENV)/.models: $(VENV)/.ready
	$(BIN)/pip install --quiet "torchvision==$(TORCHVISION)" timm transformers
	touch $@

$(FAKE)/.models: $(FAKE)/.ready
	sh tests/fakegpu/install.sh --models $(FAKE)
	touch $@

$(FAKE)/.peers: $(FAKE)/.models benchmarks/peers_requirements.txt
	$(FAKE)/bin/pip install --quiet --no-deps --upgrade --target $(FAKE)/peers -r benchmarks/peers_requirements.txt
	touch $@

peers: setup $(FAKE)/.peers ## Set bsfind beside other finders of batch sizes (half an hour on two cores)
	$(FAKE)/bin/python -m benchmarks.peers

holds: setup $(FAKE)/.models ## Measure whether what bsfind recommends holds (an hour on two cores)
	$(FAKE)/bin/python -m benchmarks.recommendation_holds

held-out: setup $(FAKE)/.models ## Measure whether predictions are right for models that bsfind has not seen (an hour on two cores)
	$(FAKE)/bin/python -m benchmarks.held_out

search-cost: setup $(FAKE)/.models ## Measure what a search costs beside an ideal one (a quarter of an hour)
	$(FAKE)/bin/python -m benchmarks.search_cost

corpus: setup ## Compare the simulator with PyTorch's CUDA build, event by event, on the small models
	-$(BIN)/python -m tests.simulation.compare_events --all --stub-cudnn
	-$(BIN)/python -m tests.simulation.compare_events --all
	-$(BIN)/python -m tests.simulation.parallel_runs

simulation-accuracy: $(VENV)/.models $(FAKE)/.models ## Measure how exact the simulator is (hours on two cores)
	$(BIN)/python -m benchmarks.simulation_accuracy
	$(BIN)/python -m benchmarks.accuracy_report

# Releases of PyTorch that the simulator is compared with besides its own, each in an environment of its own.
RELEASES := 2.6.0 2.8.0 2.9.1 2.11.0 2.14.0

torch-releases: $(VENV)/.ready ## Compare the simulator with other releases of PyTorch (hours on two cores)
	for release in $(RELEASES); do \
		TORCH=$$release PYTHON=$(PYTHON) sh tests/fakegpu/install.sh $(FAKE)-$$release && \
		BSFIND_FAKEGPU_VENV=$(FAKE)-$$release PYTHONPATH=src:. FAKE_GPU_COUNT=0 FAKE_CUDNN= \
			sh tests/fakegpu/run.sh $(FAKE)-$$release python -m benchmarks.torch_releases || exit; \
	done
	$(BIN)/python -m benchmarks.accuracy_report

torch-pairs: $(VENV)/.ready ## Compare this release's traces with other releases (hours on two cores)
	for release in $(RELEASES); do \
		TORCH=$$release PYTHON=$(PYTHON) sh tests/fakegpu/install.sh $(FAKE)-$$release && \
		BSFIND_FAKEGPU_VENV=$(FAKE)-$$release PYTHONPATH=src:. \
			$(BIN)/python -m benchmarks.torch_releases || exit; \
	done
	$(BIN)/python -m benchmarks.accuracy_report

published-table: $(VENV)/.models ## Compare predictions with a published table of a real RTX 3090 (some minutes)
	$(BIN)/python -m benchmarks.published_table

$(VENV)/.peft: $(VENV)/.models
	$(BIN)/pip install --quiet peft bitsandbytes
	touch $@

real-points: $(VENV)/.peft ## Compare predictions with memory that others measured on real GPUs (a quarter of an hour)
	$(BIN)/python -m benchmarks.published_points
	$(BIN)/python -m benchmarks.accuracy_report

# Where there is a GPU, $(PYTHON) is the environment to measure: it has torch, typer, rich and nvidia-ml-py, and nothing is
# installed. Else the short form runs on the fake GPU (BSFIND_FAKEGPU_VENV: another one than this Makefile makes).
real-gpu: $(if $(HAS_GPU)$(BSFIND_FAKEGPU_VENV),,$(FAKE)/.models) ## Measure on a real GPU what bsfind assumes (8 minutes; PYTHON, REAL_GPU_SECONDS, REAL_GPU_RESULTS)
	PYTHONPATH=src:. $(PYTHON) -m benchmarks.real_gpu

cudnn-samples: setup ## Sample cuDNN's workspaces on the fake GPU (1.2 million calls, 13 MB, an hour of one core; goes on where it was)
	$(BIN)/python -m benchmarks.convolution_samples

$(VENV)/.trees: $(VENV)/.ready
	$(BIN)/pip install --quiet --group trees
	touch $@

cudnn-trees: $(VENV)/.trees ## Fit the trees of cuDNN's engines anew, to the samples and nothing else
	$(BIN)/python -m benchmarks.cudnn_trees

cudnn-accuracy: $(VENV)/.ready ## Compare the trees of cuDNN's engines with the samples that are held out
	$(BIN)/python -m benchmarks.cudnn_trees_accuracy
	$(BIN)/python -m benchmarks.accuracy_report

cudnn-asked: $(FAKE)/.models ## Compare predictions that ask cuDNN, and those of the trees, with the fake GPU
	FAKE_GPU_COUNT=0 sh tests/fakegpu/run.sh $(FAKE) python -m benchmarks.cudnn_asked
	$(BIN)/python -m benchmarks.accuracy_report

docs: $(VENV)/.ready ## Write docs/cli.md, docs/screens.md, quotes of screens and docs/memory.svg
	$(BIN)/python docs/build_reference.py
	$(BIN)/python docs/capture_screens.py

clean: ## Remove the environments and caches
	rm -rf $(VENV) $(FAKE) $(FAKE)-* .venv-oldest .venv-newest .venv-wheel dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
