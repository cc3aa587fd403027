# shellcheck shell=sh disable=SC2154
# Debian packages as files, without installing them. Sourced by kernels.sh and guest/image.sh with $cache set.
#
# The machine's own package lists are used as they are. Where they are missing, or older than the mirror, a second set
# is fetched into the cache: that takes no root, and the machine's package state stays as it is.

apt_options='-o APT::Sandbox::User=root -o Debug::NoLocking=true'

refresh_lists() {
    echo "fetching the package lists" >&2
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
    apt_options="$apt_options -o Dir::State::lists=$cache/apt/lists -o Dir::Cache=$cache/apt"
    # shellcheck disable=SC2086
    apt-get $apt_options -qq update
}

# The packages that a package depends on directly.
depends() {
    # shellcheck disable=SC2086
    apt-cache $apt_options depends "$1" 2>/dev/null | sed -n 's/^ *Depends: //p'
}

# The given packages and all that they need, as if nothing at all were installed.
closure() {
    # shellcheck disable=SC2086
    apt-get $apt_options -o Dir::State::status=/dev/null -s --no-install-recommends install "$@" 2>/dev/null |
        sed -n 's/^Inst \([^ ]*\) .*/\1/p'
}

# download DIRECTORY PACKAGE…
download() {
    (
        cd "$1" || exit
        shift
        # shellcheck disable=SC2086
        apt-get $apt_options -qq download "$@"
    )
}
