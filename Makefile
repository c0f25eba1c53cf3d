# Everything a fresh clone needs, with python3 (3.11 or newer) alone.
PYTHON ?= python3
RUN := .venv/bin/python
RUNS ?= runs

.PHONY: demo demo-sd test test-fast lint clean

demo:
	launch/local.sh configs/digits.py --resume

# Stable Diffusion the whole way, with a tiny teacher of random weights: distil, draw, export, and
# compare the export with the stock pipeline. torch makes the teacher and runs the stock pipeline.
demo-sd: .venv/installed-test
	$(RUN) tests/support/tiny_stable_diffusion.py $(RUNS)/tiny_teachers/sd15 --family sd15
	launch/local.sh configs/sd.py:tiny --resume --workdir $(RUNS)/tiny_sd \
	  --config.teacher.path=$(RUNS)/tiny_teachers/sd15
	$(RUN) -m slam_jax sample --model $(RUNS)/tiny_sd --prompt "a lighthouse by the sea" \
	  --out $(RUNS)/tiny_sd/lighthouse.png
	$(RUN) -m slam_jax export --workdir $(RUNS)/tiny_sd --out $(RUNS)/tiny_sd_export --verify

test: .venv/installed-test
	$(RUN) -m pytest -n 2 --dist worksteal

test-fast: .venv/installed-test
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

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
