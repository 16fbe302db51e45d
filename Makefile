# Needs Python 3.11 or later with venv. Everything is installed into .venv, with pip.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
PACKAGE := $(VENV)/.installed-package
DEV := $(VENV)/.installed-dev

.PHONY: test check demo bench docs clean

test: $(DEV)  ## Runs all tests.
	$(RUN) -m pytest

check: $(DEV)  ## Lint, format, types, directions of imports; prints the largest modules and functions.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(RUN) scripts/sizes.py

demo: $(PACKAGE)  ## Runs the reference program with nothing but the package installed.
	$(RUN) examples/reference_desk.py --demo

bench: $(DEV)  ## Prints the benchmarks.
	$(RUN) -m bench

docs: $(PACKAGE)  ## Regenerates the generated parts of docs/.
	$(RUN) scripts/lifecycle.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(PACKAGE): pyproject.toml
	@echo "installing the package into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip  # --group needs pip 25.1
	@$(PIP) --editable .
	@touch $@

$(DEV): $(PACKAGE)
	@echo "installing the development tools into $(VENV)"
	@$(PIP) --group dev
	@touch $@
