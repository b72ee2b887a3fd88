#!/usr/bin/env bash
# Runs the tests on 2 ranks under AddressSanitizer, on the first MPI of
# MPI4TCH_TEST_MPIS, which is Open MPI. Arguments go to `cargo test`; without any, all
# runs but the documentation's examples, for which rustdoc has flags of its own.
#
# The crate's Rust and C++ are instrumented. libtorch and MPI are not, but go by
# the same allocator, and what they copy from buffer to buffer, or from process to
# process, is looked at.
set -euo pipefail

# With a target named, what runs while building is not instrumented.
host=$(rustc -vV | sed -n 's/^host: //p')
target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')

# rustc links LLVM's runtime. It serves what gcc has instrumented as well, which
# asks for the same version of the interface and must not bring a runtime of its own.
export MPI4TCH_MPI=${MPI4TCH_TEST_MPIS%%:*} CARGO_TARGET_DIR=$target/sanitize
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address"
export CXXFLAGS="${CXXFLAGS:-} -fsanitize=address"

# No look for leaks: libtorch and MPI keep to the end what they allocate once.
export ASAN_OPTIONS=detect_leaks=0
export MPI4TCH_TEST_RANKS=${MPI4TCH_TEST_RANKS:-2} MPI4TCH_TEST_TIMEOUT=${MPI4TCH_TEST_TIMEOUT:-300}
# Some tests build programs, as a user does, without any of these flags.
[[ $# != 0 ]] || set -- --tests -- --skip program_of_ones_own --skip the_demo
# Tests run the examples, too.
cargo build --target "$host" --examples
cargo test --target "$host" --no-fail-fast "$@"
