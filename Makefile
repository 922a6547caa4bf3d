# Each target makes the environment it needs. Another interpreter: make PYTHON=python3.12 demo
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-label label lint clean

demo: .venv/tools  ## an average T1 (ICBM152) and virtual gliomas, segmented, scored and drawn; leaves demo/
	$(BIN)/python -m tools demo

test: .venv/dev lint  ## everything CI checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal

label: .venv/tools  ## MONAI Label's server: make label STUDIES=DIR
	@test -n "$(STUDIES)" || { echo "make label STUDIES=DIR: the folder with your scans"; exit 1; }
	$(BIN)/python -m tools label --studies "$(STUDIES)" $(if $(BUNDLES),--bundles "$(BUNDLES)") \
		$(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(PORT),--port $(PORT)) $(if $(LABELS),--labels "$(LABELS)")

test-label: .venv/dev  ## the real MONAI Label server with every bundle; makes its environment
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/label/serving.py

lint: .venv/dev  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove the environments and the demo
	rm -rf .venv .venv-label demo

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.10 to 3.13 is needed: make PYTHON=python3.12 demo"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/tools .venv/dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -e '.[$(@F)]'
	touch $@
