# Everything that a fresh clone needs, with python3 (3.11 or newer) alone.
PYTHON ?= python3
RUN := .venv/bin/python
RUNS ?= runs
JOBS ?= 2
PYTEST = -m pytest -n $(JOBS) --dist worksteal
FAST := -m "not slow and not nightly and not browser"

.PHONY: help demo demo-sd demo-emoji test test-fast test-browser test-all test-oldest test-newest docs lint typecheck clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

demo: ## digits on a CPU: teacher, student, pictures and a report, in minutes
	launch/local.sh configs/digits.py --resume

# torch makes the teacher and runs the stock pipeline.
demo-sd: .venv/installed-test ## the whole way of a Stable Diffusion, with a tiny teacher of random weights
	$(RUN) tests/support/tiny_stable_diffusion.py $(RUNS)/tiny_teachers/sd15 --family sd15
	launch/local.sh configs/sd.py:tiny --resume --workdir $(RUNS)/tiny_sd \
	  --config.teacher.path=$(RUNS)/tiny_teachers/sd15
	$(RUN) -m slam_jax sample --model $(RUNS)/tiny_sd --prompt "a lighthouse by the sea" \
	  --out $(RUNS)/tiny_sd/lighthouse.png
	$(RUN) -m slam_jax export --workdir $(RUNS)/tiny_sd --out $(RUNS)/tiny_sd_export --verify

demo-emoji: .venv/installed ## emoji in 1 to 8 steps: distils the text-to-image teacher in assets/
	launch/local.sh configs/emoji.py --resume --workdir $(RUNS)/emoji
	$(RUN) -m slam_jax sample --model $(RUNS)/emoji --prompt "noto emoji of green apple" \
	  --out $(RUNS)/emoji/green_apple.png

test: .venv/installed-test ## the tests that have to pass before a merge, with python3 alone
	$(RUN) $(PYTEST)

test-fast: .venv/installed-test ## those of them that take seconds
	$(RUN) $(PYTEST) $(FAST)

test-browser: .venv/installed-test ## the report and the playground in Chromium, which has to be there; as well before a merge
	$(RUN) -m pytest -m browser

test-all: .venv/installed-test ## all tests, those of every night and of Chromium too
	$(RUN) $(PYTEST) -m ""

test-oldest: ## test-fast with the oldest releases that requirements.txt allows to PYTHON
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip compile --quiet --python .venv-oldest/bin/python \
	  --resolution lowest-direct requirements.txt --output-file .venv-oldest/oldest.txt
	$(call install-test,.venv-oldest,--constraint .venv-oldest/oldest.txt)
	.venv-oldest/bin/python $(PYTEST) $(FAST)

test-newest: ## test-fast with the newest jax and flax there are for PYTHON, allowed or not
	$(PYTHON) -m venv --clear .venv-newest
	$(call install-test,.venv-newest,)
	.venv-newest/bin/python -m pip install --quiet --upgrade jax flax optax orbax-checkpoint
	.venv-newest/bin/python -m pip list | grep -E "^(jax|flax|optax|orbax-checkpoint|numpy) "
	.venv-newest/bin/python $(PYTEST) $(FAST)

docs: .venv/installed-docs ## the pages of docs/, in docs/_build/html
	$(RUN) -m sphinx -W --keep-going -j $(JOBS) docs docs/_build/html

lint: .venv/installed-test ## ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

typecheck: .venv/installed-test ## pyright
	$(RUN) -m pyright --pythonpath $(RUN)

clean: ## removes environments, compiled programs and what was built
	rm -rf .venv .venv-oldest .venv-newest .cache build docs/_build slam_jax.egg-info

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer: make PYTHON=...")'
	@echo "installing slam_jax into .venv, once; this takes minutes"
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable .
	touch $@

# PyPI's torch brings gigabytes of CUDA packages; its index of CPU builds does not. Where that index
# cannot be reached, whatever pip finds must do.
TORCH := --retries 0 --timeout 15 --quiet $(shell grep -o '"torch==[0-9.]*' pyproject.toml | tr -d '"')
define install-test
$(1)/bin/python -m pip install $(TORCH) --index-url https://download.pytorch.org/whl/cpu 2>/dev/null || \
  $(1)/bin/python -m pip install $(TORCH)
$(1)/bin/python -m pip install --quiet --editable '.[test]' $(2)
endef

.venv/installed-test: .venv/installed pyproject.toml
	@echo "installing torch, diffusers and what tests need into .venv, once; this takes minutes"
	$(call install-test,.venv,)
	touch $@

.venv/installed-docs: .venv/installed pyproject.toml
	$(RUN) -m pip install --quiet --editable '.[docs]'
	touch $@
