# Every target sets up what it needs in .venv. `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VIDEO ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Sightline needs Python 3.11 or newer: make test PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install -q -c requirements.lock -e .
	@touch $@

$(VENV)/.test: pyproject.toml requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install -q -c requirements.lock -e '.[test]'
	@# trackers and trackeval bring opencv-python, which lays its files over those of the headless build and wants a display's libraries
	@$(BIN)/python -m pip uninstall -q -y opencv-python
	@$(BIN)/python -m pip install -q -c requirements.lock --force-reinstall --no-deps opencv-python-headless
	@touch $@ $(VENV)/.base

demo: $(VENV)/.base ## find a person in real video, without any server (VIDEO=clip.mp4 for your own)
	$(BIN)/sightline demo $(if $(VIDEO),--video "$(VIDEO)")

test: $(VENV)/.test ## run the tests
	$(BIN)/python -m pytest

check: $(VENV)/.test ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.base ## measure ingest and search
	$(BIN)/sightline bench ingest --json
	$(BIN)/sightline bench search --count 100000 --json

clean: ## remove what the targets made
	rm -rf $(VENV) demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
