# One command per chore, the same for people and CI. Each first creates a .venv in this folder with the versions of
# constraints.txt, unless neither that file nor a pyproject.toml has changed since.
#
# PYTHON=/path/to/python3.12      another interpreter (3.11 or newer)
# FAULT_RUNS=/path/to/runs        where train-faults puts its runs, outside of git
# PYTEST="-n0 -k boundaries"      arguments of pytest, in place of `-n 2`
# On Linux without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves gigabytes of CUDA packages.

PYTHON ?= python3
PYTEST ?= -n 2
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready
PIP := $(PY) -m pip --disable-pip-version-check install -q -c constraints.txt
SCRIPTS := $(wildcard benchmarks/*.py examples/*.py)
# bench_detection.py needs an hour of trainings first: see train-faults.
BENCHMARKS := $(filter-out benchmarks/bench_detection.py,$(wildcard benchmarks/bench_*.py))
FAULT_RUNS ?= ../fault-runs
TRACKERS := .venv-trackers
PAGES := $(wildcard docs/write_*.py)

.PHONY: help demo test test-slow test-kernels lint fix docs bench trackers train-faults bench-detection setup clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

demo: $(READY)  ## record two real PPO runs, replay rules over them, write demo/report.html
	$(VENV)/bin/esper demo --out demo

test: lint  ## lint, then the tests (all but the slow ones)
	$(PY) -m pytest $(PYTEST) -m "not slow"

test-slow: $(READY)  ## the crash, soak, packaging and large property tests
	$(PY) -m pytest $(PYTEST) -m slow

test-kernels: $(READY)  ## the tests that train, with the kernels of a CPU without vector instructions
	ATEN_CPU_CAPABILITY=default $(PY) -m pytest $(PYTEST) -m "trains and not slow"

lint: $(READY)  ## ruff, mypy, the import boundaries, generated pages up to date
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(if $(SCRIPTS),$(PY) -m mypy $(SCRIPTS) benchmarks/faults/*.py)
	$(VENV)/bin/lint-imports
	@set -e; for script in $(PAGES); do $(PY) $$script --check; done

fix: $(READY) docs  ## format the code and write the generated pages
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(READY)  ## write the generated pages
	@set -e; for script in $(PAGES); do $(PY) $$script; done

bench: $(READY) trackers  ## measure; the results go to benchmarks/results
	@$(if $(BENCHMARKS),,echo "There are no benchmarks yet: nothing matches benchmarks/bench_*.py.")
	@set -e; for script in $(BENCHMARKS); do echo "$$script"; $(PY) $$script; done

train-faults: $(READY)  ## train the runs of the detection benchmark into FAULT_RUNS: an hour on two cores, resumable
	$(PY) benchmarks/train_faults.py --out $(FAULT_RUNS)

bench-detection: $(READY)  ## judge detection on FAULT_RUNS; the result goes to benchmarks/results
	$(PY) benchmarks/bench_detection.py $(FAULT_RUNS)

trackers: $(TRACKERS)/ready  ## the environment with the trackers that the benchmarks compare with

# On top of the project's own packages: only what differs is installed. A benchmark says what it could not measure.
$(TRACKERS)/ready: $(READY) benchmarks/trackers.txt
	rm -rf $(TRACKERS)
	$(PYTHON) -m venv $(TRACKERS)
	$(PY) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	    > "$$($(TRACKERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(TRACKERS)/bin/python -m pip --disable-pip-version-check install -q -r benchmarks/trackers.txt && touch $@ \
	    || echo "The trackers could not be installed; the benchmarks go on without them." >&2

setup: $(READY)  ## create the .venv, nothing else

clean:  ## remove everything that make created: the .venv, the demo, caches
	rm -rf $(VENV) $(TRACKERS) demo build dist recorder/build recorder/dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	    .import_linter_cache *.egg-info recorder/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is removed first and written last: the next make repeats a setup that failed.
$(READY): constraints.txt pyproject.toml recorder/pyproject.toml
	@rm -f $@
	@command -v $(PYTHON) >/dev/null || { \
	    echo "There is no $(PYTHON). Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Esper Analytics needs Python 3.11 or newer; " \
	    "$(PYTHON) is %d.%d. Name another: make PYTHON=/path/to/python3" % v[:2])'
	@echo "Setting up $(VENV); the first time this takes a minute or two." >&2
	@$(PY) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) setuptools torch==2.13.0
	$(PIP) --no-build-isolation torch==2.13.0 -e "./recorder[demo]" -e ".[dev]"
	@touch $@
