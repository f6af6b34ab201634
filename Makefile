# SPDX-License-Identifier: GPL-3.0-or-later
#
# Start here: make help. Each target installs what it needs; what is already there takes no time.

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# Older than pyproject.toml: the environment is out of date.
INSTALLED := $(VENV)/.installed

# Only root can make network namespaces; without them the demo uses the loopback.
ROOT_COMMANDS := $(if $(filter 0,$(shell id -u)),ip iptables)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: system-packages $(INSTALLED) ## run Ansible through tunnels to three devices behind NAT; KEEP=1 keeps them running
	@$(BIN)/python -m demo $(if $(KEEP),--keep) $(if $(LOOPBACK),--loopback)

.PHONY: demo-stop
demo-stop: $(INSTALLED) ## stop and remove what KEEP=1 kept running
	@$(BIN)/python -m demo stop

.PHONY: test
test: system-packages test-packages $(INSTALLED) ## run the tests; ARGS="-k hub -n0" goes to pytest
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/run-tests $(ARGS)

# Without --dist loadfile: a file has only a few of them, and they take long.
.PHONY: test-nightly
test-nightly: system-packages test-packages $(INSTALLED) ## run the tests that take too long for every change
	@PATH="$(CURDIR)/$(BIN):$$PATH" \
		$(BIN)/pytest --numprocesses $$((2 * $$(nproc))) -m "nightly and not alone" tests/integration $(ARGS)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest --numprocesses 0 -m "nightly and alone" tests/integration $(ARGS)

PYTHON := python3
DEPENDENCIES := newest

.PHONY: test-unit
test-unit: ## run the unit tests on PYTHON=python3.9; DEPENDENCIES=lowest installs the oldest ones allowed
	@scripts/test-unit $(PYTHON) $(DEPENDENCIES) $(ARGS)

.PHONY: coverage
coverage: $(INSTALLED) ## run the unit tests; fail if a module's own tests cover less than 85 % of it
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/own_coverage.py --numprocesses $$(nproc) $(ARGS)

.PHONY: test-role
test-role: system-packages test-packages $(INSTALLED) ## test the agent role on a fresh Debian; needs root, takes minutes
	@scripts/system-packages debootstrap
	@TEST_ROLE=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest tests/integration/test_agent_role.py $(ARGS)

.PHONY: test-fleet
test-fleet: system-packages test-packages $(INSTALLED) ## test twenty devices with agents, and one without network for a minute
	@TEST_FLEET=20 TEST_OFFLINE=60 PATH="$(CURDIR)/$(BIN):$$PATH" \
		$(BIN)/pytest -s --timeout 600 tests/integration/test_fleet.py tests/integration/test_device_offline.py $(ARGS)

.PHONY: test-accounts
test-accounts: system-packages test-packages $(INSTALLED) ## test 200 commands on two accounts in two regions, and four operators on one device
	@TEST_ACCOUNTS_COMMANDS=200 TEST_OWNERS_SECONDS=60 PATH="$(CURDIR)/$(BIN):$$PATH" \
		$(BIN)/pytest -s --timeout 900 tests/integration/test_two_accounts.py tests/integration/test_owners.py $(ARGS)

# Most of them wait, so they run in parallel. Those that measure run alone.
.PHONY: test-faults
test-faults: system-packages test-packages $(INSTALLED) ## test faults that last: stopped processes, vanished peers, a flapping network, floods
	@TEST_FAULTS=1 PATH="$(CURDIR)/$(BIN):$$PATH" \
		$(BIN)/pytest -rP --numprocesses 4 --dist load -m "not alone" tests/trials $(ARGS)
	@TEST_FAULTS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -rP --numprocesses 0 -m alone tests/trials $(ARGS)

.PHONY: test-report
test-report: system-packages test-packages $(INSTALLED) ## test the diagnosis of twelve broken devices; needs root, takes minutes
	@scripts/system-packages debootstrap chromium
	@TEST_REPORT=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest tests/integration/test_diagnose_fleet.py $(ARGS)

.PHONY: test-conformance
test-conformance: system-packages test-packages $(INSTALLED) ## compare the connection plugin with plain ssh, on every supported ansible-core
	@set -e; for release in $(ANSIBLE_CORES); do \
		bin=$$(scripts/ansible-core $$release); \
		echo "== ansible-core $$release"; \
		TEST_CONFORMANCE=1 TEST_ANSIBLE_PYTHON="$$bin/python" PATH="$(CURDIR)/$(BIN):$$PATH" \
			$(BIN)/pytest tests/conformance $(ARGS); \
	done

FUZZ_SECONDS := 600
CORPUS := .cache/fuzz

.PHONY: fuzz
fuzz: $(INSTALLED) ## fuzz the protocol for FUZZ_SECONDS (600)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install -qq --disable-pip-version-check --group fuzz
	@mkdir -p $(CORPUS)/found
	@PYTHONPATH=tests $(BIN)/python -m fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=512 \
		-print_final_stats=1 -artifact_prefix=$(CORPUS)/found/ $(CORPUS)/corpus

SOAK_MINUTES ?= 60

.PHONY: soak
soak: system-packages test-packages $(INSTALLED) ## run twenty devices with a fault each minute, for SOAK_MINUTES (60); needs root
	@PYTHONPATH=tests SOAK_MINUTES=$(SOAK_MINUTES) PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m soak

# Also in scripts/ansible-core, meta/runtime.yml, and tests/sanity/.
ANSIBLE_CORES := 2.18 2.19 2.20 2.21

.PHONY: bench
bench: system-packages test-packages $(INSTALLED) ## compare the speed of tunnels with stunnel and ssh -L; ARGS="ansible --hosts 10"
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/python -m pip install -qq --disable-pip-version-check --group bench
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## check style, types, rooms, and Ansible's rules
	@scripts/system-packages git
	@$(MAKE) --jobs 2 --keep-going --output-sync=target lint-sanity lint-ansible lint-mypy lint-ruff lint-changelog lint-rooms

# The longest first.
.PHONY: lint-sanity lint-ansible lint-mypy lint-ruff lint-changelog lint-rooms
lint-sanity:
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/ansible-sanity
lint-ansible:
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/ansible-lint
lint-mypy:
	$(BIN)/mypy
lint-ruff:
	$(BIN)/ruff check
	$(BIN)/ruff format --check
lint-changelog:
	$(BIN)/antsibull-changelog lint
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/changelog --check
lint-rooms:
	$(BIN)/python scripts/architecture.py --check

.PHONY: rooms
rooms: $(INSTALLED) ## print the package's rooms and the imports between them
	@$(BIN)/python scripts/architecture.py

.PHONY: docs
docs: ## build the documentation site in build/docs
	@scripts/system-packages python
	@scripts/docs-site

.PHONY: licences
licences: $(INSTALLED) ## check that each file has a licence (REUSE)
	@$(BIN)/python -c 'import reuse' 2>/dev/null || $(BIN)/python -m pip install -qq --disable-pip-version-check --group licences
	@$(BIN)/reuse lint --quiet || $(BIN)/reuse lint

.PHONY: galaxy
galaxy: ## check the collection's tarball with Galaxy's importer
	@scripts/system-packages git python
	@scripts/galaxy-importer

.PHONY: changelog
changelog: $(INSTALLED) ## generate CHANGELOG.md from changelogs/fragments/
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/changelog

# Needs a Python for each release: 3.11 to 3.13 for 2.18 and 2.19, 3.12 or newer for later ones.
.PHONY: sanity-all
sanity-all: ## run ansible-test sanity on every supported ansible-core; takes minutes for each
	@scripts/system-packages git
	@set -e; for release in $(ANSIBLE_CORES); do \
		bin=$$(scripts/ansible-core $$release); \
		echo "== ansible-core $$release"; \
		PATH="$$bin:$$PATH" scripts/ansible-sanity; \
	done

# Debian's protobuf-compiler (3.21) on purpose: the code that it generates does not check the version of the runtime,
# and works with protobuf 4.25 to 7. The code of a newer protoc needs a runtime at least as new.
.PHONY: proto
proto: ## regenerate the protobuf code
	@scripts/system-packages protoc
	protoc -I . --python_out=. --pyi_out=. tunnelproxy/protocol/message.proto

.PHONY: release
release: $(INSTALLED) ## build the files of a release, TAG=v0.1.0, in build/release
	@$(BIN)/python -c 'import build' 2>/dev/null || $(BIN)/python -m pip install -qq --disable-pip-version-check --group release
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/release $(TAG)

.PHONY: clean
clean: ## remove everything that make has built or installed here
	@if [ -e .demo/cleanup.json ] && [ -x $(BIN)/python ]; then $(BIN)/python -m demo stop; fi
	rm -rf $(VENV) .cache .demo .ansible .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info *.tar.gz tests/output
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: system-packages
system-packages:
	@scripts/system-packages python sshd ssh ssh-keygen curl mosquitto $(ROOT_COMMANDS)

# Needed only by tests.
.PHONY: test-packages
test-packages:
	@scripts/system-packages dropbear faketime haproxy openssl sshpass strace stunnel sudo tinyproxy

$(INSTALLED): pyproject.toml
	@scripts/system-packages python
	@echo "Setting up $(VENV) (a minute or two, the first time) …"
	@python=$$(scripts/find-python) && { [ -x $(BIN)/python ] || $$python -m venv $(VENV); }
	@# --group needs pip 25.1.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[agent,hub,service,speed]' --group lint --group test
	@touch $@
