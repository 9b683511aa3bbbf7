# One command each. All of them share .venv, which is made if absent; stamps in it make a re-run with nothing changed quick.
# PYTHON chooses the interpreter (3.11 to 3.13); ARGS goes to pytest: make test ARGS="-k audio"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# setuptools' note on folders named like the package: here that folder is the package
QUIET := PYTHONWARNINGS="ignore:Editable installation"

# Python's own start-up hook in tests/plugins refuses connections beyond this machine, in subprocesses and kernels too
OFFLINE := PYTHONPATH="$(CURDIR)/tests/plugins" SPEECHKIT_BLOCK_NETWORK=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

# A process for each core, at most four, of one thread each: threads that wait for one another spin, which costs tenfold
# where the cores are shared. A file of tests goes to one process; tests/plugins/stages.py has the order. What does not
# end by itself ends as a failure that shows where it stood.
WORKERS := --timeout=1800 --timeout-method=thread -n logical --maxprocesses=4 --dist=loadscope --no-loadscope-reorder
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help demo test lint format notebooks bench sync set-repo clean

help:
	@echo "make demo       install, then transcribe the embedded clips"
	@echo "make test       install everything, then ruff, mypy, pytest, every notebook, browser tests"
	@echo "make lint       ruff and mypy alone"
	@echo "make notebooks  execute every notebook, offline"
	@echo "make bench      measure: start-up, real-time factor, memory, batches"
	@echo "make sync       bring notebooks/*.ipynb and their .py twins into step (the newer one wins)"
	@echo "make set-repo URL=https://github.com/OWNER/NAME   write the address into badges and Setup cells"

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); speechkit wants Python 3.11 to 3.13. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-venv pyproject.toml
	@echo "installing speechkit into $(VENV): once, some minutes (PyTorch with CUDA is about 3 GB)"
	$(QUIET) $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[lab]"
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-venv pyproject.toml
	@echo "installing speechkit[all,test] into $(VENV): once, some minutes (about 8 GB on disk)"
	$(QUIET) $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all,test]"
	@touch $(VENV)/.stamp-demo $@

demo: $(VENV)/.stamp-demo
	@$(BIN)/speechkit demo

# one pytest run, so that its last line counts everything: ruff and mypy first, then the tests with notebooks and browser
test: $(VENV)/.stamp-test
	@$(OFFLINE) $(ONE_THREAD) $(BIN)/python -m pytest -p stages --durations=15 $(WORKERS) tests $(ARGS)

lint: $(VENV)/.stamp-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.stamp-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(VENV)/.stamp-test
	@$(OFFLINE) $(ONE_THREAD) $(BIN)/python -m pytest -p stages $(WORKERS) tests/notebooks $(ARGS)

bench: $(VENV)/.stamp-test
	@set -e; for file in kernels/bench/*.py; do echo "== $$file"; $(BIN)/python "$$file" $(ARGS); done

sync: $(VENV)/.stamp-test
	$(BIN)/jupytext --sync notebooks/*.ipynb

set-repo:
	@$(PYTHON) .ci/set_repo.py "$(URL)"

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find speechkit kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
