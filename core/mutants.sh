#!/bin/sh
# Changes the core in one place after another (`cargo mutants`), and runs its tests on each. .cargo/mutants.toml says where.
#
# usage: mutants.sh [k/n]    every n-th change, beginning with the k-th, from 0
#
# What became of each change is in target/mutants/mutants.out, also of a run that was ended early. All changes come in random
# order, so that the first of them are a sample; those of a part in the files' order, which halves the compiler's work. The
# exit code is 2 if one was missed. The copy that is changed lies in TMPDIR, by default in memory.
set -eu

cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
shard=${1-}
case $shard in ''|[0-9]*/[0-9]*) ;; *) echo "usage: core/mutants.sh [k/n]" >&2; exit 2 ;; esac
[ -n "${TMPDIR-}" ] || [ ! -w /dev/shm ] || export TMPDIR=/dev/shm

# A change that makes a test run for ever is caught by the processor time that it takes, however much else runs here.
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="prlimit --cpu=20"
# Enough for what a change breaks always; what one of a thousand cases shows is not what is asked for.
export PROPTEST_CASES="${PROPTEST_CASES:-64}"
# Parts share what the tests depend on.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${TMPDIR:-/tmp}/mitosis-mutants}"
order=--shuffle
[ -z "$shard" ] || order=--no-shuffle
mkdir -p target
exec "$cargo" mutants --package mitosis-core --output target/mutants $order ${shard:+--sharding round-robin --shard "$shard"}
