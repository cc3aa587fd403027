#!/bin/sh
# Looks into built modules (.ko) or objects for anything by which Rust could panic or unwind.
#
# usage: panic-free.sh FILE...
#
# A file passes if it holds compiled Rust and none of:
#   a symbol, defined or wanted, of core::panicking, of a panic handler or of an unwinder
#   the text that this crate's panic handler logs, which stays if everything that leads there was inlined
#   tables for unwinding (.eh_frame, .gcc_except_table; .orc_unwind is the kernel's own, for its stack traces)
#   an instruction in a Rust function that traps (ud2, int3), to which an abort is compiled; of a module, in those whose
#   names are mangled, as those that C calls cannot be told from C's: the object (.o) that Make links has nothing but Rust's
# What C compiles to is the kernel's matter: BUG and WARN are ud2 there, and checked copies know fortify_panic.
set -u

names='panick|PanicInfo|PanicMessage|panic_handler|begin_unwind|_Unwind_|eh_personality|rust_panic|rust_eh|[0-9](unwrap|expect|slice_[a-z_]*)_fail'
text='panic: a defect in the module'
found=0

finds() { # FILE WHAT LINES
    [ -n "$3" ] || return 0
    found=$((found + 1))
    echo "$1: $2:" >&2
    echo "$3" | sed 's/^/    /' >&2
}

case ${1-} in ''|-h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 2 ;; esac
for file in "$@"; do
    symbols=$(nm "$file") && sections=$(readelf -SW "$file") && code=$(objdump -d --no-show-raw-insn "$file") || exit 1
    rust=$(echo "$symbols" | grep -cE ' [tT] _R')
    if [ "$rust" = 0 ]; then
        finds "$file" "no names of Rust's functions, so nothing can be said of it" "not built here, or stripped"
    fi
    finds "$file" "refers to a panic or to unwinding" "$(echo "$symbols" | grep -E "$names")"
    finds "$file" "holds the panic handler" "$(grep -aoF "$text" "$file")"
    finds "$file" "has tables for unwinding" "$(echo "$sections" | grep -oE '[^ ]*(\.eh_frame|\.gcc_except_table)[^ ]*')"
    case $file in *.ko) of='^<_R' ;; *) of='^<' ;; esac
    finds "$file" "traps" "$(echo "$code" | awk -v of="$of" '
        /^[0-9a-f]+ <.*>:$/ { name = $2 }
        name ~ of && / (ud2|int3)( |$|\t)/ { traps[name]++ }
        END { for (name in traps) print traps[name], name }')"
    [ "$found" != 0 ] || echo "$file: $rust Rust functions, no panic"
done
[ "$found" = 0 ] || { echo "panic-free.sh: $found findings" >&2; exit 1; }
