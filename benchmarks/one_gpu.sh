#!/usr/bin/env bash
# Training step, sampler and VAE on one GPU with 80 GB or more, in about ten minutes:
#
#     PYTHONPATH=. benchmarks/one_gpu.sh OUT [SHAPES [BATCH]]
#
# All programs are compiled side by side first, where most of the time goes; then everything is
# timed, one after the other. What fails or takes too long leaves the rest alone. The training step
# is timed with XLA's choice among its own and NVIDIA's matrix products (OUT/triton) and with
# NVIDIA's alone (OUT/cublas). Logs are in OUT.
set -uo pipefail
out=$1 shapes=${2:-sd15} batch=${3:-32} python=${PYTHON:-python3}
mkdir -p "$out"
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$scratch/compiled}
cublas=${CUBLAS_FLAG---xla_gpu_enable_triton_gemm=false}

# log seconds xla-flags arguments: speed.py, with its output and time in OUT/log.
measure() {
  local log=$1 limit=$2 flags=$3 began=$SECONDS
  shift 3
  XLA_FLAGS=$flags timeout "$limit" "$python" benchmarks/speed.py --shapes "$shapes" \
    --no-float32 "$@" >"$out/$log.log" 2>&1
  echo "$log: exit $? after $((SECONDS - began)) s, at $SECONDS s" | tee -a "$out/times.log"
}

train=(--only train_step --batch "$batch")
draw=(--only sampler,vae --sample-batches 1)
measure compile_triton 260 "" "${train[@]}" --no-peers --quick --out "$scratch/a" &
measure compile_cublas 260 "$cublas" "${train[@]}" --no-peers --quick --out "$scratch/b" &
measure compile_sampler 260 "$cublas" "${draw[@]}" --no-peers --repeats 1 --warm-seconds 0 \
  --out "$scratch/c" &
wait

timed=(--repeats 3 --warm-seconds 10)
measure cublas 150 "$cublas" "${train[@]}" "${timed[@]}" --peers tuned --out "$out/cublas"
measure triton 90 "" "${train[@]}" "${timed[@]}" --no-peers --out "$out/triton"
measure sampler 120 "$cublas" "${draw[@]}" --repeats 10 --warm-seconds 5 --peers stock \
  --out "$out/cublas"
cat "$out/times.log"
! grep -qv "exit 0" "$out/times.log"
