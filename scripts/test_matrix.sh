#!/usr/bin/env bash
# Runs the tests on 3 ranks, or MPI4TCH_TEST_RANKS, on each MPI of MPI4TCH_MATRIX_MPIS
# with each libtorch of MPI4TCH_MATRIX_LIBTORCHS (see scripts/setup.sh), in these ways:
#
#     rsmpi   all tests but those that hardly depend on the MPI, with the feature rsmpi
#     plain   the same without it
#     abi     the same without it, compiled once for the standard's ABI, on each MPI that has it
#
# What was seen is noted in tests/matrix.tsv, a line for each run, from which the table
# of README.md is written. Arguments select runs by words of their lines:
#
#     scripts/test_matrix.sh 2.13 rsmpi
set -euo pipefail
cd "$(dirname "$0")/.."

# Each program runs once, so it is not worth optimizing.
export CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=false
export MPI4TCH_TEST_RANKS=${MPI4TCH_TEST_RANKS:-3} MPI4TCH_TEST_TIMEOUT=${MPI4TCH_TEST_TIMEOUT:-300}
# Intel MPI's ranks spin while they wait, which takes the cores from those that work.
export I_MPI_FABRICS=${I_MPI_FABRICS:-shm} I_MPI_WAIT_MODE=${I_MPI_WAIT_MODE:-1}
export I_MPI_THREAD_YIELD=${I_MPI_THREAD_YIELD:-3}
repository=$PWD
results=$repository/tests/matrix.tsv
target=${CARGO_TARGET_DIR:-$repository/target}
output=$(mktemp)
trap 'rm -f "$output"' EXIT

# The name and version of an MPI, by its launcher.
name_of() { # openmpi|mpich|PREFIX
    local mpiexec=mpiexec.$1 text
    [[ $1 != */* ]] || mpiexec=$1/bin/mpiexec
    text=$("$mpiexec" --version) || return
    case $text in
    *"Intel(R) MPI"*) sed -n 's/.*Version \([0-9.]*\).*/Intel MPI \1/p' <<<"$text" ;;
    *HYDRA*) sed -n 's/ *Version: *\([0-9.]*\).*/MPICH \1/p' <<<"$text" ;;
    *) sed -n 's/[^0-9]*\([0-9.]*\).*/Open MPI \1/p;q' <<<"$text" ;;
    esac
}

# Notes a result in place of an earlier one of the same run.
note() { # MPI LIBTORCH WAY STATUS
    local passed failed
    read -r passed failed < <(
        awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$output"
    )
    # A run that does not compile, or ends without a result, counts as one failure.
    [[ $failed != 0 || ($passed != 0 && $4 == 0) ]] || failed=1
    awk -F '\t' -v mpi="$1" -v libtorch="$2" -v way="$3" \
        '!($1 == mpi && $2 == libtorch && $3 == way)' "$results" >"$results.new"
    printf '%s\t%s\t%s\t%d\t%d\t%s\n' "$1" "$2" "$3" "$passed" "$failed" "$(date +%F)" >>"$results.new"
    LC_ALL=C sort -o "$results" "$results.new"
    rm "$results.new"
    total=$((total + failed))
    printf '\n%s, libtorch %s, %s: %d passed, %d failed\n' "$1" "$2" "$3" "$passed" "$failed"
}

# Whether the arguments select a run.
is_selected() { # MPI LIBTORCH WAY
    local word
    for word in "${selection[@]}"; do
        [[ "$* " == *"$word"* ]] || return 1
    done
}

# Goes to a tree whose Cargo.lock has the tch for this libtorch.
enter_tree() { # LIBTORCH
    local -A tch=([2.11.0]=0.24.0 [2.13.0]=0.26.0)
    grep -q -A1 '^name = "tch"$' Cargo.lock
    if grep -A1 '^name = "tch"$' Cargo.lock | grep -q "\"${tch[$1]}\""; then
        return
    fi
    local tree=$target/matrix-$1
    mkdir -p "$tree"
    find "$tree" -mindepth 1 -maxdepth 1 ! -name target -exec rm -rf {} +
    local changed=
    # The tracked files as they are now. Without changes there is nothing to stash.
    git diff --quiet HEAD || changed=$(git stash create)
    git archive "${changed:-HEAD}" | tar -x -C "$tree"
    cd "$tree"
    cargo update -p tch --precise "${tch[$1]}"
    cargo update -p torch-sys --precise "${tch[$1]}"
    export CARGO_TARGET_DIR=$tree/target
}

# Compiles the tests for the standard's ABI with the first MPI that has it, and runs the same
# programs on each.
test_abi() { # LIBTORCH
    local mpi name programs= of_no_mpi
    of_no_mpi=$(sed -n 's/^of_no_mpi=(\(.*\))$/\1/p' scripts/test.sh)
    for mpi in "${mpis[@]}"; do
        # That of Intel MPI 2021.19 is a draft, which initialize refuses.
        [[ -f $mpi/include/mpi_abi.h && $mpi != */impi-2021.19.* ]] || continue
        name=$(name_of "$mpi")
        is_selected "$name" "$1" abi || continue
        [[ -n $programs ]] || programs=$(
            MPI4TCH_MPI=$mpi cargo test --workspace --features mpi4tch/abi --no-run --message-format json |
                sed -n 's/.*"profile":{[^}]*"test":true[^}]*}.*"executable":"\([^"]*\)".*/\1/p' |
                grep -Ev "/(${of_no_mpi// /|})-[0-9a-f]+$"
        ) || programs=
        printf '\n==== The standard ABI, on %s ====\n\n' "$name"
        status=0
        while IFS= read -r program; do
            printf '     Running %s\n' "$program"
            LD_LIBRARY_PATH=$mpi/lib MPI4TCH_MPIEXEC=$mpi/bin/mpiexec "$program" || status=1
            (exit "$status")
        done <<<"$programs" 2>&1 | tee "$output" || status=$?
        note "$name" "$1" abi "$status"
    done
}

# Writes the table of README.md, between its two marks.
write_table() {
    awk -F '\t' '
        { key = $1 "\t" $2; if (!(key in seen)) { seen[key] = 1; keys[++n] = key }
          cell[key, $3] = $4 " passed" ($5 ? ", **" $5 " failed**" : "") }
        function of(key, way) { return (key, way) in cell ? cell[key, way] : "–" }
        END {
            print "| MPI | libtorch | with `rsmpi` | without | the standard ABI |"
            print "| --- | --- | --- | --- | --- |"
            for (i = 1; i <= n; i++) {
                split(keys[i], part, "\t")
                printf "| %s | %s | %s | %s | %s |\n", part[1], part[2],
                    of(keys[i], "rsmpi"), of(keys[i], "plain"), of(keys[i], "abi")
            }
        }' "$results" >"$output"
    awk -v table="$output" '
        /^<!-- end of the table/ { inside = 0 }
        !inside
        /^<!-- written by make test-matrix/ { inside = 1; while ((getline line < table) > 0) print line }
    ' README.md >"$output.md"
    cat "$output.md" >README.md
    rm "$output.md"
}

selection=("$@")
total=0
touch "$results"
IFS=: read -ra mpis <<<"$MPI4TCH_MATRIX_MPIS"
IFS=: read -ra libtorchs <<<"$MPI4TCH_MATRIX_LIBTORCHS"
for entry in "${libtorchs[@]}"; do
    libtorch=${entry%%=*}
    export LIBTORCH=${entry#*=}
    unset LIBTORCH_USE_PYTORCH
    cd "$repository"
    export CARGO_TARGET_DIR=$target
    enter_tree "$libtorch"
    for mpi in "${mpis[@]}"; do
        name=$(name_of "$mpi")
        # Intel's mpicc finds mpi.h by this variable.
        unset I_MPI_ROOT
        [[ $name != Intel* ]] || export I_MPI_ROOT=$mpi
        if is_selected "$name" "$libtorch" rsmpi; then
            status=0
            MPI4TCH_TEST_MPIS=$mpi scripts/test.sh --of-mpi 2>&1 | tee "$output" || status=$?
            note "$name" "$libtorch" rsmpi "$status"
        fi
        if is_selected "$name" "$libtorch" plain; then
            status=0
            MPI4TCH_TEST_MPIS=$mpi MPI4TCH_TEST_FEATURES='' scripts/test.sh --of-mpi 2>&1 |
                tee "$output" || status=$?
            note "$name" "$libtorch" plain "$status"
        fi
    done
    test_abi "$libtorch"
done
cd "$repository"
write_table
[[ $total == 0 ]]
