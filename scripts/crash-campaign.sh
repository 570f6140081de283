#!/usr/bin/env bash
# Prepares everything for a crash campaign, and runs it: see scripts/crash-campaign.sh --help.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

scripts/setup.sh --guests
release=$(scripts/build.sh --quiet)
case " $* " in
    *" --help "* | *" -h "*) ;;
    *) "$release/test-tools" boot-guest --prepare ;;
esac
exec "$release/test-tools" crash-campaign "$@"
