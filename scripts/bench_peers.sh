#!/usr/bin/env bash
# Times programs of ours and of peers in rounds, in which both take turns, and prints
# medians over the rounds:
#
#     training steps with DataParallel, and with PyTorch's DistributedDataParallel on gloo
#     forward steps of the shallow-water model, and of the same model with mpi4jax
#
# The argument is the number of rounds. PYTORCH is the folder that has PyTorch, MPI4JAX the one
# that has mpi4jax if python3 does not find it by itself. A peer that is missing is left out.
set -euo pipefail

rounds=${1:-3}
output=$(mktemp)
trap 'rm -f "$output"' EXIT

# Runs a benchmark of ours and a peer's program. The second argument is that of medians.awk.
compare() { # BENCHMARK PEERS COMMAND...
    local round
    cargo bench --bench "$1" --no-run
    for ((round = 1; round <= rounds; round++)); do
        printf '\n==== Round %d of %d ====\n\n' "$round" "$rounds"
        cargo bench --quiet --bench "$1"
        "${@:3}"
    done | tee "$output"
    awk -v peers="$2" -f scripts/medians.awk "$output"
}

if [[ -n ${PYTORCH:-} ]]; then
    compare data_parallel 'DistributedDataParallel=of default;DDP, gradient_as_bucket_view=of views' \
        env OMP_NUM_THREADS=1 PYTHONPATH="$PYTORCH" python3 -W ignore benches/peers/ddp.py
else
    echo 'DistributedDataParallel is left out: PYTORCH is not set ("make bench-peers" installs it and sets it)'
fi

[[ -z ${MPI4JAX:-} ]] || export PYTHONPATH=$MPI4JAX${PYTHONPATH:+:$PYTHONPATH}
if python3 -c 'import mpi4jax' 2>/dev/null; then
    compare shallow_water 'mpi4jax=of mpi4jax' \
        scripts/mpiexec.sh -n "${MPI4TCH_BENCH_RANKS:-2}" python3 benches/peers/shallow_water.py
else
    echo "mpi4jax is left out, as python3 cannot import it. To install it: python3 -m pip install --target \
FOLDER 'jax[cpu]' mpi4jax, with this MPI's mpicc on PATH or in MPICC; then set MPI4JAX=FOLDER"
fi
