# make demo   train, export, quantize and benchmark all three models on the embedded data
# make test   the whole test suite
# Both create .venv and install what they need. PYTHON, VENV, ARTIFACTS and JOBS (test processes) can be set on the
# command line.

PYTHON ?= python3
VENV ?= .venv
ARTIFACTS ?= artifacts
JOBS ?= 2
MODELS := simplecnn resnet18 convnext

RUN := $(VENV)/bin/python

.PHONY: demo test test-gpu check clean

demo: $(VENV)/demo-installed
	@$(RUN) -m runtime run $(MODELS) --quick --artifacts $(ARTIFACTS)

test: $(VENV)/dev-installed
	$(RUN) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations 25 --durations-min 5

test-gpu: $(VENV)/dev-installed
	$(RUN) -m pytest -m gpu

check: $(VENV)/dev-installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo-installed: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable .
	@touch $@

$(VENV)/dev-installed: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/demo-installed
