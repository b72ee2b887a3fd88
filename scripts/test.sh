#!/usr/bin/env bash
# Runs the tests of the workspace on each MPI of MPI4TCH_TEST_MPIS (separated by
# colons), and prints the sum at the end. Arguments go to `cargo test`, except a first
#
#     --all     more rank counts, all cases, and messages of more than 2³¹ elements, which take
#               11 GB of memory; on the first MPI also those of `on_device` with tensors on the
#               stand-in for a GPU, on 3 ranks
#     --of-mpi  no tests of the documentation, nor those that hardly depend on the MPI
#
# The crate's features are those of MPI4TCH_TEST_FEATURES, by default rsmpi.
#
# Without --all, the tests run on a few rank counts, or on those of MPI4TCH_TEST_RANKS.
# Each count covers cases that smaller ones do not:
#
#     1     there is no other rank to send to
#     2     each rank has one other; tests that need two ranks run
#     3     a third rank, which neither sends nor receives; no power of two
#     4     MPI's algorithms take two rounds, and trees have a rank in between
#
# Of several MPIs the first runs on 1 and 3, the others on 2 and 4 ranks. One alone runs on 1, 2
# and 3. With or without --all, only the first runs the examples of the documentation and the tests of
# `of_no_mpi`, which hardly depend on the MPI.
set -euo pipefail

is_short=true is_of_mpi=false
all=()
features=${MPI4TCH_TEST_FEATURES-mpi4tch/rsmpi}
ranks=(1,3 2,4)
case ${1:-} in
--all)
    shift
    is_short=false
    ranks=(1,2,3,4,5,7 1,2,3,4,5,7)
    all=(MPI4TCH_TEST_ALL=1 MPI4TCH_TEST_LARGE=1)
    export MPI4TCH_TEST_TIMEOUT=${MPI4TCH_TEST_TIMEOUT:-300}
    ;;
--of-mpi)
    shift
    is_of_mpi=true
    ;;
esac

of_no_mpi=(documentation harness layers linear_regression operations pictures readme setup)
# Each launcher has its own way to end the ranks, on another host above all.
[[ -n ${MPI4TCH_WIRE:-} ]] || ! $is_short || of_no_mpi+=(timeout)

on_device=(collectives point_to_point requests tape data_parallel halos checkpoint)

# Options of cargo that select the library's unit tests, and all test files but those of `of_no_mpi`.
select_tests_of_mpi() {
    local file name
    selected=(--lib)
    for file in tests/*.rs tests/*/main.rs mpi-sys/tests/*.rs mpi-sys/tests/*/main.rs; do
        name=${file%/main.rs} name=${name##*/} name=${name%.rs}
        [[ $name != rsmpi_* || $features == *rsmpi* ]] || continue
        [[ " ${of_no_mpi[*]} " == *" $name "* ]] || selected+=(--test "$name")
    done
}

selected=()
! $is_of_mpi || [[ $# != 0 ]] || select_tests_of_mpi
passed=0 failed=0
output=$(mktemp)
trap 'rm -f "$output"' EXIT

IFS=: read -ra mpis <<<"$MPI4TCH_TEST_MPIS"
! $is_short || [[ ${#mpis[@]} != 1 ]] || ranks=(1,2,3)

# Runs the tests that the arguments select, with the variables of `environment`, and adds to `passed` and
# `failed`.
run() {
    local status=0 p f
    env MPI4TCH_MPI="$mpi" MPICC="$mpicc" "${environment[@]}" \
        cargo test --workspace --features "$features" --no-fail-fast "$@" 2>&1 |
        tee "$output" || status=$?
    read -r p f < <(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$output")
    # A run that does not compile, or ends without a result, counts as one failure.
    [[ $status == 0 || $f != 0 ]] || f=1
    # So does it if no test was selected.
    [[ $p != 0 || $f != 0 ]] || f=1
    passed=$((passed + p)) failed=$((failed + f))
}

for mpi in "${mpis[@]}"; do
    counts=${MPI4TCH_TEST_RANKS:-${ranks[0]}}
    # All further MPIs use the last counts.
    ranks=("${ranks[-1]}")
    printf '\n==== Tests on %s, on %s ranks ====\n\n' "$mpi" "$counts"
    # The crate mpi, a dependency of the feature rsmpi, has a build script of its own: it takes the
    # MPI of MPICC, and does not run again when that changes.
    case $mpi in
    */*) mpicc=$mpi/bin/mpicc ;;
    *) mpicc=mpicc.$mpi ;;
    esac
    cargo clean --quiet -p mpi -p mpi-sys
    # For selected tests cargo builds no examples, two of which are run by tests of the same names.
    [[ ${#selected[@]} == 0 ]] || MPI4TCH_MPI=$mpi MPICC=$mpicc \
        cargo build --workspace --features "$features" --example linear_regression \
        --example timeline || true
    environment=(MPI4TCH_TEST_RANKS="$counts" "${all[@]}")
    run "${selected[@]}" "$@"
    if ! $is_short && [[ $# == 0 && $mpi == "${mpis[0]}" ]]; then
        printf '\n==== Tests on %s, on 3 ranks, with tensors on a device ====\n\n' "$mpi"
        environment=(MPI4TCH_TEST_RANKS=3 MPI4TCH_TEST_DEVICE=stand-in)
        run "${on_device[@]/#/--test=}"
    fi
    # A selection of the user's runs on each MPI.
    [[ $# != 0 ]] || select_tests_of_mpi
done

printf '\n%d passed, %d failed\n' "$passed" "$failed"
[[ $failed == 0 ]]
