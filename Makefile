# MITOSIS: what can be made and run here. `make` lists the targets.
#
# Without a `makefile` the cluster is virtual machines on this machine. For a real one: cp makefile_template makefile,
# and fill it in; GNU make reads `makefile` first, which ends by including this file.

.DEFAULT_GOAL := help
# The targets share one machine, one cluster and one build directory.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# Debian's package cargo-web has it in /usr/bin, which `stress/setup.sh` sees to where there is none.
CARGO ?= $(or $(shell command -v cargo),/usr/bin/cargo)
export CARGO
MINUTES ?= 1
SHARD ?=
DATAGRAMS ?= 10000000
# Its runner must be of the library's version, which core/Cargo.toml says.
GUNGRAUN := 0.18.2
GUNGRAUN_RUNNER := $(CURDIR)/target/gungraun-$(GUNGRAUN)/bin/gungraun-runner

STRESS = $(CARGO) run --quiet --locked --package mitosis-stress -- $(1) $(ASSIGNMENTS)

# The runner is given each setting that was made on purpose, and all that stands on the command line: it knows the
# parameters of each template, and refuses names that it does not know. USER and PWD are set in every environment, and
# say nothing about a cluster there.
SETTINGS := CHILD_HOSTS CLIENTS CLUSTER_KEY KERNEL PARENT_GID PARENT_HOST PROJECT_PATH STR_CHILD_HOSTS USER VM_CPUS VM_DEBUG VM_MEMORY VM_MTU
FROM_ENVIRONMENT := CLIENTS CLUSTER_KEY KERNEL VM_CPUS VM_DEBUG VM_MEMORY VM_MTU
# For make, cargo and the cluster themselves.
NOT_PARAMETERS := ACCEL ARGUMENTS CARGO CARGO_TARGET_DIR DATAGRAMS MINUTES MITOSIS_CACHE SHARD
is = $(findstring $(1),$(origin $(2)))
quoted = '$(subst ','\'',$(1))'
GIVEN := $(foreach name,$(filter-out $(NOT_PARAMETERS),$(.VARIABLES)),$(if $(call is,command line,$(name)),$(name)))
FILED := $(foreach name,$(filter-out $(GIVEN),$(SETTINGS)),$(if $(call is,file,$(name)),$(name)))
AROUND := $(foreach name,$(FROM_ENVIRONMENT),$(if $(call is,environment,$(name)),$(name)))
# A value of the command line is passed as it was typed, whatever make or a shell would read into it.
ASSIGNMENTS = $(foreach name,$(GIVEN),$(call quoted,$(name)=$(value $(name)))) \
	$(foreach name,$(FILED) $(AROUND),$(call quoted,$(name)=$($(name))))

.PHONY: help
help: ## list the targets
	@echo 'usage: make TARGET [parameter=value…] [KERNEL=6.12|6.1] [CLIENTS=2] [VM_CPUS=1] [VM_MEMORY=512] [VM_MTU=4096] [VM_DEBUG=0|1|2]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-24s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Parameters are those of templates-run/<target>.toml: make peak-rpc-kernel-module thread_count=4'

.PHONY: setup
setup: ## install what is missing; every target that needs it does so itself
	@stress/setup.sh

.PHONY: build-rpc-bench
build-rpc-bench: setup ## build the kernel modules of the empty RPC, for each kernel of the cluster
	@$(call STRESS,build templates-build/template-build-rpc-bench.toml)

.PHONY: build-rpc-checksum
build-rpc-checksum: setup ## build the kernel modules with checksummed payloads, for each kernel of the cluster
	@$(call STRESS,build templates-build/template-build-rpc-checksum.toml)

.PHONY: peak-rpc-kernel-module
peak-rpc-kernel-module: setup ## run the RPC stress test with the modules that were built last
	@$(call STRESS,run templates-run/peak-rpc-kernel-module.toml)

.PHONY: peak-rpc
peak-rpc: ## run the RPC stress test in processes of this machine, over shared memory; needs nothing but cargo
	@$(CARGO) build --quiet --release --locked --package mitosis-userspace-programs --package mitosis-stress
	@target/release/mitosis-stress run-here templates-run/peak-rpc.toml $(ASSIGNMENTS)

.PHONY: bench-userspace
bench-userspace: setup ## calls between two processes, beside a cache line's trip, iceoryx2, tarpc and UDP; ARGUMENTS='--help'
	@$(CARGO) build --quiet --release --locked --package mitosis-userspace-programs --features others
	@target/release/bench-userspace $(ARGUMENTS)

.PHONY: kills
kills: setup ## kill -9 servers and clients over shared memory, a thousand of each at random moments
	@MITOSIS_KILLS=1000 $(CARGO) test --quiet --release --locked --package mitosis --test killed -- --nocapture the_other

.PHONY: build-rpc-programs
build-rpc-programs: setup ## build the programs that do the same over RDMA without a module
	@$(call STRESS,build templates-build/template-build-rpc-programs.toml)

.PHONY: peak-rpc-verbs
peak-rpc-verbs: setup ## run the RPC stress test between processes, over RDMA
	@$(call STRESS,run templates-run/peak-rpc-verbs.toml)

.PHONY: interop
interop: setup ## let processes and kernel modules call each other, with checksums, and read remote memory
	@$(call STRESS,interop)

.PHONY: bench-verbs
bench-verbs: setup ## compare a round trip between processes over RDMA with perftest's, on the same machines in the same run
	@$(call STRESS,bench-rpc --target bench-verbs --bound 1.1 --template templates-run/peak-rpc-verbs.toml)

.PHONY: build-lean-container-bench
build-lean-container-bench: setup ## build the C++ parent, the lean containers, and mitosis.ko for each kernel of the cluster
	@$(call STRESS,build templates-build/template-build-cpp.toml)
	@$(call STRESS,build templates-build/template-build-mitosis.toml)

.PHONY: peak-lean-container
peak-lean-container: setup ## fork a C++ program into lean containers on the clients, one after another
	@$(call STRESS,run templates-run/peak-lean-container.toml)

.PHONY: simple-fork
simple-fork: setup ## a counter that goes on, on another machine
	@$(call STRESS,run templates-run/simple-fork.toml)

.PHONY: fork-faults
fork-faults: setup ## take seeds, machines, networks and memory from forked processes, and fork again; ARGUMENTS='--help'
	@$(call STRESS,fork-faults $(ARGUMENTS))

.PHONY: bench-fork
bench-fork: setup ## compare remote fork with fork(), perftest and CRIU, on the same machines in the same run
	@$(call STRESS,bench-fork)

.PHONY: bench-rpc
bench-rpc: setup ## compare the empty RPC's round trip with perftest's, on the same machines in the same run
	@$(call STRESS,bench-rpc)

.PHONY: bench-core
bench-core: setup ## count the instructions of a small call in the core, by callgrind
	@[ -x $(GUNGRAUN_RUNNER) ] || $(CARGO) install --quiet --locked --root target/gungraun-$(GUNGRAUN) \
		--version $(GUNGRAUN) gungraun-runner
	@GUNGRAUN_RUNNER=$(GUNGRAUN_RUNNER) $(CARGO) bench --quiet --locked --package mitosis-core --bench instructions

.PHONY: simulate
simulate: setup ## 10 million calls over 1,000 seeds on a simulated network; ARGUMENTS='--help' says what else
	@$(CARGO) run --quiet --release --locked --package mitosis-testkit --bin simulate -- $(ARGUMENTS)

.PHONY: module-checks
module-checks: setup ## load and unload the modules in every order, and look for what they leave behind
	@$(call STRESS,check)

.PHONY: faults
faults: setup ## run the RPC over a spoilt network, through restarts of modules and machines, and beside a flood
	@$(call STRESS,faults)

.PHONY: attack
attack: setup ## DATAGRAMS=10000000 bad ones beside an honest client, a million bad calls on /dev/mitosis, bad parameters, no memory
	@$(call STRESS,attack)
	@$(call STRESS,faults --only flood --datagrams $(DATAGRAMS))

.PHONY: panic-free
panic-free: setup ## look into the built modules of each kernel for anything that could panic or unwind
	@$(MAKE) -C kmod-glue panic-free KERNEL=6.12
	@$(MAKE) -C kmod-glue panic-free KERNEL=6.1

.PHONY: test
test: setup ## everything that CI runs: formatting, lints, tests, module builds, a short run on each kernel, fuzzing
	@stress/test.sh

.PHONY: fuzz
fuzz: setup ## fuzz every target for MINUTES=1 each; what is found is left in fuzz/artifacts
	@CARGO=$(CARGO) fuzz/all.sh $(MINUTES)

.PHONY: mutants
mutants: setup ## change the core in each place that cargo-mutants knows, and expect its tests to notice; SHARD=k/n for the k-th of n parts, from 0
	@$(CARGO) mutants --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-mutants
	@core/mutants.sh $(SHARD)

.PHONY: miri
miri: ## core's unit tests in miri, where rustup has a nightly toolchain with it: rustup toolchain install nightly --component miri,rust-src
	@PROPTEST_CASES=2 MIRIFLAGS=-Zmiri-disable-isolation $(CARGO) +nightly miri test --locked --package mitosis-core --lib

.PHONY: loom-mutants
loom-mutants: ## weaken the orderings of core/src/sync one by one, and expect that loom finds each
	@CARGO=$(CARGO) loom-tests/mutants.sh

.PHONY: clean
clean: ## unload modules that a killed run left on a real cluster, and remove out/
	@$(call STRESS,build templates-build/template-clean.toml)

.PHONY: distclean
distclean: clean ## clean, and remove everything else that can be made or fetched again
	rm -rf .cache target kmod-glue/build kmod-glue/target
