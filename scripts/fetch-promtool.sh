#!/usr/bin/env bash
# Fetches promtool, by which tests check metrics and alert rules. See scripts/fetch-promtool.sh --help.
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h | --help)
        cat <<'TEXT'
usage: scripts/fetch-promtool.sh

Fetches Debian's package prometheus and unpacks promtool alone into target/promtool (nothing is installed or started).
Does nothing where it is there. scripts/setup.sh calls it.

  BLOCKRING_PROMTOOL   a promtool of your own: then nothing is fetched, and the tests start this one
CARGO_TARGET_DIR moves the target folder, as it does for cargo.
TEXT
        exit
        ;;
    *) "$0" --help >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/promtool
say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

[ -z "${BLOCKRING_PROMTOOL:-}" ] || exit 0
if [ -x "$folder/promtool" ]; then exit 0; fi
mkdir -p "$folder"
# Two at once: the second waits, and then finds everything there.
exec 9>"$folder/setup.lock"
flock 9
if [ -x "$folder/promtool" ]; then exit 0; fi

work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

# A folder that apt's own user cannot enter is only worth a warning: silence it.
options=(-q)
[ "$(id -u)" != 0 ] || options+=(-o APT::Sandbox::User=root)
download() { (cd "$work" && apt-get "${options[@]}" download prometheus >&2); }
if ! download; then
    [ "$(id -u)" = 0 ] || fail "the package prometheus cannot be downloaded; run apt-get update as root, then this again"
    apt-get update -q >&2
    download || fail "the package prometheus cannot be downloaded"
fi
dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -x -C "$work" ./usr/bin/promtool
chmod 755 "$work/usr/bin/promtool"
# By a new name: whoever finds the file finds it whole.
mv "$work/usr/bin/promtool" "$folder/promtool"
say "$("$folder/promtool" --version 2>&1 | head -n 1) is in $folder"
