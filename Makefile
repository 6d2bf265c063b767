# make train   train a GPT on the sample story; ARGS="model=tiny trainer.max_epochs=2" passes settings on
# make test    run the tests; ARGS="-k resume" passes options on
# make check   lint, format and type checks
# make bench   speed and memory beside the book's code and transformers; ARGS="train-124m --rounds 5"

PYTHON ?= python3
VENV := .venv

.PHONY: train test check bench

train: $(VENV)/ready
	@$(VENV)/bin/python train.py $(ARGS)

test: $(VENV)/ready
	@$(VENV)/bin/python -m pytest $(ARGS)

check: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/ready
	@$(VENV)/bin/python -m benchmarks $(ARGS)

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one with PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt --no-deps llms-from-scratch  # its pins would bring tensorflow
	@touch $@
