#!/usr/bin/env bash
# A second QEMU for the tests of front ends: that of Debian 13 (10.0), beside the system's.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/fetch-qemu.sh

Fetches Debian 13's QEMU with the libraries that it uses, as packages (10 MB of lists, 38 MB of packages), and keeps in
target/guest-image/qemu-10 what boots a guest (66 MB), to be run from there: nothing is installed, and no root is needed.
Refreshes the package lists where there are none and it is run by root. Does nothing where that folder is there, and nothing where the
system's QEMU is at least as new.

  BLOCKRING_QEMU_10   a QEMU of your own, 9.2 or newer; nothing is fetched then
  CARGO_TARGET_DIR    moves the target folder, as it does for cargo
TEXT
}

case "${1:-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

# Debian's keys sign every release of it, so that an older Debian can verify a newer one.
SUITE=trixie
KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
cache=$(realpath -m "${CARGO_TARGET_DIR:-target}")/guest-image
wanted=$cache/qemu-10

say() { printf 'fetch-qemu: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# The first with `reconnect-ms=`.
new_enough() { # PROGRAM
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/.* version \([0-9]*\.[0-9]*\).*/\1/p')
    [ -n "$version" ] && printf '9.2\n%s\n' "$version" | sort --check=quiet --version-sort
}

# The mirror that this machine uses; empty if it uses none of Debian's.
mirror() {
    # shellcheck disable=SC2016  # apt fills these in
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1
}

# Runs apt-get with lists, state and packages in the current folder, as if nothing were installed.
apt() {
    apt-get -qq -o Dir::State="$PWD" -o Dir::State::status="$PWD/status" -o Dir::Cache="$PWD" -o Dir::Etc::sourcelist="$PWD/sources" \
        -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Debug::NoLocking=1 -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o APT::Sandbox::User="$(id -un)" "$@" >&2
}

download() {
    local from
    mkdir -p lists/partial archives/partial
    : >status
    from=$(mirror)
    if [ -z "$from" ] && [ "$(id -u)" = 0 ]; then
        say "refreshing the package lists (apt-get update)"
        apt-get update -q >&2 || true
        from=$(mirror)
    fi
    if [ -z "$from" ]; then
        say "apt has no lists of a Debian mirror here (apt-get update)"
        return 1
    fi
    echo "deb [signed-by=$KEYS] $from $SUITE main" >sources
    apt update && apt install --yes --no-install-recommends --download-only qemu-system-x86
}

# Prints the libraries that the program loads, its loader among them.
libraries() { # ROOT'S-LIBRARIES PROGRAM
    "$1/ld-linux-x86-64.so.2" --library-path "$1" --list "$2" | sed -n 's/.*=> \([^ ]*\) .*/\1/p'
}

fetch() {
    local work package
    [ -x "$(command -v apt-get)" ] && [ -x "$(command -v dpkg-deb)" ] && [ -e "$KEYS" ] ||
        fail "no apt-get with Debian's keys here: name a QEMU, 9.2 or newer, with BLOCKRING_QEMU_10"
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    # shellcheck disable=SC2064  # the folder's name as it is now
    trap "rm -rf '$work'" EXIT
    cd "$work"
    say "fetching QEMU 10 of Debian 13 with its libraries (48 MB)"
    download || fail "qemu-system-x86 of $SUITE cannot be downloaded: name a QEMU, 9.2 or newer, with BLOCKRING_QEMU_10"
    for package in archives/*.deb; do
        dpkg-deb -x "$package" root
    done
    mkdir -p qemu/lib qemu/share
    cp root/usr/bin/qemu-system-x86_64 qemu/qemu
    libraries "$work/root/usr/lib/x86_64-linux-gnu" qemu/qemu | xargs -d '\n' cp -L -t qemu/lib
    cp root/usr/share/seabios/*.bin root/usr/share/qemu/{kvmvapic,linuxboot,linuxboot_dma,multiboot,multiboot_dma,pvh}.bin qemu/share
    cat >qemu/qemu-system-x86_64 <<'SCRIPT'
#!/bin/sh
# Runs QEMU with its own libraries, wherever this folder lies.
here=${0%/*}
exec "$here/lib/ld-linux-x86-64.so.2" --library-path "$here/lib" "$here/qemu" -L "$here/share" "$@"
SCRIPT
    chmod +x qemu/qemu-system-x86_64
    new_enough qemu/qemu-system-x86_64 || fail "what was fetched does not run: $(qemu/qemu-system-x86_64 --version 2>&1)"
    # Whoever finds the folder finds it whole.
    mv qemu "$wanted"
    say "$("$wanted/qemu-system-x86_64" --version | head -n 1) is in $wanted"
}

if [ -n "${BLOCKRING_QEMU_10:-}" ] || new_enough qemu-system-x86_64; then
    exit 0
fi
if [ ! -e "$wanted" ]; then
    mkdir -p "$cache"
    # Two at once: the second waits, and then finds everything there.
    exec 9>"$cache/qemu-10.lock"
    flock 9
    [ -e "$wanted" ] || fetch
fi
