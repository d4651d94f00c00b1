# The two commands a newcomer needs: `make demo` and `make test`. Both set everything up first.
# `make fast` compiles the hot core.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# How many times as fast the compiled core makes the demo: see docs/speed.md.
FASTER := 3
IS_FAST = DYNOSIM_PURE=0 $(BIN)/python -c \
	'from dynosim.compiled import COMPILED, CORE; raise SystemExit(CORE.kind != COMPILED)'

# Hundreds of Python processes start here: compiled anew in each, our code would take minutes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: fast wheels demo test steady live mutants fuzz lint reference bench clean

# What `make demo` needs: the twin alone, 0.84 GB; more than half of it are aiconfigurator-core, which
# has the measured step times, and what that needs (pyarrow, scipy, pandas). Modules are compiled as
# they are imported, not all at once.
$(VENV)/.ready-demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "dynosim needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable .
	touch $@

# The rest: the live layer and what tests it.
$(VENV)/.ready: $(VENV)/.ready-demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

# The hot core, compiled, in the tree: several times as fast. Needs a C compiler and Python's headers.
fast: $(VENV)/.ready
	@$(IS_FAST) || { echo 'Compiling the core: one to two minutes.' && \
		DYNOSIM_COMPILE=1 $(BIN)/python setup.py --quiet build_ext --inplace; }
	$(BIN)/dynosim --version

# Into dist/: one with the core compiled for this Python, and one that runs on any.
wheels: $(VENV)/.ready
	DYNOSIM_COMPILE=1 $(BIN)/python -m build --wheel
	$(BIN)/python -m build

# Pure Python unless `make fast` came before: waits for no compiler. 8 of the file's 16 GPUs, so that
# the answer is there within three minutes, installing included.
demo: $(VENV)/.ready-demo
	$(BIN)/dynosim sweep sweeps/qwen.yaml --set constraints.gpu_budget=8 --out out/qwen --overwrite
	@$(IS_FAST) || echo '`make fast` makes this about $(FASTER) times as fast.'

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Ten runs of the same, every second one beside two busy loops. STEADY='--runs 4 tests/unit' for some
steady: $(VENV)/.ready
	$(BIN)/python tests/steadiness.py $(STEADY)

# Real vLLM on the CPU, AIPerf, etcd: see tests/live/install.sh for what this downloads.
live: $(VENV)/.ready
	tests/live/install.sh $(PYTHON)
	$(BIN)/python -m pytest -m live -p no:xdist --timeout=1200 --durations=10

# Whether the tests notice known mistakes; at most 20 minutes. MUTANTS='--only cluster' for some.
mutants: $(VENV)/.ready
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

# Property tests with a random seed, printed first, and ten times the examples. FUZZ='--seed 123'
fuzz: $(VENV)/.ready
	$(BIN)/python tests/fuzz.py $(FUZZ)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The generated part of docs/: the reference of all keys, and the JSON Schemas.
reference: $(VENV)/.ready
	$(BIN)/python -m dynosim.reference docs

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/replay.py

.PHONY: docs docs-update

# The documentation as a site, into out/site: index.html opens without a server or a network.
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo out/site/index.html

# What pages have from the program itself: the reference of commands, and what their examples print.
# DOCS=howto/calibrate.md for one page; those that measure in real time are run only so.
docs-update: $(VENV)/.ready
	$(BIN)/python tests/update_docs.py $(DOCS)

clean:
	rm -rf $(VENV) .venv-vllm .venv-aiperf out build dist *.egg-info
	rm -f dynosim/compiled/built.json *.so
	find dynosim -name '*.so' -delete
