SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PORT ?= 8000
TORCH ?= auto
VENV := .venv
READY := $(VENV)/.ready
CLIENTS := .venv-clients
CREWAI := .venv-crewai
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/pytest

.PHONY: help setup serve test test-slow test-clients test-peers test-sanitized test-neon bench force

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything (TORCH=cpu|cuda forces that build of torch)

# torch comes first: whatever names it as a dependency then leaves the chosen build alone.
$(READY): pyproject.toml constraints.txt CMakeLists.txt dev/install-torch $(wildcard csrc/* csrc/common/*) \
          $(if $(filter auto,$(TORCH)),,force)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "openk2 needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $$(dev/install-torch --is-installed $(PYTHON) && echo --system-site-packages) $(VENV)
	dev/install-torch $(VENV)/bin/python $(TORCH)
	$(VENV)/bin/python -m pip install --quiet --editable '.[local,dev]' --constraint constraints.txt
	$(VENV)/bin/openk2 doctor
	touch $@

serve: setup ## serve k2-nano on http://127.0.0.1:8000 (PORT=)
	$(VENV)/bin/openk2 serve --port $(PORT)

test: setup ## lint, types and every fast test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTEST) -n 2 -m 'not slow and not clients and not peers'

test-slow: setup ## the tests that take minutes
	$(PYTEST) -m slow

test-clients: $(CLIENTS)/.ready $(CREWAI)/.ready ## third-party clients against the server, in environments of their own
	OMP_NUM_THREADS=1 $(CLIENTS)/bin/pytest tests/clients -m clients --ignore tests/clients/test_crewai.py
	OMP_NUM_THREADS=1 $(CREWAI)/bin/pytest tests/clients/test_crewai.py -m clients

# The base install: what the clients see of openk2 needs neither torch nor a compiler.
$(CLIENTS)/.ready: pyproject.toml dev/clients.txt dev/clients-npm.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --requirement dev/clients.txt
	$(CLIENTS)/bin/python -m pip install --quiet --editable . --config-settings=wheel.cmake=false
	if command -v npm > /dev/null; then xargs npm install --prefix $(CLIENTS)/node --no-fund --no-audit < dev/clients-npm.txt; \
	else echo "no npm here: Claude Code, Codex and the Vercel AI SDK are left out"; fi
	touch $@

$(CREWAI)/.ready: pyproject.toml dev/clients-crewai.txt
	test -x $(CREWAI)/bin/python || $(PYTHON) -m venv $(CREWAI)
	$(CREWAI)/bin/python -m pip install --quiet --requirement dev/clients-crewai.txt
	$(CREWAI)/bin/python -m pip install --quiet --editable . --config-settings=wheel.cmake=false
	touch $@

test-sanitized: setup ## the kernels' tests under the address and undefined-behaviour sanitizers of g++
	cmake -S . -B build/sanitized -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSKBUILD_PROJECT_NAME=openk2 \
	  -DPython_EXECUTABLE=$(CURDIR)/$(VENV)/bin/python \
	  -DCMAKE_CXX_FLAGS='-fsanitize=address,undefined -fno-sanitize-recover=undefined' > /dev/null
	cmake --build build/sanitized > /dev/null
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so):$$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  NATIVE_BUILD=build/sanitized OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -p tests.support.another_build \
	  tests/ops tests/models -m 'not slow'

test-neon: setup ## the kernels' tests on 64-bit Arm, cross-built and emulated
	dev/test-neon $(CURDIR)/$(VENV)/bin/python tests/ops tests/models/test_packed_decode.py -m 'not slow'

test-peers: setup ## comparisons with other engines
	$(PYTEST) tests/peers -m peers

bench: setup ## speed of k2-nano and of a larger random model
	$(VENV)/bin/python benchmarks/training_speed.py
	$(VENV)/bin/python benchmarks/engine_speed.py
	$(VENV)/bin/python benchmarks/server_speed.py
