#!/bin/sh
# All that CI runs, for `make test`: each step with its seconds, and its output where it fails.
#
# usage: test.sh [WORD]    only the steps whose name has this word in it
set -u

cd "$(dirname "$0")/.." || exit 1
only=${1-}
cargo=${CARGO:-cargo}
# What the outer make was told is not meant for the builds and runs in here.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL

output=$(mktemp)
trap 'rm -f "$output"' EXIT
trap 'exit 130' INT TERM HUP
passed=0
failed=0

# step NAME COMMAND…
step() {
    name=$1
    shift
    case $name in *"$only"*) ;; *) return ;; esac
    began=$(date +%s)
    if "$@" >"$output" 2>&1 </dev/null; then
        passed=$((passed + 1))
        echo "ok     $name ($(($(date +%s) - began)) s)"
    else
        code=$?
        [ "$code" != 130 ] || exit 130
        failed=$((failed + 1))
        echo "FAILED $name ($(($(date +%s) - began)) s): $*"
        sed 's/^/    /' "$output"
    fi
}

formatting() {
    $cargo fmt --all --check && $cargo fmt --manifest-path kmod-glue/Cargo.toml --check
}

# One package at a time, so that the features of one do not leak into another.
lint() {
    manifest=$1
    shift
    $cargo clippy --quiet --locked --manifest-path "$manifest" --all-targets "$@" -- -D warnings
}

# Kbuild's own warnings (objtool, modpost, the compiler) do not fail a build.
modules() {
    make -C kmod-glue "KERNEL=$1" || return 1
    if grep -iE '(^|[^-_[:alnum:]])warning:' "$output" >&2; then
        echo "the build of the modules for $1 is not free of warnings" >&2
        return 1
    fi
}

run() {
    kernel=$1
    shift
    $cargo run --quiet --locked --package mitosis-stress -- run templates-run/peak-rpc-kernel-module.toml "$@" \
        "KERNEL=$kernel" client_running_secs=5 server_running_secs=60 thread_count=4
}

interop() {
    $cargo run --quiet --locked --package mitosis-stress -- interop --short KERNEL=6.12
}

faults() {
    $cargo run --quiet --locked --package mitosis-stress -- faults "$@" KERNEL=6.12
}

# Payloads of several datagrams, over paths of either length, so that all their parts are verified.
# Whatever modules were made last, a run brings those up to date: the plain ones are made again at the end.
checksums() {
    $cargo run --quiet --locked --package mitosis-stress -- build templates-build/template-build-rpc-checksum.toml &&
        run 6.12 VM_MTU=1024 window=4 && run 6.12 VM_MTU=2048 payload_size=65536 && faults --only damaged
    code=$?
    $cargo run --quiet --locked --package mitosis-stress -- build templates-build/template-build-rpc-bench.toml &&
        return $code
}

forks() {
    for template in template-build-cpp template-build-mitosis; do
        $cargo run --quiet --locked --package mitosis-stress -- build templates-build/$template.toml KERNEL=6.12 || return 1
    done
    $cargo run --quiet --locked --package mitosis-stress -- run templates-run/peak-lean-container.toml KERNEL=6.12 \
        CLIENTS=1 run_secs=5
}

# Of the other kernel than the runs before it.
fork_faults() {
    $cargo run --quiet --locked --package mitosis-stress -- fork-faults --short --only "revoked,a copy that,refused" KERNEL=6.1
}

attack() {
    $cargo run --quiet --locked --package mitosis-stress -- attack --short --only calls KERNEL=6.12
}

step "formatting" formatting
for manifest in core/Cargo.toml core/testkit/Cargo.toml loom-tests/Cargo.toml fuzz/Cargo.toml userspace-glue/Cargo.toml \
    userspace-glue/libmitosis/Cargo.toml userspace-glue/libmitosis/command/Cargo.toml stress/userspace/Cargo.toml stress/Cargo.toml; do
    [ ! -e "$manifest" ] || step "lint of ${manifest%/*}" lint "$manifest"
done
step "lint of kmod-glue" make -C kmod-glue lint
step "lint of userspace-glue with verbs" lint userspace-glue/Cargo.toml --features verbs
step "lint of stress/userspace with verbs" lint stress/userspace/Cargo.toml --features verbs
step "unit tests" $cargo test --quiet --locked --workspace
for kernel in 6.12 6.1; do
    step "modules for $kernel" modules $kernel
    step "no panics in the modules for $kernel" make -C kmod-glue panic-free "KERNEL=$kernel"
done
for kernel in 6.12 6.1; do
    step "a short run on $kernel" run $kernel
done
step "a short run on 6.12, with checksums" checksums
step "faults on 6.12, in short" faults --short
step "processes and modules on 6.12, in short" interop
step "forks into lean containers on 6.12, in short" forks
step "faults under forks on 6.1, in short" fork_faults
step "bad calls on 6.12, in short" attack

step "each fuzz target for 20 s" fuzz/all.sh 20s

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
