# blip-art: 'make demo' runs everything on drawn pictures, 'make test' tests it.
# All that is installed goes to .venv/ and .cache/ in this folder; 'make clean' removes it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PYTHON := $(VENV)/bin/python
REQUIREMENTS := requirements.txt requirements-dev.txt
# Named after the pins: other pins are another file, which is then not there yet.
INSTALLED := $(VENV)/installed-$(shell cat $(REQUIREMENTS) | sha256sum | cut -c1-12)

.PHONY: demo test check cluster-test cluster-soak image setup clean help

demo: setup ## the whole pipeline on drawn pictures; prints the path of its page
	@$(PYTHON) launch.py demo

test: setup ## all tests
	@$(PYTHON) -m pytest

check: $(INSTALLED) ## style (ruff, shellcheck) and types (mypy)
	@$(PYTHON) -m ruff check
	$(PYTHON) -m mypy
	if command -v shellcheck >/dev/null; then
	    shellcheck .ci/* singularity/*.sh slurm/*.s*
	fi

cluster-test: setup ## tests on a real Slurm with a real Apptainer: needs root and .ci/packages.sh
	@$(PYTHON) -m pytest tests/cluster

cluster-soak: setup ## each way a job can be stopped, five times; half an hour
	@BLIP_ART_SOAK=5 $(PYTHON) -m pytest tests/cluster/test_runs.py -k "signal or limit or preempt or dead"

image: $(INSTALLED) ## the image that jobs run in, blip_art.sif; needs Apptainer
	@$(PYTHON) launch.py image build

setup: $(INSTALLED) ## virtual environment, pinned packages, CoreNLP; seconds when done before
	@$(PYTHON) -m blip_art.score fetch

clean: ## remove what was installed and cached; runs/ and data/ stay
	@rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

# /usr/bin/python3 first: an interpreter below somebody's home cannot be run by other users.
# 'incomplete' stays behind when an install is interrupted; the environment is then made anew.
$(INSTALLED): $(REQUIREMENTS)
	@python= bare=
	for candidate in /usr/bin/python3 python3 python3.11 python3.12 python3.13; do
	    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
	    if "$$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
	        python=$$candidate; break
	    fi
	    bare=$$candidate
	done
	if [ -z "$$python" ]; then
	    echo "error: $${bare:-no Python 3.11 or newer found;}$${bare:+ cannot make virtual" \
	         "environments;} on Debian: apt install python3 python3-venv" >&2
	    exit 2
	fi
	if [ -e $(VENV)/incomplete ] || ! $(PYTHON) -m pip --version >/dev/null 2>&1; then
	    echo "making $(VENV) with $$python"
	    "$$python" -m venv --clear $(VENV)
	fi
	touch $(VENV)/incomplete
	echo "installing the pinned packages (8 GB on disk, some minutes)"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$(REQUIREMENTS))
	rm -f $(VENV)/incomplete $(VENV)/installed-*
	touch $@

.ONESHELL:
