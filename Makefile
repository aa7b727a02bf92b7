# make demo: set up and run the main job on data that needs no download.
# make test: set up and run the tests, but for the slow ones.
# make test-slow: run the slow ones: whole runs in several processes, killed processes, memory.
# make docs: build the site into build/site; a warning is an error.
# Choose the interpreter with PYTHON=python3.13, and the environment's folder with VENV=...
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-slow lint docs

demo: $(VENV)/installed
	$(BIN)/python -m vae_attn.main --config=configs/digits.py
	@echo "Open runs/digits/report/index.html"

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 3 -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/installed-test
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n 2 -m slow $(PYTEST_ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open build/site/index.html"

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@
