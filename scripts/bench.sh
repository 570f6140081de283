#!/usr/bin/env bash
# Prepares everything for measurements, and runs them: see scripts/bench.sh --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/bench.sh [ARGUMENT...]

Installs what is missing (QEMU's storage daemon; this part needs root), builds the release, and runs
ring-bench with these arguments. Figures mean something on a machine with nothing else to do.

Examples:
  scripts/bench.sh                                     all rows of requests, in a few minutes
  scripts/bench.sh --quick                             whether it works, in a few seconds
  scripts/bench.sh --daemon-args "--poll always"       a backend that never sleeps
  scripts/bench.sh --rows 4K-write --json figures.json
  scripts/bench.sh --measure guest                     what leaves a guest, against virtio-serial and a plain disk
  scripts/bench.sh --measure all --report docs         everything, into docs/performance.md
TEXT
}

case "${1:-}" in
    -h | --help)
        usage
        [ ! -x "${CARGO_TARGET_DIR:-target}/release/ring-bench" ] ||
            { echo; "${CARGO_TARGET_DIR:-target}/release/ring-bench" --help; }
        exit 0
        ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
release=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release

scripts/setup.sh
cargo build --quiet --locked --release --workspace --bins
exec "$release/ring-bench" "$@"
