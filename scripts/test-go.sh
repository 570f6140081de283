#!/usr/bin/env bash
# Runs the tests of the Go module. See scripts/test-go.sh --help.
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h | --help)
        cat <<'TEXT'
usage: scripts/test-go.sh

Runs the tests of the Go module (go/) with the C library that the tests of this repository were built with; it is built where it is
missing. Needs Go (Debian: golang-go).
TEXT
        exit
        ;;
    *) echo "usage: scripts/test-go.sh" >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
if ! command -v go >/dev/null; then
    echo "test-go.sh: there is no Go here (Debian: apt-get install golang-go)" >&2
    exit 1
fi
built=$(realpath -m "${CARGO_TARGET_DIR:-target}")/debug
newest() { find "$built/deps" -name 'libblockring-*.a' -printf '%T@ %p\n' 2>/dev/null | sort -n | sed -n '$s/^[^ ]* //p'; }
[ -n "$(newest)" ] || cargo build --locked --profile test -p libblockring

work=$(mktemp -d "${TMPDIR:-/tmp}/blockring-go.XXXXXX")
trap 'rm -rf "$work"' EXIT
scripts/install-c.sh --prefix "$work" --library "$(newest)" >/dev/null
# Go keeps what it has compiled of itself.
export GOCACHE=${built%/debug}/go-cache
export PKG_CONFIG_PATH=$work/lib/pkgconfig LD_LIBRARY_PATH=$work/lib GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local
cd go
unformatted=$(gofmt -l .)
[ -z "$unformatted" ] || { echo "test-go.sh: not formatted by gofmt: $unformatted" >&2; exit 1; }
go vet .
# Pointers that Go passes to C are checked.
GODEBUG=cgocheck=1 go test -count=1 .
