#!/bin/sh
# Keeps Debian's kernels in the cache: image, modules and headers, fetched as packages and unpacked there, so that the
# machine's own /boot, /lib/modules and /usr/src stay as they are. Any user may run it.
#
# usage: kernels.sh 6.12|6.1     the stock kernel of that series: image, modules and headers
#        kernels.sh RELEASE      the headers of one release (`uname -r`), for building modules for a real cluster
#
# Prints the directory that holds
#   release    the release, as `uname -r` says it
#   headers    for `make -C …/headers M=…`
#   vmlinuz    the image to boot, and
#   modules    its modules, /lib/modules/RELEASE there (both absent where only headers were asked for)
# What is cached is used for good: the image and the modules built against its headers must be of one ABI. Remove the
# cache to move on to a newer release. MITOSIS_CACHE says where the cache is; default: .cache in the checkout.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${MITOSIS_CACHE:-$here/../.cache}
PATH=$PATH:/usr/sbin:/sbin

die() { echo "kernels.sh: $*" >&2; exit 1; }
say() { echo "kernels.sh: $*" >&2; }

case ${1-} in
    ''|-h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    */*|.*) die "'$1' is neither a kernel series (6.12, 6.1) nor a release (uname -r)" ;;
esac
want=$1
mkdir -p "$cache/kernels"
cache=$(cd "$cache" && pwd)
found=$cache/kernels/$want

have() {
    [ -e "$found/headers/Makefile" ] || return 1
    case $want in *-*) ;; *) [ -e "$found/vmlinuz" ] && [ -e "$found/modules/modules.dep" ] ;; esac
}
done_() { (cd "$found" && pwd -P); exit 0; }

if have; then done_; fi

# shellcheck source=packages.sh
. "$here/packages.sh"

# One at a time: the modules for both kernels and the cluster may all want them at once.
exec 9>"$cache/kernels/.lock"
flock 9
if have; then done_; fi

# The release that the metapackage stands for today.
resolve() {
    case $want in
        *-*) release=$want; return ;;
        6.1) meta=linux-image-amd64 ;;
        *) meta=linux-image-$want-amd64 ;;
    esac
    release=$(depends "$meta" | sed -n 's/^linux-image-//p' | head -n 1)
    [ -n "$release" ] || return 1
    case $release in
        "$want".*) ;;
        *) die "$meta is $release here, not a $want kernel; Debian 12 has both 6.12 and 6.1" ;;
    esac
}

fetch() {
    resolve || return 1
    packages=$(depends "linux-headers-$release" | grep -E '^linux-(headers|kbuild|compiler)-') || return 1
    packages="linux-headers-$release $packages"
    case $want in *-*) ;; *) packages="$packages linux-image-$release" ;; esac
    # shellcheck disable=SC2086
    say "fetching" $packages
    # shellcheck disable=SC2086
    download "$temporary/debs" $packages
}

temporary=$(mktemp -d "$cache/kernels/.new.XXXXXX")
trap 'rm -rf "$temporary"' EXIT
trap 'exit 130' INT TERM HUP
mkdir "$temporary/debs" "$temporary/tree"

local_headers=/lib/modules/$want/build
if [ -e "$local_headers/Makefile" ]; then
    release=$want
    ln -s "$local_headers" "$temporary/tree/headers"
else
    fetch || { refresh_lists && fetch; } ||
        die "cannot fetch the packages of kernel $want. For a release that the archive no longer has, install its" \
            "headers on this machine (/lib/modules/$want/build); otherwise look at apt's message above."
    for deb in "$temporary"/debs/*.deb; do dpkg-deb -x "$deb" "$temporary/tree"; done
    headers=usr/src/linux-headers-$release
    # The packaged Makefile is one line that includes the common headers by an absolute path.
    # shellcheck disable=SC2016
    sed -i 's|/usr/src/|$(dir $(lastword $(MAKEFILE_LIST)))../|' "$temporary/tree/$headers/Makefile"
    ln -s "$headers" "$temporary/tree/headers"
    if [ -e "$temporary/tree/boot/vmlinuz-$release" ]; then
        ln -s "boot/vmlinuz-$release" "$temporary/tree/vmlinuz"
        ln -s "lib/modules/$release" "$temporary/tree/modules"
        depmod -b "$temporary/tree" -F "$temporary/tree/boot/System.map-$release" "$release"
    fi
fi
echo "$release" >"$temporary/tree/release"

rm -rf "$cache/kernels/$release"
mv "$temporary/tree" "$cache/kernels/$release"
[ "$want" = "$release" ] || ln -sfn "$release" "$found"
done_
