#!/usr/bin/env bash
# Runs the tests on 2 ranks under AddressSanitizer, on the first MPI of
# MPI4TCH_TEST_MPIS, which is Open MPI. Arguments go to `cargo test`; without any, all
# tests run but those of the documentation, as rustdoc does not take these flags.
#
# The crate's Rust and C++ are instrumented. libtorch and MPI are not, but they use
# the same allocator, and what they copy between buffers or processes is checked.
set -euo pipefail

# With --target, cargo does not instrument build scripts and macros.
host=$(rustc -vV | sed -n 's/^host: //p')
target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')

# rustc links LLVM's runtime. Code that gcc has instrumented uses it, too: it has the
# same version of the interface, and gcc must not link a second runtime.
export MPI4TCH_MPI=${MPI4TCH_TEST_MPIS%%:*} CARGO_TARGET_DIR=$target/sanitize
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address"
export CXXFLAGS="${CXXFLAGS:-} -fsanitize=address"

# No search for leaks: libtorch and MPI never free some of their memory.
export ASAN_OPTIONS=detect_leaks=0
export MPI4TCH_TEST_RANKS=${MPI4TCH_TEST_RANKS:-2} MPI4TCH_TEST_TIMEOUT=${MPI4TCH_TEST_TIMEOUT:-300}
# Skips tests that build programs as a user does, without these flags, and one that measures the
# memory of the process, as AddressSanitizer does not give freed memory back.
[[ $# != 0 ]] ||
    set -- --tests -- --skip program_of_ones_own --skip the_demo --skip no_more_states_than_slots
# Some tests run the examples.
cargo build --target "$host" --examples
cargo test --target "$host" --no-fail-fast "$@"
