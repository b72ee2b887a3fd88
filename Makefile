# Each target first installs what it needs and the machine lacks: see scripts/setup.sh.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: help demo test test-newest test-matrix test-hosts test-cuda sanitize valgrind bench bench-overlap bench-peers fmt lint pictures doc package

EXAMPLE ?= linear_regression

setup = environment=$$(scripts/setup.sh $(1)) && eval "$$environment"
# Cargo alone knows where it puts programs.
runner = target.'cfg(all())'.runner = ['scripts/mpiexec.sh', '-n', '$(or $(RANKS),2)']
needs_root = [[ $$EUID == 0 ]] || { echo 'network namespaces need root; what is built is then root'\''s, too'; exit 1; }
comma := ,
bench_ranks = $(or $(RANKS),2$(comma)4)
newest_tests = $(addprefix --test ,collectives point_to_point requests tape)
# Sets the variable `folder` of the shell to the target folder, which cargo alone knows.
target_folder = folder=$$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
# Releases are tagged v0.1.0 and so on.
last_release = $(shell git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null)
format_c = git ls-files '*.c' '*.cpp' '*.h' | xargs -r "$$CLANG_FORMAT"

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*##/ { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: ## train the example on RANKS=2 ranks; EXAMPLE=name, ARGS='...'
	@$(call setup)
	cargo run --example $(EXAMPLE) --config "$(runner)" -- $(ARGS)

test: ## run all tests on Open MPI and MPICH, or on MPI4TCH_MPI only; ALL=1, ARGS='...'
	@$(call setup,--every-mpi)
	scripts/test.sh $(if $(ALL),--all) $(ARGS)

test-newest: ## run four files on 2 ranks on the newest Open MPI and MPICH, and compile the C++ for the newest libtorch
	@$(call setup,--newest-mpi --newest-libtorch)
	for file in src/autograd/*.cpp; do
	    c++ -std=c++17 -fsyntax-only -Wall -Wextra -Werror \
	        -isystem"$$MPI4TCH_NEWEST_LIBTORCH"/include{,/torch/csrc/api/include} "$$file"
	done
	export MPI4TCH_TEST_MPIS=$$MPI4TCH_NEWEST_MPIS MPI4TCH_TEST_RANKS=$${MPI4TCH_TEST_RANKS:-2}
	MPI4TCH_TEST_FEATURES= scripts/test.sh $(newest_tests)
	MPI4TCH_MPI=$${MPI4TCH_TEST_MPIS##*:} cargo test -p mpi4tch-sys --features abi

test-matrix: ## run the tests on 3 ranks on every MPI and libtorch of the README's table, and write it; ARGS='2.13 rsmpi'
	@$(call setup,--matrix)
	scripts/test_matrix.sh $(ARGS)

test-hosts: ## run the tests on 2 ranks on two hosts, joined by a slow wire, on MPICH; needs root; ARGS='...'
	@$(needs_root)
	$(call setup,--every-mpi --two-hosts)
	export MPI4TCH_MPI=$${MPI4TCH_TEST_MPIS##*:} MPI4TCH_TEST_RANKS=2
	export MPI4TCH_TEST_MPIS=$$MPI4TCH_MPI MPI4TCH_TEST_TIMEOUT=$${MPI4TCH_TEST_TIMEOUT:-300}
	scripts/two_hosts.sh scripts/test.sh --of-mpi $(ARGS)

test-cuda: ## run the tests of MPI with CUDA tensors, on a machine with a GPU, which ranks may share; ARGS='...'
	@$(call setup,--every-mpi --cuda)
	export MPI4TCH_TEST_DEVICE=cuda
	# With rsmpi, a start would wait for its copy.
	export MPI4TCH_TEST_FEATURES=$${MPI4TCH_TEST_FEATURES-}
	# Elsewhere, as cargo would compile torch-sys anew for each change of libtorch.
	$(target_folder)
	export CARGO_TARGET_DIR=$$folder/cuda
	scripts/test.sh --of-mpi $(ARGS)

sanitize: ## run the tests on 2 ranks under AddressSanitizer, on Open MPI; ARGS='...'
	@$(call setup,--every-mpi)
	scripts/sanitize.sh $(ARGS)

valgrind: ## run those that look at memory on 2 ranks under valgrind, on MPICH; ARGS='...'
	@$(call setup,--every-mpi --valgrind)
	scripts/valgrind.sh $(ARGS)

bench: ## time every operation against raw MPI, on each MPI or MPI4TCH_MPI only; RANKS=2,4, ARGS='all_reduce 8MiB'
	@$(call setup,--every-mpi)
	status=0
	for mpi in $${MPI4TCH_TEST_MPIS//:/ }; do
	    MPI4TCH_MPI=$$mpi cargo bench --bench operations -- --ranks $(bench_ranks) $(ARGS) || status=1
	done
	exit $$status

bench-overlap: ## measure how much of a slow wire's time is hidden behind computation; needs root
	@$(needs_root)
	$(call setup,--every-mpi --two-hosts)
	MPI4TCH_MPI=$${MPI4TCH_TEST_MPIS##*:} scripts/two_hosts.sh cargo bench --bench overlap

bench-peers: ## time mpi4torch, mpi4jax and DistributedDataParallel, too, which take 4 GB; ROUNDS=3, RANKS, ARGS as above
	@$(call setup,--peers)
	scripts/bench_peers.sh --rounds $(or $(ROUNDS),3) --ranks $(bench_ranks) $(ARGS)

fmt: ## format the sources
	@$(call setup,--clang-format)
	cargo fmt --all
	$(format_c) -i

lint: ## check formatting, clippy's advice, what would be published, and that it fits the last release
	@$(call setup,--clang-format $(if $(last_release),--semver-checks))
	cargo fmt --all --check
	$(format_c) --dry-run --Werror
	cargo clippy --workspace --all-targets -- -D warnings
	cargo package --workspace --exclude mpi4tch-harness --exclude mpi4tch-stand-in --no-verify --allow-dirty --quiet
	# Of the documentation's declarations, which need no MPI and no libtorch.
	$(if $(last_release),"$$SEMVER_CHECKS" semver-checks -p mpi4tch -p mpi4tch-sys --only-explicit-features \
	    --features doc-only --baseline-rev $(last_release))

pictures: ## draw the guide's pictures, src/guide/pictures/*.svg, from their sources
	@$(call setup)
	MPI4TCH_PICTURES=write cargo test --test pictures pictures_are_drawn_from_their_sources

doc: ## build the documentation, and check its links
	@$(call setup)
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps
	scripts/check_doc.py

package: ## try to publish the crates, and to build their documentation as docs.rs does, without MPI and libtorch
	@$(call setup)
	# Elsewhere, as cargo would take what it compiles here for the workspace's own later.
	$(target_folder)
	cargo publish --workspace --exclude mpi4tch-harness --exclude mpi4tch-stand-in --dry-run --target-dir "$$folder/package" $(ARGS)
	env -u LIBTORCH -u LIBTORCH_USE_PYTORCH MPI4TCH_MPI=/nowhere RUSTDOCFLAGS='-D warnings' \
	    cargo doc --no-deps -p mpi4tch -p mpi4tch-sys --features mpi4tch/doc-only
