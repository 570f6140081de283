#!/usr/bin/env bash
# The release build of the host's programs that scripts and tests with guests start. See scripts/build.sh --help.
set -euo pipefail

case "${1:-}" in
    "") ;;
    *)
        cat <<'TEXT'
usage: scripts/build.sh

Builds blockring, vhost-device-blockring, and the programs that boot guests and kill processes, into target/release.
Of the whole workspace's packages, so that all builds ask for the same features of the crates that the packages share, and each
crate is compiled once.
TEXT
        [ "$1" = --help ] || [ "$1" = -h ] || exit 2
        exit
        ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
exec cargo build --quiet --locked --release --workspace --bin blockring --bin vhost-device-blockring \
    --bin boot-guest --bin crash-campaign --bin crashload --bin ringload
