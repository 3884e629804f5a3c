# Every target works on a fresh checkout: what is missing is set up first, in .venv, and nowhere else.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# A stamp is newer than pyproject.toml while the packages that it stands for are the ones installed.
DEV_STAMP   := $(VENV)/dev.stamp
GUEST_STAMP := $(VENV)/guest.stamp

PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet

# What each step of the set-up says.
STEP := @echo

FUZZ_SECONDS ?= 300
FUZZ_CORPUS  := .fuzz-corpus

# The fuzzer comes as a binary wheel for the most common machine alone.
FUZZ_BRIEFLY := if $(BIN)/python -c 'import atheris' 2>/dev/null; \
	then $(BIN)/python -m tests.fuzz.fuzz_kvmi $(FUZZ_CORPUS) -runs=5000 -verbosity=0; \
	else echo 'left out: there is no atheris for this machine'; fi

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help test check fuzz demo format clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: $(DEV_STAMP) ## set up .venv where needed, then formatting, lint, types and tests
	@$(run-checks)

check: STEP := @:
check: $(DEV_STAMP) ## the same checks, silent about the set-up
	@$(run-checks)

fuzz: $(DEV_STAMP) ## look for inputs that break the wire package, for FUZZ_SECONDS (300)
	$(BIN)/python -m tests.fuzz.fuzz_kvmi $(FUZZ_CORPUS) -max_total_time=$(FUZZ_SECONDS)

demo: $(GUEST_STAMP) ## a guest attacks itself, policyc stops it: no root, no KVM
	@$(BIN)/policyc demo
	@echo; echo 'policyc is $(BIN)/policyc; `. $(BIN)/activate` puts it on the PATH of this terminal'

format: $(DEV_STAMP) ## rewrite the sources as `make check` wants them
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean: ## remove caches and built packages
	rm -rf build dist policyc.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## also remove .venv and the guests that were built
	rm -rf $(VENV) .guests

define run-checks
set -e; \
echo '== ruff format'; $(BIN)/ruff format --check .; \
echo '== ruff check';  $(BIN)/ruff check .; \
echo '== mypy';        $(BIN)/mypy; \
echo '== pytest';      $(BIN)/pytest --quiet; \
echo '== fuzz';        $(FUZZ_BRIEFLY)
endef

# One sentence for each thing that a machine may lack, instead of what pip or venv would print.
define require-python
command -v $(PYTHON) >/dev/null || \
	{ echo 'policyc needs Python 3.11 or newer: install the Debian package python3 (or set PYTHON=...)' >&2; exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "policyc needs Python 3.11 or newer, and $$($(PYTHON) --version) is older: set PYTHON=..." >&2; exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo 'this Python cannot make a virtual environment: install the Debian package python3-venv' >&2; exit 1; }
endef

$(BIN)/python:
	@$(require-python)
	$(STEP) '== set-up: a virtual environment in $(VENV)'
	@$(PYTHON) -m venv --clear $(VENV)

$(DEV_STAMP): pyproject.toml $(BIN)/python
	$(STEP) '== set-up: the Python packages of policyc and of its checks'
	@$(PIP_INSTALL) --editable '.[guest,dev]'
	@touch $(GUEST_STAMP) $@

$(GUEST_STAMP): pyproject.toml $(BIN)/python
	$(STEP) '== set-up: the Python packages of policyc and of its guest'
	@$(PIP_INSTALL) --editable '.[guest]'
	@touch $@
