#!/usr/bin/env bash
# All tests. Usage: scripts/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.88 or newer first" >&2; exit 1; }

# Each suite has a budget, so that a hang is a failure with a name.
suite() {
    local name=$1 minutes=$2 start=$SECONDS
    shift 2
    echo "== $name (at most $minutes min)"
    if ! timeout --kill-after=10 "$((minutes * 60))" "$@"; then
        echo "== $name: FAILED after $((SECONDS - start)) s" >&2
        exit 1
    fi
    echo "== $name: passed in $((SECONDS - start)) s"
}

suite "build" 10 cargo test --locked --workspace --no-run
suite "library" 8 cargo test --locked --workspace
