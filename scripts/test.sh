#!/usr/bin/env bash
# Runs the tests of the workspace on each MPI of MPI4TCH_TEST_MPIS (separated by
# colons) and closes with the sum. Arguments go to `cargo test`.
set -euo pipefail

passed=0 failed=0
output=$(mktemp)
trap 'rm -f "$output"' EXIT

IFS=: read -ra mpis <<<"$MPI4TCH_TEST_MPIS"
for mpi in "${mpis[@]}"; do
    printf '\n==== Tests on %s ====\n\n' "$mpi"
    # The crate mpi, which the feature rsmpi brings, has a build of its own: it takes the MPI of
    # MPICC, and does not notice when that changes.
    case $mpi in
    */*) mpicc=$mpi/bin/mpicc ;;
    *) mpicc=mpicc.$mpi ;;
    esac
    cargo clean --quiet -p mpi -p mpi-sys
    status=0
    MPI4TCH_MPI=$mpi MPICC=$mpicc cargo test --workspace --features mpi4tch/rsmpi --no-fail-fast "$@" 2>&1 |
        tee "$output" || status=$?
    read -r p f < <(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$output")
    # What does not compile, or ends without a result, counts as one failure.
    [[ $status == 0 || $f != 0 ]] || f=1
    # So does a selection of no test.
    [[ $p != 0 || $f != 0 ]] || f=1
    passed=$((passed + p)) failed=$((failed + f))
done

printf '\n%d passed, %d failed\n' "$passed" "$failed"
[[ $failed == 0 ]]
