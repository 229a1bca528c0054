# Every target sets up its own .venv with the versions of constraints.txt. PYTHON=... uses that
# interpreter as it is instead: no .venv, nothing installed, no network.
VENV := .venv
BASE_PYTHON ?= python3
CSRC := $(shell find csrc -type f)

export BUDGET_S PHASES OUT DRY

ifdef PYTHON
RUN := $(PYTHON)
DEV :=
DALI :=
BENCH :=
PARALLEL :=
SPREAD :=
else
RUN := $(VENV)/bin/python
DEV := $(VENV)/.dev
DALI := $(VENV)/.dali
BENCH := $(VENV)/.bench
PARALLEL := -n 2 --dist loadfile
SPREAD := -n 2 --dist worksteal
# Two processes of one thread each: what needs more threads sets them itself.
test quick: export OMP_NUM_THREADS ?= 1
endif

# Threads that wait for others sleep soon instead of keeping the cores: see training/__init__.py.
ifeq ($(GOMP_SPINCOUNT)$(OMP_WAIT_POLICY),)
test quick: export GOMP_SPINCOUNT := 1000
endif

.DEFAULT_GOAL := help
.PHONY: help demo test quick lint docs gallery gpu bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

demo: $(DEV)  ## render videos, train CARL on them, evaluate, write the report; minutes on a CPU
	$(RUN) -m training.demo

test: $(DEV) $(DALI)  ## every test that this machine can run
	$(RUN) -m pytest $(PARALLEL)

# What compiles, interprets kernels or starts processes has a marker: tests/test_layers.py.
quick: $(DEV)  ## values and errors of the ops on small shapes, under a minute: at each save
	$(RUN) -m pytest $(SPREAD) -q tests/ops tests/test_compat_*.py \
		-m "not (interpreter or compile or process or sweep or slow or gpu)"

lint: $(DEV)  ## ruff; mypy on what users import
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# Without Material's announcement of its successor.
docs: export NO_MKDOCS_2_WARNING := 1

docs: $(DEV)  ## the site into build/site, links checked; docs/api.md has to be fresh
	$(RUN) -m docs.tools.api --check
	$(RUN) -m mkdocs build --quiet
	@echo "build/site/index.html; with its search: $(RUN) -m http.server -d build/site"

gallery: $(DEV)  ## run docs/gallery; write its output and pictures, the drawings and docs/api.md
	$(RUN) -m docs.tools.api
	$(RUN) -m docs.tools.drawings
	$(RUN) -m docs.tools.gallery

# BUDGET_S, PHASES, OUT and DRY, of make's command line or of the environment, are read by the
# command. Its status is of smoke and tests, once everything else has run too.
gpu: $(BENCH)  ## on a GPU: build, smoke, tests, times, tiles in 7 minutes; DRY=1 rehearses on a CPU
	$(RUN) -m benchmarks.gpu

bench: $(BENCH)  ## the benchmarks alone
	$(RUN) -m pytest benchmarks

clean:  ## remove .venv and what was built
	rm -rf $(VENV) build dist *.egg-info fastseq/_C.*.so

$(VENV)/bin/python:
	@echo "setting up $(VENV) from $(BASE_PYTHON)"
	$(BASE_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --upgrade pip

# pip resolves an extra together with torch==2.13.0 in one call. Requested alone, several of them
# would bring another torch.
$(VENV)/.dev: pyproject.toml constraints.txt setup.py $(CSRC) | $(VENV)/bin/python
	@echo "installing fastseq[dev] with the versions of constraints.txt (compiles csrc if nvcc is here)"
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

$(VENV)/.dali: $(VENV)/.dev
	@echo "installing fastseq[dali] (on Linux; elsewhere its tests are skipped)"
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e ".[dali]"
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "installing fastseq[bench]"
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e ".[bench]"
	@touch $@
