# Every target does its own set-up; needed beforehand: Python 3.11 or later, make, bash. Stamps in the
# environments make a second call start at once; `make clean` starts over.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
# One pip at a time, also under -j.
.NOTPARALLEL:
.SECONDEXPANSION:
.DEFAULT_GOAL := help

PYTHON ?= python3.11
ARGS ?=
FIGURES ?=
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet

# The environment's own tools come first: pytest finds buf, promtool and the server there.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

MODELS := $(patsubst export/models/%/,.models/%/1/manifest.json,$(wildcard export/models/*/))
EXPORTER := $(shell find export/unrolled_export -name '*.py' -not -path '*/training/*') proto/unrolled/v1/model_pb2.py
PROTOS := $(patsubst proto/%,%,$(wildcard proto/unrolled/v1/*.proto))
SERVICES := $(patsubst proto/%,%,$(shell grep --files-with-matches '^service ' proto/unrolled/v1/*.proto))

.PHONY: help serve test bench bench-cuda torture stubs fresh-stubs format clean
.PHONY: lint lint-style lint-format lint-types lint-imports lint-contract check-stubs

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile
	@echo 'serve, test, bench and torture pass ARGS on:  make test ARGS="-k session"'

# --- Running -----------------------------------------------------------------------------------

# `exec`: a signal to the server reaches it without a shell in between.
serve: .venv/.serve $(MODELS) ## Export the bundled models and serve them on 127.0.0.1:50051
	@echo 'Once event=serving names the addresses, from another terminal (with other ports, --server HOST:PORT):'
	@echo '    .venv/bin/unrolled complete --model shakespeare-lstm "ROMEO:"'
	@echo '    .venv/bin/unrolled chat --model shakespeare-lstm'
	@exec unrolled-server --models .models --host 127.0.0.1 --port 50051 --metrics-port 9464 --data-dir .state $(ARGS)

# `convert` always writes a new version, so the old one goes first; the manifest is written last.
.models/%/1/manifest.json: $$(wildcard export/models/$$*/*) $(EXPORTER) | .venv/.serve
	rm -rf .models/$*
	unrolled-export convert export/models/$* --output .models

test: .venv/.test .venv/.programs ## Run all tests
	pytest $(ARGS)

bench: .venv/.test .venv/.programs ## Measure, into .bench/; with FIGURES="served_over ttft" only those
	PYTHONPATH=tests python -m bench --output .bench $(ARGS) $(FIGURES)

torture: .venv/.test .venv/.programs ## Kill servers under load, 200 times, and check what every restart serves
	PYTHONPATH=tests python -m torture --output .torture $(ARGS)

# `--prepare` writes only the graphs, for a machine that has a device and no onnx.
bench-cuda: .venv/.test ## Check and time a CUDA device in one call, into .bench/cuda/
	PYTHONPATH=tests python -m bench.cuda --output .bench/cuda $(ARGS)

# --- Checking ----------------------------------------------------------------------------------

lint: lint-style lint-format lint-types lint-imports lint-contract check-stubs ## Run all checks but tests

lint-style: .venv/.test
	ruff check

lint-format: .venv/.test
	ruff format --check

lint-types: .venv/.test
	mypy

lint-imports: .venv/.test
	lint-imports

# buf would fetch google/rpc/status.proto from its registry; protoc has it at hand.
lint-contract: .venv/.test .venv-stubs/.ready
	$(PROTOC) --include_imports --include_source_info --descriptor_set_out=/dev/stdout $(PROTOS) \
		| buf lint - --config proto/buf.yaml --path unrolled

format: .venv/.test ## Format and sort the code
	ruff check --fix --select I
	ruff format

# --- Generated stubs ---------------------------------------------------------------------------

PROTOC = .venv-stubs/bin/python -m grpc_tools.protoc -I proto -I .venv-stubs/protos \
	--plugin=.venv-stubs/bin/protoc-gen-mypy_grpc
FRESH := .venv-stubs/fresh

# error.proto has no service, and so no _pb2_grpc files.
fresh-stubs: .venv-stubs/.ready
	rm -rf $(FRESH) && mkdir $(FRESH)
	$(PROTOC) --python_out=$(FRESH) --pyi_out=$(FRESH) $(PROTOS)
	$(PROTOC) --grpc_python_out=$(FRESH) --mypy_grpc_out=quiet:$(FRESH) $(SERVICES)

stubs: fresh-stubs ## Regenerate proto/unrolled/v1/*_pb2*
	rm -f proto/unrolled/v1/*_pb2*
	cp $(FRESH)/unrolled/v1/* proto/unrolled/v1/

check-stubs: fresh-stubs ## Fail if the checked-in stubs are not what the contract gives
	diff --brief --recursive --exclude='*.proto' --exclude=__init__.py --exclude=__pycache__ \
		$(FRESH)/unrolled/v1 proto/unrolled/v1 || { echo 'stale stubs: run make stubs' >&2; exit 1; }

# --- Set-up ------------------------------------------------------------------------------------

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.serve: requirements/serve.txt requirements/server.txt pyproject.toml | .venv/bin/python
	@echo 'Installing what the server needs into .venv'
	$(PIP) --requirement requirements/serve.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

.venv/.torch: | .venv/bin/python
	@echo 'Installing torch into .venv'
	$(PIP) torch==2.13.0
	touch $@

.venv/.test: requirements/test.txt .venv/.torch .venv/.serve
	@echo 'Installing what tests and checks need into .venv'
	$(PIP) --requirement requirements/test.txt
	touch $@

.venv/.programs: .ci/get-programs | .venv/bin/python
	.ci/get-programs .venv/bin && touch $@ || true  # the tests that need them skip

.venv-stubs/.ready: requirements/stubs.txt
	@echo 'Installing the stub generator into .venv-stubs'
	$(PYTHON) -m venv .venv-stubs
	.venv-stubs/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	ln -sfn "$$(.venv-stubs/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" .venv-stubs/protos
	touch $@

clean: ## Remove environments, exported models and caches
	rm -rf .venv .venv-stubs .models .bench .torture .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
