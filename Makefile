# Everything a person or a machine does with this repository. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo dev check test fuzz sim chaos bench quality kafka docs format clean

help: ## List what can be made
	@echo "New here? make demo"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Stamps: a virtual environment is right when it is younger than what it was made from.
$(VENV)/.run: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not here: install Python 3.11, or make PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

# Kernels are compiled now, so that the first batch of a stream does not wait for it.
$(VENV)/.warm: $(VENV)/.run $(wildcard models/*.py actors/*.py)
	$(BIN)/python -m raywatch.actors.warm
	touch $@

$(VENV)/.dev: $(VENV)/.warm
	$(INSTALL) -e '.[dev]'
	touch $@

demo: $(VENV)/.warm ## Watch a small world on this machine: no Java, no broker
	$(BIN)/raywatch demo

dev: $(VENV)/.dev ## Make .venv with everything for work on raywatch

check: dev ## Lint, format and types, without tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: dev needs ## Run every test, real Kafka and browser included
	$(BIN)/python -m pytest

N ?= 1000000
SEED ?= 0
fuzz: dev ## Feed N damaged inputs (N=1000000 SEED=0) to everything that reads bytes
	FUZZ_N=$(N) FUZZ_SEED=$(SEED) nice -n 19 $(BIN)/python -m pytest tests/fuzz -p no:randomly --timeout=7200

# SEED is the first life's, LIVES how many follow; BUG plants one of tests/sim/bugs.py.
LIVES ?= 1000
sim: dev ## Live simulated lives: make sim SEED=0 LIVES=1000
	PYTHONPATH=tests $(BIN)/python -m sim --seed $(SEED) --lives $(LIVES) $(if $(BUG),--bug "$(BUG)")

chaos: dev needs ## Break a service on three brokers 200 times in 20 minutes (as root)
	$(BIN)/python tests/chaos/run.py --faults 200 --minutes 20 --seed 1 --rate 5000 --json out/chaos.json

bench: dev needs ## Measure against the same work by hand, on real Kafka
	$(BIN)/python bench/bench.py

DATA ?= ../shared/data/public
quality: dev ## Measure detection on public series (DATA=folder) and write docs/quality.md
	$(BIN)/python bench/quality.py $(DATA)

kafka: dev needs ## Start Apache Kafka on 127.0.0.1:9092 (SECURITY=1: with TLS, SASL and rights)
	$(BIN)/python tools/kafka.py start .kafka/$(if $(SECURITY),secured --security,local)
	@echo "stop it: $(BIN)/python tools/kafka.py stop .kafka/$(if $(SECURITY),secured,local)"

docs: dev ## Write the pages that are made from the code
	$(BIN)/python -m raywatch.cluster.reference

format: dev ## Put files into the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv, caches and outputs
	rm -rf $(VENV) build out .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What tests want of the machine. Each line says what to install.
.PHONY: needs
needs:
	@missing=0; \
	need() { command -v "$$1" >/dev/null || [ -x "/usr/sbin/$$1" ] || { echo "error: $$1 is missing: install $$2"; missing=1; }; }; \
	need java "a JDK, 17 or newer (Debian: default-jdk-headless)"; \
	need mvn "Maven (Debian: maven)"; \
	need chromium "Chromium (Debian: chromium)"; \
	need sshd "an SSH server (Debian: openssh-server)"; \
	need rsync "rsync"; \
	need ip "iproute2"; \
	need gcc "gcc, for the clock that jumps (Debian: gcc libc6-dev)"; \
	need mkfs.ext4 "e2fsprogs, for the disk that is full"; \
	[ $$missing = 0 ] || exit 2
