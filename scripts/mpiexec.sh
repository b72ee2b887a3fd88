#!/usr/bin/env bash
# Runs a program with the launcher of the MPI that MPI4TCH_MPI chooses, or with that of
# MPI4TCH_MPIEXEC, on any number of ranks and as any user:
#
#     scripts/mpiexec.sh -n 4 target/debug/examples/linear_regression
set -euo pipefail

case ${MPI4TCH_MPI:-} in
*/*) launcher=$MPI4TCH_MPI/bin/mpiexec ;;
*) launcher=$(command -v "mpiexec.${MPI4TCH_MPI:-}" || echo mpiexec) ;;
esac

# A desktop often has fewer cores than there are ranks: let the ranks take turns.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMPI_MCA_rmaps_base_oversubscribe=1                   # Open MPI 4
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe  # Open MPI 5
export OMPI_MCA_mpi_yield_when_idle=1
# The ranks write into the launcher's pipes, also where these lead to a terminal: the examples
# show how far they are, if this is set.
if [[ -t 2 ]]; then
    export MPI4TCH_TERMINAL_WIDTH=${COLUMNS:-$(tput cols 2>/dev/null || echo 80)}
fi
if [[ $EUID == 0 ]]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
read -ra launcher <<<"${MPI4TCH_MPIEXEC:-$launcher}"
exec "${launcher[@]}" "$@"
