#!/bin/sh
# Builds what the cluster's machines boot besides a stock kernel: an initramfs of Debian's own programs and of the
# kernel's own modules. Kept in the cache under a hash of all that goes into it; any user may run it.
#
# usage: image.sh 6.12|6.1
#
# Prints the image's path. To add to the guest, edit guest/packages, guest/modules or guest/init.
# .cache/ssh has the key that opens the guests, and the host key that they all show.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${MITOSIS_CACHE:-$here/../../.cache}
PATH=$PATH:/usr/sbin:/sbin

case ${1-} in
    ''|-h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
esac
kernel=$("$here/../kernels.sh" "$1")
release=$(cat "$kernel/release")
mkdir -p "$cache/images"
cache=$(cd "$cache" && pwd)

hash_of() { cat "$@" | sha256sum | cut -c1-12; }
words() { sed 's/#.*//' "$1"; }
inputs() {
    hash_of "$here/packages" "$here/modules" "$here/init" "$here/image.sh" "$cache/ssh/id_ed25519.pub" \
        "$cache/ssh/known_hosts" 2>/dev/null
}
image() { echo "$cache/images/$release-$(inputs).cpio.zst"; }

[ ! -e "$(image)" ] || { image; exit 0; }
exec 9>"$cache/images/.lock"
flock 9
[ ! -e "$(image)" ] || { image; exit 0; }

# shellcheck source=../packages.sh
. "$here/../packages.sh"

temporary=$(mktemp -d "$cache/images/.new.XXXXXX")
trap 'rm -rf "$temporary"' EXIT
trap 'exit 130' INT TERM HUP

# The packages, unpacked side by side; both kernels share them.
packages=$cache/images/packages-$(hash_of "$here/packages")
if [ ! -d "$packages" ]; then
    echo "guest/image.sh: fetching the guest's packages" >&2
    names="dropbear-bin $(words "$here/packages" | awk '{print $1}')"
    mkdir "$temporary/debs" "$temporary/packages"
    # shellcheck disable=SC2086
    fetch() { all=$(closure $names) && [ -n "$all" ] && download "$temporary/debs" $all; }
    fetch || { refresh_lists && fetch; } || { echo "guest/image.sh: cannot fetch the guest's packages" >&2; exit 1; }
    for deb in "$temporary"/debs/*.deb; do dpkg-deb -x "$deb" "$temporary/packages"; done
    rm -rf "$cache"/images/packages-*
    mv "$temporary/packages" "$packages"
fi

# Keys. One host key serves all guests: they are one image.
if [ ! -e "$cache/ssh/known_hosts" ]; then
    rm -rf "$cache/ssh"
    mkdir -m 700 "$temporary/ssh"
    ssh-keygen -q -t ed25519 -N '' -C mitosis -f "$temporary/ssh/id_ed25519"
    libraries=$packages/lib/x86_64-linux-gnu:$packages/usr/lib/x86_64-linux-gnu
    "$packages/lib64/ld-linux-x86-64.so.2" --library-path "$libraries" "$packages/usr/bin/dropbearkey" \
        -t ed25519 -f "$temporary/ssh/dropbear_ed25519_host_key" 2>/dev/null |
        sed -n 's/^ssh-ed25519 \([^ ]*\).*/mitosis-guest ssh-ed25519 \1/p' >"$temporary/ssh/known_hosts"
    [ -s "$temporary/ssh/known_hosts" ] || { echo "guest/image.sh: dropbearkey made no host key" >&2; exit 1; }
    mv "$temporary/ssh" "$cache/ssh"
fi

root=$temporary/root
mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib64" "$root/usr/lib/x86_64-linux-gnu" "$root/dev" \
    "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/mnt" "$root/etc/dropbear" "$root/mitosis"
for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$root/$directory"; done

# carry FILE: from the packages into the image, with the libraries that it needs. All of it lives below usr there.
carry() {
    case $1 in etc/*|usr/*) to=$root/$1 ;; *) to=$root/usr/$1 ;; esac
    [ ! -e "$to" ] || return 0
    mkdir -p "${to%/*}"
    if [ -L "$packages/$1" ]; then
        case $(readlink "$packages/$1") in
            /*) carry "$(readlink "$packages/$1" | cut -c2-)" ;;
            *) carry "$(realpath -s --relative-to="$packages" "$packages/${1%/*}/$(readlink "$packages/$1")")" ;;
        esac
        case $1 in etc/*|usr/*) to=$root/$1 ;; *) to=$root/usr/$1 ;; esac
        cp -P "$packages/$1" "$to"
        return 0
    fi
    cp "$packages/$1" "$to"
    for library in $(readelf -d "$to" 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
        carry "$(cd "$packages" && find lib lib64 usr/lib -name "$library" | head -n 1)"
    done
}
words "$here/packages" | while read -r package globs; do
    [ -n "$package" ] || continue
    # shellcheck disable=SC2086
    for file in $(cd "$packages" && echo $globs); do
        [ -e "$packages/$file" ] || [ -L "$packages/$file" ] ||
            { echo "guest/image.sh: guest/packages: $package has no $file" >&2; exit 1; }
        carry "$file"
    done
done
carry lib64/ld-linux-x86-64.so.2
for applet in $("$packages/bin/busybox" --list); do
    [ -e "$root/usr/bin/$applet" ] || [ -e "$root/usr/sbin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"
done

# The kernel's modules, unpacked: the image is compressed as a whole.
words "$here/modules" | while read -r module when; do
    [ -n "$module" ] || continue
    [ "$when" != boot ] || echo "$module" >>"$root/etc/boot-modules"
    steps=$(modprobe -d "$kernel" -S "$release" --show-depends "$module") ||
        { echo "guest/image.sh: guest/modules: kernel $release has no $module" >&2; exit 1; }
    echo "$steps" | sed -n 's/^insmod \([^ ]*\).*/\1/p' >>"$temporary/modules"
done
modules=lib/modules/$release
sort -u "$temporary/modules" | while read -r file; do
    to=$root/$modules/${file#*"/$modules/"}
    mkdir -p "${to%/*}"
    case $file in *.xz) xz -dc "$file" >"${to%.xz}" ;; *) cp "$file" "$to" ;; esac
done
cp "$kernel/modules/modules.builtin" "$kernel/modules/modules.builtin.modinfo" "$kernel/modules/modules.order" \
    "$root/$modules/"
depmod -b "$root" "$release"

install -m 755 "$here/init" "$root/init"
install -m 600 "$cache/ssh/dropbear_ed25519_host_key" "$root/etc/dropbear/"
install -d -m 700 "$root/root" "$root/root/.ssh"
install -m 600 "$cache/ssh/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo '::ctrlaltdel:/usr/bin/poweroff -f' >"$root/etc/inittab"
{
    echo '127.0.0.1 localhost'
    for n in $(seq 1 64); do printf '10.73.0.%d val%02d\n' "$n" "$n"; done
} >"$root/etc/hosts"

(cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) | zstd -q -10 -o "$temporary/image"
rm -f "$cache/images/$release"-*
mv "$temporary/image" "$(image)"
image
