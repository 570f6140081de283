#!/usr/bin/env bash
# The package of Python: its wheel, and its tests. See scripts/test-python.sh --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/test-python.sh [--build | --built | --wheel | --python PROGRAM] [ARGUMENT OF pytest...]

Builds the wheel of the package blockring, installs it in a bare virtual environment, and runs its tests there: pytest, mypy --strict
on all that uses the package, and a comparison of the package with what it tells type checkers. The tests mix programs in Rust, C and
Python on one ring, and start a backend.

  --build            builds the wheel for the tests, and runs none
  --built            runs the tests, and builds nothing: scripts/test.sh has built the rest
  --wheel            builds the wheel for users, optimised, and prints its path
  --python PROGRAM   runs the tests with another interpreter, such as python3.9 or python3.13, for which it fetches pytest

Examples:
  scripts/test-python.sh -k asyncio
  scripts/test-python.sh --python ~/.pyenv/versions/3.13.0/bin/python3
  pip install "$(scripts/test-python.sh --wheel)"
TEXT
}

build=yes tests=yes profile=dev python=python3
case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    --build) tests=no; shift ;;
    --built) build=no; shift ;;
    --wheel) tests=no profile=release; shift ;;
    --python) python=${2:?--python takes a program}; shift 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
tools=$target/python-tools
wheels=$target/python/wheels/$profile
# Built with cargo's tests, in their profile.
rust=$target/debug/examples/scenario backend=$target/debug/vhost-device-blockring
library() { find "$target/debug/deps" -name 'libblockring*.a' -printf '%T@ %p\n' | sort -n | sed -n '$s/^[^ ]* //p'; }

if [ "$build" = yes ]; then
    scripts/fetch-python.sh
    # In a folder of its own: a wheel's crates have other features, and no lock keeps another command of cargo waiting.
    mkdir -p "$wheels"
    rm -f "$wheels"/*.whl
    CARGO_TARGET_DIR=$target/python "$tools/bin/maturin" build --quiet --locked --manifest-path python/Cargo.toml \
        --profile "$profile" --interpreter python3 --out "$wheels" >&2
fi
if [ "$build$tests" = yesyes ]; then
    cargo build --quiet --locked --profile test --package libblockring --package shared-block-ring \
        --package vhost-device-blockring --lib --example scenario --bin vhost-device-blockring
fi
wheel=("$wheels"/*.whl)
[ -e "${wheel[0]}" ] || { echo "test-python.sh: there is no wheel: run it without --built" >&2; exit 1; }
if [ "$tests" = no ]; then
    [ "$profile" = dev ] || echo "${wheel[0]}"
    exit
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/blockring-python.XXXXXX")
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
export BLOCKRING_BACKEND=$backend BLOCKRING_SCENARIO_RUST=$rust BLOCKRING_SCENARIO_C=$work/scenario
capi/link.sh "$(library)" "$work"
cc -std=c11 -D_GNU_SOURCE -O1 -static -I capi/include capi/tests/scenario.c -o "$BLOCKRING_SCENARIO_C" -L "$work" -lblockring -lpthread

"$python" -m venv "$work/bare"
"$work/bare/bin/pip" install -q --no-index "${wheel[0]}"
"$work/bare/bin/python" -c 'import blockring, blockring.logging'
# It works in the bare environment. From here on that has the tools, too.
if [ "$python" = python3 ]; then
    packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    packages "$tools" >"$(packages "$work/bare")/tools.pth"
else
    "$work/bare/bin/pip" install -q pytest
fi
run() { "$work/bare/bin/python" -m "$@"; }

# Not from the root of the sources, whose package lacks its part in Rust.
cd "$work"
check() { run mypy --config-file "$root/python/pyproject.toml" --cache-dir "$work/mypy" "$@"; }
check_types() {
    check "$root/python/tests" "$root/python/bench" "$root/examples/python"
    check -p blockring
    run mypy.stubtest --concise --allowlist "$root/python/tests/stubtest.txt" blockring
}
types=
if [ "$python" = python3 ]; then
    # Most of the tests wait for something most of the time.
    (set -e && check_types) >"$work/types" 2>&1 &
    types=$!
fi
status=0
run pytest -q -p no:cacheprovider -c "$root/python/pyproject.toml" --rootdir "$root/python" "$root/python/tests" "$@" || status=$?
if [ -n "$types" ]; then
    wait "$types" || status=1
    cat "$work/types"
fi
exit "$status"
