#!/bin/sh
# Fuzzes every target for a while, one after the other, and says what each has done.
#
# usage: all.sh MINUTES | SECONDSs
#
# What a run finds of interest goes into fuzz/corpus/<target>/, where git ignores it, and what breaks a target into
# fuzz/artifacts/<target>/. Templates are seeds of template_parse. The exit code is not 0 if anything was found.
set -u

cd "$(dirname "$0")/.." || exit 1
case ${1-} in
    ''|s|*[!0-9s]*|*s*s|*s[0-9]*) echo "usage: fuzz/all.sh MINUTES | SECONDSs: 10 or 20s" >&2; exit 2 ;;
    *s) seconds=${1%s} ;;
    *) seconds=$(($1 * 60)) ;;
esac
cargo=${CARGO:-cargo}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM HUP
found=0

$cargo fuzz --version >/dev/null 2>&1 || $cargo install --quiet --locked cargo-fuzz || exit 1
$cargo fuzz build || exit 1
printf '%-18s %12s %12s %9s %8s\n' target executions per-second coverage corpus
for target in $($cargo fuzz list); do
    mkdir -p "fuzz/corpus/$target"
    set -- "fuzz/corpus/$target"
    [ "$target" != template_parse ] || set -- "$@" templates-run templates-build
    set -- "$@" -- "-max_total_time=$seconds" -print_final_stats=1 -max_len=4096
    [ ! -e "fuzz/dictionaries/$target.dict" ] || set -- "$@" "-dict=fuzz/dictionaries/$target.dict"
    if $cargo fuzz run "$target" "$@" >"$log" 2>&1; then
        awk -v target="$target" '
            /stat::number_of_executed_units/ { executions = $2 }
            /stat::average_exec_per_sec/ { rate = $2 }
            / cov: / { for (i = 1; i < NF; i++) { if ($i == "cov:") cov = $(i + 1); if ($i == "corp:") corpus = $(i + 1) } }
            END { printf "%-18s %12s %12s %9s %8s\n", target, executions, rate, cov, corpus }' "$log"
    else
        found=$((found + 1))
        echo "$target: FOUND something" >&2
        tail -40 "$log" >&2
    fi
done
[ "$found" = 0 ]
