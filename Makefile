# Each target first installs what it needs and the machine lacks: see scripts/setup.sh.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: help demo test test-hosts sanitize valgrind bench bench-overlap bench-peers fmt lint doc

RANKS ?= 2
EXAMPLE ?= linear_regression

setup = environment=$$(scripts/setup.sh $(1)) && eval "$$environment"
# Cargo alone knows where it puts programs.
runner = target.'cfg(all())'.runner = ['scripts/mpiexec.sh', '-n', '$(RANKS)']
format_c = git ls-files '*.c' '*.cpp' '*.h' | xargs -r "$$CLANG_FORMAT"

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*##/ { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: ## train the example on RANKS=2 ranks; EXAMPLE=name, ARGS='...'
	@$(call setup)
	cargo run --example $(EXAMPLE) --config "$(runner)" -- $(ARGS)

test: ## run all tests on Open MPI and MPICH, or on MPI4TCH_MPI only; ALL=1, ARGS='...'
	@$(call setup,--every-mpi)
	scripts/test.sh $(if $(ALL),--all) $(ARGS)

test-hosts: ## run the tests on 2 ranks on two hosts, joined by a slow wire, on MPICH; needs root; ARGS='...'
	@$(call setup,--every-mpi --two-hosts)
	export MPI4TCH_MPI=$${MPI4TCH_TEST_MPIS##*:} MPI4TCH_TEST_RANKS=2
	export MPI4TCH_TEST_MPIS=$$MPI4TCH_MPI MPI4TCH_TEST_TIMEOUT=$${MPI4TCH_TEST_TIMEOUT:-300}
	scripts/two_hosts.sh scripts/test.sh --of-mpi $(ARGS)

sanitize: ## run the tests on 2 ranks under AddressSanitizer, on Open MPI; ARGS='...'
	@$(call setup,--every-mpi)
	scripts/sanitize.sh $(ARGS)

valgrind: ## run those that look at memory on 2 ranks under valgrind, on MPICH; ARGS='...'
	@$(call setup,--every-mpi --valgrind)
	scripts/valgrind.sh $(ARGS)

bench: ## run the benchmarks
	@$(call setup)
	cargo bench $(ARGS)

bench-overlap: ## measure how much of a slow wire's time is hidden behind computation; needs root
	@$(call setup,--every-mpi --two-hosts)
	MPI4TCH_MPI=$${MPI4TCH_TEST_MPIS##*:} scripts/two_hosts.sh cargo bench --bench overlap

bench-peers: ## time programs against PyTorch's DistributedDataParallel, which takes 3.4 GB, and mpi4jax; ROUNDS=3
	@$(call setup,--pytorch)
	scripts/bench_peers.sh $(ROUNDS)

fmt: ## format the sources
	@$(call setup,--clang-format)
	cargo fmt --all
	$(format_c) -i

lint: ## check formatting and clippy's advice
	@$(call setup,--clang-format)
	cargo fmt --all --check
	$(format_c) --dry-run --Werror
	cargo clippy --workspace --all-targets -- -D warnings

doc: ## build the documentation
	@$(call setup)
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps
