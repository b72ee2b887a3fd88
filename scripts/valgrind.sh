#!/usr/bin/env bash
# Runs tests on 2 ranks under valgrind, on the last MPI of MPI4TCH_TEST_MPIS, which
# is MPICH. Arguments go to `cargo test`; without any, the test files run that are
# about memory and do not depend on time.
set -euo pipefail

# The tests call this script as their launcher: runs each rank under valgrind.
if [[ ${1:-} == -n ]]; then
    # mpiexec.sh would call this script.
    unset MPI4TCH_MPIEXEC
    exec scripts/mpiexec.sh "$1" "$2" valgrind -q --error-exitcode=9 --num-callers=40 \
        --fair-sched=yes --suppressions=scripts/valgrind.supp "${@:3}"
fi

tests=(agreement all_reduce collectives communicators in_place local_checks messages_unchecked
    point_to_point replicated requests tape)
# Tests of long tapes take too long. They count memory, and valgrind does not reuse what is freed.
long=(the_stack_does_not_grow the_memory_of_an_operation_does_not_grow many_steps_take_no_memory)
[[ $# != 0 ]] || set -- "${tests[@]/#/--test=}" -- "${long[@]/#/--skip=}"

export MPI4TCH_MPI=${MPI4TCH_TEST_MPIS##*:} MPI4TCH_MPIEXEC=scripts/valgrind.sh
export MPI4TCH_TEST_RANKS=${MPI4TCH_TEST_RANKS:-2} MPI4TCH_TEST_TIMEOUT=${MPI4TCH_TEST_TIMEOUT:-600}
cargo test --no-fail-fast "$@"
