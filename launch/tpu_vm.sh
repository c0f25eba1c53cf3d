#!/usr/bin/env bash
# Runs a config on the VMs of a Cloud TPU slice (TPU v2 to v6e; newer ones are not in this API):
#   export TPU_NAME=slam ZONE=europe-west4-a         # and CLOUDSDK_CORE_PROJECT, if need be
#   ACCELERATOR_TYPE=v6e-16 RUNTIME_VERSION=v2-alpha-tpuv6e launch/tpu_vm.sh create [--spot]
#   launch/tpu_vm.sh install               # this repository's last commit, and jax[tpu], on all VMs
#   launch/tpu_vm.sh run configs/sd.py --config.data.source=DATA --workdir /mnt/shared/runs/sd
#   launch/tpu_vm.sh log                   # follows process 0; `stop` saves a checkpoint and ends
#   launch/tpu_vm.sh delete
# `run` always resumes: after `stop`, or `create` and `install` after a preemption, the same command
# goes on. The workdir has to be on a file system that all VMs mount (such as Filestore). The run is
# a systemd unit: it outlives the ssh connection, and a VM that shuts down sends it SIGTERM.
set -euo pipefail
cd "$(dirname "$0")/.."
usage="create|install|run|log|stop|delete"
: "${1:?expected launch/tpu_vm.sh $usage}" "${TPU_NAME:?name the TPU}" "${ZONE:?name its zone}"

on() { # WORKERS COMMAND: runs it on these VMs
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

case $1 in
create)
    gcloud compute tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" --zone="$ZONE" \
        --accelerator-type="${ACCELERATOR_TYPE:?such as v6e-16}" \
        --runtime-version="${RUNTIME_VERSION:?such as v2-alpha-tpuv6e}" "${@:2}"
    echo "queued; ready when this says ACTIVE:" \
        "gcloud compute tpus queued-resources describe $TPU_NAME --zone=$ZONE"
    ;;
install)
    folder=$(mktemp -d)
    trap 'rm -r "$folder"' EXIT
    git diff --quiet HEAD || echo "note: what is not committed stays here" >&2
    git archive --output="$folder/slam_jax.tar.gz" HEAD
    gcloud compute tpus tpu-vm scp "$folder/slam_jax.tar.gz" "$TPU_NAME:" \
        --zone="$ZONE" --worker=all
    # uv brings a Python of 3.11 or newer, which the VM images do not have.
    on all "mkdir -p slam_jax && tar -xzf slam_jax.tar.gz -C slam_jax && cd slam_jax &&
        python3 -m pip install --quiet --user uv &&
        python3 -m uv venv --clear --python 3.12 .venv &&
        python3 -m uv pip install --quiet --python .venv -r requirements.txt 'jax[tpu]'"
    ;;
run)
    : "${2:?expected launch/tpu_vm.sh run CONFIG --workdir DIR [...]}"
    if [[ " ${*:3}" != *" --workdir"[\ =]* ]]; then
        echo "error: add --workdir DIR, on a file system that all VMs mount" >&2
        exit 1
    fi
    # shellcheck disable=SC2016 # the VM's own user and home
    unit='sudo systemd-run --unit=slam_jax --collect --uid="$USER"'
    # shellcheck disable=SC2016
    unit+=' --working-directory="$HOME/slam_jax" --property=KillMode=mixed'
    command="$unit --property=TimeoutStopSec=300 .venv/bin/python -m slam_jax.main --distributed"
    on all "$command --config$(printf ' %q' "${@:2}") --resume"
    ;;
log) on 0 "sudo journalctl --unit=slam_jax --follow --output=cat" ;;
stop) on all "sudo systemctl stop slam_jax" ;;
delete) gcloud compute tpus queued-resources delete "$TPU_NAME" --zone="$ZONE" --force ;;
*)
    echo "error: $1: expected $usage" >&2
    exit 1
    ;;
esac
