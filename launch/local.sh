#!/usr/bin/env bash
# Runs a config on this machine, in the environment that `make` keeps in .venv:
#   launch/local.sh configs/digits.py [--config.KEY=VALUE ...] [--workdir DIR] [--resume]
# or as N processes that share the run and the GPUs of this machine:
#   launch/local.sh --processes N configs/digits.py [the same]
set -euo pipefail
cd "$(dirname "$0")/.."
make --no-print-directory .venv/installed
if [[ ${1-} == --processes ]]; then
    exec .venv/bin/python launch/local_processes.py "${@:2}"
fi
exec .venv/bin/python -m slam_jax.main --config "$@"
