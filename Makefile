# Everything a person types. `make help` lists it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Extra arguments for the one large install, e.g. to name an index that holds CPU-only builds of PyTorch.
TORCH_PIP_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test sim bench lint manifests clean

help: ## list the targets
	@grep -hE '^[a-z.]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV): $(VENV)/.installed ## build the environment: everything but GPU packages

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Building $(VENV): a few minutes the first time (PyTorch, CPU build, is the large part)."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt $(TORCH_PIP_ARGS) torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,inference,aks]'
	@touch $@

demo: $(VENV) ## from nothing to an answered prompt: an embedded cluster, a simulated GPU node, a real model server
	@exec $(BIN)/kaito-ctrl demo $(DEMO_ARGS)

test: $(VENV) ## run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

SEEDS ?= 1000
LIVES ?= all
sim: $(VENV) ## simulate SEEDS whole lives with faults, on all cores: LIVES=runtime, workspace, provisioner or all
	@exec $(BIN)/python -m tests.sim --count $(SEEDS) --lives $(LIVES) $(SIM_ARGS)

bench: $(VENV) ## measure the library beside its peers (half an hour; BENCH_ARGS=--quick: minutes)
	@exec $(BIN)/python -m tests.bench $(BENCH_ARGS)

lint: $(VENV) ## style, types, and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

manifests: $(VENV) ## regenerate manifests/crds from the models
	$(BIN)/kaito-ctrl crds --output manifests/crds

clean: ## remove the environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
