#!/usr/bin/env bash
# Runs a config on this machine, in the environment that `make` keeps in .venv:
#   launch/local.sh configs/digits.py [--config.KEY=VALUE ...] [--workdir DIR] [--resume]
set -euo pipefail
cd "$(dirname "$0")/.."
make --no-print-directory .venv/installed
exec .venv/bin/python -m slam_jax.main --config "$@"
