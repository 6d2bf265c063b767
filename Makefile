# make train     train a GPT on the sample story; ARGS="model=tiny trainer.max_epochs=2" changes settings
# make test      run the tests that a change normally needs; ARGS="-k resume" passes options to pytest
# make test-all  run all tests, also two hosts, torchrun, long sweeps, the browser and the guide's commands
# make check-gpu check on one GPU what the guide says of GPUs, in a few minutes, and measure the training
# make coverage  run all tests, and show the lines that they do not run
# make messages  run the tests of make test, and list all messages and whether a test makes them
# make check     lint, and check formatting and types
# make docs      build the guide in build/docs
# make bench     compare speed and memory with the book's code and transformers; ARGS="train-124m --rounds 5"

PYTHON ?= python3
VENV := .venv
# uv installs several times faster than pip.
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
CREATE = $(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
INSTALL = $(UV) pip install --quiet --python $(VENV)/bin/python -c constraints.txt
else
CREATE = $(PYTHON) -m venv $(VENV)
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
endif

PYTEST := $(VENV)/bin/python -m pytest
# One process per core, and then the tests that measure time or need all cores by themselves. Code 5: no test was selected.
# What fails beside other tests runs once more alone, since a busy machine can be too slow for a test; both results are printed.
define run_tests
	@failed=0; code=0; \
	$(PYTEST) -n logical --maxprocesses 8 --dist worksteal -m "not serial$(1)" $(ARGS) || code=$$?; \
	if [ $$code = 1 ]; then \
	  echo "Running the tests that failed once more, one at a time:"; code=0; \
	  $(PYTEST) --last-failed --last-failed-no-failures none --maxfail 5 -v -m "not serial$(1)" $(ARGS) || failed=1; \
	fi; \
	[ $$code = 0 ] || [ $$code = 5 ] || failed=1; \
	$(PYTEST) -m "serial$(1)" $(ARGS) || [ $$? = 5 ] || failed=1; \
	exit $$failed
endef

.PHONY: train test test-all check-gpu coverage messages check docs bench

train: $(VENV)/installed
	@$(VENV)/bin/python train.py $(ARGS)

test: $(VENV)/installed-dev
	$(call run_tests, and not slow)

test-all: $(VENV)/installed-dev
	$(call run_tests,)

check-gpu: $(VENV)/installed-dev
	$(PYTEST) -m gpu tests/gpu -rA --tb=short -n 4 --dist worksteal $(ARGS)
	@$(VENV)/bin/python -m benchmarks train-124m --rounds 1

coverage: $(VENV)/installed-dev
	-@$(PYTEST) -n logical --maxprocesses 8 --dist worksteal --cov --cov-report=json:build/coverage.json $(ARGS)
	@$(VENV)/bin/python -m tests.helpers.coverage_by_folder build/coverage.json

messages: $(VENV)/installed-dev
	@rm -rf build/messages
	-@RECORD_MESSAGES=build/messages $(PYTEST) -q -n logical --maxprocesses 8 --dist worksteal -m "not slow" $(ARGS)
	@$(VENV)/bin/python -m tests.helpers.error_table build/messages

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/installed-docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet --clean
	@echo "The guide is in build/docs/index.html."

bench: $(VENV)/installed-dev
	@$(VENV)/bin/python -m benchmarks $(ARGS)

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("gpt-pretrain needs Python 3.11 or newer. Name one with PYTHON=python3.12.")'
	$(CREATE)
	$(INSTALL) -e ".[serve]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) -e ".[dev]"
	$(INSTALL) --no-deps llms-from-scratch  # its dependencies include TensorFlow
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(INSTALL) -e ".[docs]"
	@touch $@
