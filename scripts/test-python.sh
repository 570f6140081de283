#!/usr/bin/env bash
# The package of Python: its wheel, and its tests. See scripts/test-python.sh --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/test-python.sh [--build | --built | --wheel | --python PROGRAM] [ARGUMENT OF pytest...]

Builds the wheel of the package blockring, installs it in a bare virtual environment, and runs its tests there: pytest, mypy --strict
on all that uses the package, and a comparison of the package with what it tells type checkers. The tests mix programs in Rust, C and
Python on one ring: those of the environment (BLOCKRING_SCENARIO_RUST, BLOCKRING_SCENARIO_C), or those that are built already.

  --build            builds what the tests need, and runs none
  --built            runs the tests, and builds nothing
  --wheel            builds the wheel for users, optimised, and prints its path
  --python PROGRAM   runs the tests with another interpreter, such as python3.9 or python3.13, for which it fetches pytest

Examples:
  scripts/test-python.sh -k asyncio
  scripts/test-python.sh --python ~/.pyenv/versions/3.13.0/bin/python3
  pip install "$(scripts/test-python.sh --wheel)"
TEXT
}

build=yes tests=yes profile=fast python=python3
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
# The programs that the tests mix with Python's.
rust=$target/debug/examples/scenario

if [ "$build" = yes ]; then
    scripts/fetch-python.sh
    # In a folder of its own: a wheel's crates have other features, and no lock keeps another command of cargo waiting.
    mkdir -p "$wheels"
    rm -f "$wheels"/*.whl
    CARGO_TARGET_DIR=$target/python "$tools/bin/maturin" build --quiet --locked --manifest-path python/Cargo.toml \
        --profile "$profile" --interpreter python3 --out "$wheels" >&2
fi
wheel=("$wheels"/*.whl)
[ -e "${wheel[0]}" ] || { echo "test-python.sh: there is no wheel: run it without --built" >&2; exit 1; }
if [ "$tests" = no ]; then
    [ "$profile" = fast ] || echo "${wheel[0]}"
    exit
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/blockring-python.XXXXXX")
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
[ -n "${BLOCKRING_SCENARIO_RUST:-}" ] || [ ! -x "$rust" ] || export BLOCKRING_SCENARIO_RUST=$rust

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
run pytest -q -p no:cacheprovider -c "$root/python/pyproject.toml" --rootdir "$root/python" "$root/python/tests" "$@"
[ "$python" = python3 ] || exit 0
check() { run mypy --config-file "$root/python/pyproject.toml" --cache-dir "$work/mypy" "$@"; }
check "$root/python/tests" "$root/python/bench" "$root/examples/python"
check -p blockring
run mypy.stubtest --concise --allowlist "$root/python/tests/stubtest.txt" blockring
