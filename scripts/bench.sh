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
  scripts/bench.sh --reference --daemon-args "--poll always"
                                                       beside a bare loop, which shows what the machine can do
  scripts/bench.sh --measure guest                     what leaves a guest, against virtio-serial and a plain disk
  scripts/bench.sh --measure languages                 the library from other languages, against Rust
  scripts/bench.sh --measure fleet --hosts 10000       no measurement: a model of that many hosts that forward to one JetStream cluster
                                                       (--host-rings, --streams, --flush-us, --outage-s and more are its own)
  scripts/bench.sh --measure all --report docs         everything, into docs/performance.md
TEXT
}

case "${1:-}" in
    -h | --help)
        usage
        # Its own help, where it is built.
        cd "$(dirname "${BASH_SOURCE[0]}")/.."
        program=$(realpath -m "${CARGO_TARGET_DIR:-target}")/x86_64-unknown-linux-gnu/release/ring-bench
        [ ! -x "$program" ] || { echo; "$program" --help; }
        exit 0
        ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

scripts/setup.sh --guests
release=$(scripts/build.sh --quiet --bin ring-bench --bin reference-loop)
languages=()
if [[ " $* " == *languages* ]]; then
    programs=$(realpath -m "${CARGO_TARGET_DIR:-target}")/languages
    scripts/install-c.sh --prefix "$programs" >/dev/null
    # shellcheck disable=SC2046 # words
    cc -O2 bench/languages/items.c $(PKG_CONFIG_PATH=$programs/lib/pkgconfig pkg-config --cflags --libs blockring) \
        -Wl,-rpath,"$programs/lib" -o "$programs/items-c"
    languages+=(--language "C:0.95=$programs/items-c")
    wheel=$(scripts/test-python.sh --wheel)
    python3 -m venv --clear "$programs/python"
    "$programs/python/bin/pip" install -q --disable-pip-version-check --no-index "$wheel"
    languages+=(--language "Python=$programs/python/bin/python python/bench/items.py batch")
    # One item a call.
    languages+=(--language "Python, 1=$programs/python/bin/python python/bench/items.py each")
fi
exec "$release/ring-bench" "${languages[@]}" "$@"
