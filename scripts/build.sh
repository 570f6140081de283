#!/usr/bin/env bash
# Builds the programs that scripts, and tests with guests, start. See scripts/build.sh --help.
set -euo pipefail

case "${1:-}" in
    -h | --help)
        cat <<'TEXT'
usage: scripts/build.sh [--fast] [OPTION OF cargo build...]

Builds blockring, vhost-device-blockring, and test-tools, which boots guests, produces load and kills processes,
linked statically: the same files run on the host, in a guest without libraries and in an empty container.
Prints the folder that they are in. Options name further targets.

  --fast   programs for a first look, and for tests, in two thirds of the time: slower, and in a folder of their own

  BLOCKRING_PROFILE   release, the default, or fast, which is the same as --fast

All builds of these profiles go through this script, select all of the workspace's packages and so ask for the
same features of the crates that the packages share: each crate is compiled once.

Examples:
  scripts/build.sh                        the programs
  scripts/build.sh --bin ring-bench       and the measurements
TEXT
        exit
        ;;
esac
profile=${BLOCKRING_PROFILE:-release}
if [ "${1:-}" = --fast ]; then
    profile=fast
    shift
fi
if [ "$profile" != release ] && [ "$profile" != fast ]; then
    echo "build.sh: BLOCKRING_PROFILE is $profile, and has to be release or fast" >&2
    exit 2
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
triple=x86_64-unknown-linux-gnu
if [ ! -e "$(cc -print-file-name=libc.a)" ]; then
    echo "build.sh: the C library cannot be linked statically: libc.a is missing (Debian: apt-get install gcc libc6-dev)" >&2
    exit 1
fi
unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
export RUSTFLAGS='-C target-feature=+crt-static'
cargo build --locked --profile "$profile" --target "$triple" --workspace \
    --bin blockring --bin vhost-device-blockring --bin test-tools "$@"
printf '%s/%s/%s\n' "$(realpath -m "${CARGO_TARGET_DIR:-target}")" "$triple" "$profile"
