# Everything a fresh clone needs, with python3 (3.11 or newer) alone.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test test-fast lint clean

demo:
	launch/local.sh configs/digits.py --resume

test: .venv/installed-test
	$(RUN) -m pytest

test-fast: .venv/installed-test
	$(RUN) -m pytest -m "not slow"

lint: .venv/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf .venv .cache

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

# PyPI's torch brings gigabytes of CUDA packages; its index of CPU builds does not. Where that index
# cannot be reached, whatever pip finds must do.
TORCH := --retries 0 --timeout 15 --quiet $(shell grep '^torch' requirements-test.txt)

.venv/installed-test: .venv/installed requirements-test.txt
	$(RUN) -m pip install $(TORCH) --index-url https://download.pytorch.org/whl/cpu 2>/dev/null || \
	  $(RUN) -m pip install $(TORCH)
	$(RUN) -m pip install --quiet -r requirements-test.txt
	touch $@
