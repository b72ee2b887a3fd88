#!/usr/bin/env bash
# Times this crate and its peers, which scripts/setup.sh --peers has installed in the folders
# PYTORCH and PEERS:
#
#     all operations that mpi4torch or mpi4jax have, in one run in which all take turns
#     training steps with DataParallel, and with PyTorch's DistributedDataParallel on gloo
#     forward steps of the shallow-water model, and of the same model with mpi4jax
#
#     scripts/bench_peers.sh [--rounds 3] [--ranks 2,4] [SELECTION...]
#
# Operations are timed on these numbers of ranks. The programs run on 2 ranks, in rounds in which
# ours and the peer's take turns; their medians are written to benches/results/programs.md. If
# arguments select operations, the programs are left out.
set -euo pipefail

rounds=3 ranks=2,4
while [[ ${1:-} == @(--rounds|--ranks) ]]; do
    case $1 in
    --rounds) rounds=$2 ;;
    --ranks) ranks=$2 ;;
    esac
    shift 2
done

status=0
cargo bench --bench operations -- --peers --ranks "$ranks" "$@" || status=1
[[ $# == 0 && $rounds != 0 ]] || exit $status

python=(env OMP_NUM_THREADS=1 "PYTHONPATH=$PEERS:$PYTORCH")
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
    awk -v peers="$2" -f scripts/medians.awk "$output" | tee -a "$medians"
}

medians=$(mktemp)
trap 'rm -f "$output" "$medians"' EXIT
printf '# The time of programs\n\nMade by `make bench-peers`, on 2 ranks, in %d rounds; %s.\n\n```text' \
    "$rounds" "$(date -u +%F)" >"$medians"
compare data_parallel 'DistributedDataParallel=of default;DDP, gradient_as_bucket_view=of views' \
    "${python[@]}" python3 -W ignore benches/peers/ddp.py
compare shallow_water 'mpi4jax=of mpi4jax' \
    "${python[@]}" scripts/mpiexec.sh -n 2 python3 benches/peers/shallow_water.py
printf '```\n' >>"$medians"
cp "$medians" benches/results/programs.md
exit $status
