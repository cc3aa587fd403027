#!/bin/sh
# Sees to it that what the builds and the virtual cluster need is installed. Made for a fresh Debian 12 machine. Silent,
# and a matter of milliseconds, when all of it is there.
#
# usage: setup.sh            all of it
#        setup.sh build      what compiles the modules and the programs
#        setup.sh vm         what runs the virtual cluster
#        setup.sh check      installs nothing: says what is missing, and exits with 1 where something is
#
# As root it installs what is missing; otherwise it prints the command that would. Kernels are no part of it: kernels.sh
# keeps them in the cache.
set -eu

# The first word of each line is a package, the rest says what for.
build='
cargo-web         the build of the kernel modules
rustc-web         the compiler of the kernel modules
rust-web-src      the standard library, compiled anew for the kernel
rust-web-clippy   lints
rustfmt-web       formatting
gcc-12            the compiler that Debian built its kernels with
gcc               linking programs
libc6-dev         linking programs
g++               the fuzzing library
make              Kbuild
binutils          linking the modules
kmod              indexing and finding kernel modules
libelf1           Kbuild, for its tools
ca-certificates   fetching crates
valgrind          counting instructions
libibverbs-dev    programs that use RDMA devices
librdmacm-dev     programs that use RDMA devices
libclang-14-dev   rdma-sys, which reads their headers with it; later versions fail
pkg-config        rdma-sys, which finds them with it
python3           testing the Python module
'
vm='
qemu-system-x86   the machines
iproute2          their network
openssh-client    the way into them
kmod              indexing and finding kernel modules
binutils          finding the libraries that they need
cpio              packing their image
zstd              packing their image
xz-utils          unpacking kernel modules
'

case ${1-} in
    '') wanted=$build$vm ;;
    build) wanted=$build ;;
    vm) wanted=$vm ;;
    check) wanted=$build$vm ;;
    -h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "setup.sh: '$1' is none of build, vm and check" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
    echo "setup.sh: this is not Debian; see to these yourself:$wanted" >&2
    exit 0
fi
names=$(echo "$wanted" | awk 'NF && !seen[$1]++ { print $1 }')
# shellcheck disable=SC2016,SC2086
installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $names 2>/dev/null | sed -n 's/^installed //p') || true
missing=
for name in $names; do
    case "
$installed
" in *"
$name
"*) ;; *) missing="$missing $name" ;; esac
done
[ -n "$missing" ] || exit 0

install="apt-get install --yes --no-install-recommends$missing"
echo "MITOSIS needs packages that are not installed:" >&2
for name in $missing; do
    echo "$wanted" | awk -v name="$name" '$1 == name { print "  " $0; exit }' >&2
done
if [ "${1-}" = check ]; then exit 1; fi
if [ "$(id -u)" != 0 ]; then
    echo "Run this, then try again:  sudo apt-get update && sudo $install" >&2
    exit 1
fi

echo "Installing them." >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM HUP
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
if ! { apt-get update && $install; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "setup.sh: '$install' failed; its last lines are above. Debian 12 (with its security updates) has all of these." >&2
    exit 1
fi
