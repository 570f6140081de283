#!/usr/bin/env bash
# Prepares everything for a crash campaign, and runs it: see scripts/crash-campaign.sh --help.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
release=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release

scripts/setup.sh
# As in scripts/test.sh, which has built it.
scripts/build.sh
case " $* " in
    *" --help "* | *" -h "*) ;;
    *) "$release/boot-guest" --prepare ;;
esac
exec "$release/crash-campaign" "$@"
