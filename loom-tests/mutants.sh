#!/bin/sh
# Weakens the orderings of core/src/sync one by one, in a copy, and expects that loom finds each.
#
# usage: mutants.sh [WORD]    only those whose file has this word in its name
#
# Acquire and Release become Relaxed, AcqRel becomes each of its halves, SeqCst becomes AcqRel. Every ordering of the code
# is one; those of tests are not. A model that still passes, or does not compile, fails this.
set -u

cd "$(dirname "$0")/.." || exit 1
only=${1-}
cargo=${CARGO:-cargo}
scratch=$(pwd)/target/loom-mutants
rm -rf "$scratch/tree"
mkdir -p "$scratch/tree/core"
trap 'rm -rf "$scratch/tree"' EXIT
trap 'exit 130' INT TERM HUP
cp -r core/src core/Cargo.toml "$scratch/tree/core/"
cp -r loom-tests Cargo.lock "$scratch/tree/"
# A workspace of its own, with the packages' common settings, and nothing to build but the models.
sed 's/^members = \[/members = ["loom-tests"]\nunused = [/' Cargo.toml | sed '/^unused = \[/,/^\]/d; /^exclude/d' >"$scratch/tree/Cargo.toml"
printf '\n[profile.dev]\nopt-level = 2\ndebug = false\n' >>"$scratch/tree/Cargo.toml"
export CARGO_TARGET_DIR="$scratch/target"

# Which models look at a file.
models() {
    case ${1%%/*} in
        count) echo '--test loom_count --test loom_seeds' ;;
        gauge | stop) echo '--test loom_signals --test loom_seeds --test loom_shutdown' ;;
        *) echo "--test loom_${1%%/*}" ;;
    esac
}

# The code of a file, line by line with numbers, without its tests.
code() { awk '/^#\[cfg\(all\(test/ { exit } !/^ *\/\// { print NR ":" $0 }' "$1"; }

try() { # NAME LINE FROM TO
    place="$scratch/tree/core/src/sync/$1.rs"
    sed "$2s/Ordering::$3/Ordering::$4/" "core/src/sync/$1.rs" >"$place"
    # shellcheck disable=SC2046 # words
    if ! (cd "$scratch/tree" && $cargo test --quiet --no-run --package mitosis-loom-tests $(models "$1")) >"$scratch/log" 2>&1; then
        echo "BROKEN $1.rs:$2 $3 -> $4: does not compile" >&2
        tail -20 "$scratch/log" >&2
        return 1
    fi
    # shellcheck disable=SC2046
    if (cd "$scratch/tree" && timeout 600 $cargo test --quiet --package mitosis-loom-tests $(models "$1")) >"$scratch/log" 2>&1; then
        echo "MISSED $1.rs:$2 $3 -> $4" >&2
        return 1
    fi
    grep -q 'test result: FAILED\|panicked' "$scratch/log" || {
        echo "UNCLEAR $1.rs:$2 $3 -> $4: no model failed, nor passed in time" >&2
        return 1
    }
    echo "caught $1.rs:$2 $3 -> $4"
}

# As they are, the models pass: or nothing follows from their failing.
if ! (cd "$scratch/tree" && $cargo test --quiet --package mitosis-loom-tests loom) >"$scratch/log" 2>&1; then
    echo 'the models fail as they are' >&2
    tail -40 "$scratch/log" >&2
    exit 1
fi

missed=0
tried=0
for file in $(find core/src/sync -name '*.rs' ! -name tests.rs | sort); do
    name=${file#core/src/sync/}
    name=${name%.rs}
    case $name in *"$only"*) ;; *) continue ;; esac
    for found in $(code "$file" | grep -o '^[0-9]*:.*Ordering::\(Acquire\|Release\|AcqRel\|SeqCst\)' | sed 's/:.*Ordering::/:/'); do
        line=${found%%:*}
        case ${found#*:} in
            AcqRel) weaker='Acquire Release' ;;
            SeqCst) weaker=AcqRel ;;
            *) weaker=Relaxed ;;
        esac
        for to in $weaker; do
            tried=$((tried + 1))
            try "$name" "$line" "${found#*:}" "$to" || missed=$((missed + 1))
        done
    done
    cp "$file" "$scratch/tree/core/src/sync/$name.rs"
done
echo "$tried weakened, $((tried - missed)) caught"
[ "$missed" = 0 ] && [ "$tried" != 0 ]
