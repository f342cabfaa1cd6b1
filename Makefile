# demo, test, numeric, chaos, check, bench, proof and docs make .venv on first use; each installs no more than it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST = $(BIN)/python -m pytest -n 2 --dist loadfile
OTHER_KERNELS = ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test numeric chaos check bench proof docs

# A graph of the photographs that come with scikit-image, pictures of tasks drawn from it, and its report. No weights, no
# downloads.
demo: $(VENV)/.core
	$(BIN)/graphbuild run --source sample --out sample-graph
	$(BIN)/graphbuild sample sample-graph --count 6 --out sample-graph-grids
	$(BIN)/graphbuild report sample-graph --out report.html
	@echo "open report.html, and look further with: $(BIN)/graphbuild view sample-graph --open"

test: $(VENV)/.all
	$(TEST)

# What compares floats, with the kernels of another processor, and with two threads instead of one.
numeric: $(VENV)/.all
	$(OTHER_KERNELS) $(TEST) -m numeric
	OMP_NUM_THREADS=2 $(TEST) -m numeric

# A cluster whose workers, nodes and driver are killed twenty times makes the graph of an undisturbed process. Without
# other tests beside it: it counts processes that start and die.
chaos: $(VENV)/.all
	$(BIN)/python tests/bench/bench_chaos.py --kills 20 --photos 30

check: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TEST)

# The site, in site/. A link, picture or name that does not exist is an error.
docs: $(VENV)/.all
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# One table of all benchmarks; benchmarks.json keeps it with facts of the machine, for graphbuild bench compare.
bench: $(VENV)/.all
	$(BIN)/python tests/bench/run.py

# In-context learning in small; hours. See docs/proof.md.
proof: $(VENV)/.all
	$(BIN)/python tests/bench/bench_proof.py --full --out incontext-proof

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[view]'
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[all]'
	@touch $(VENV)/.core $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
