#!/usr/bin/env bash
# Fetches the tools that build and test the package of Python. See scripts/fetch-python.sh --help.
set -euo pipefail

case "${1:-}" in
    "") ;;
    -h | --help)
        cat <<'TEXT'
usage: scripts/fetch-python.sh

Installs maturin, mypy and pytest (the versions in python/requirements.txt) from PyPI into target/python-tools, a virtual environment
of their own. Does nothing where they are there. scripts/setup.sh calls it.

CARGO_TARGET_DIR moves the target folder, as it does for cargo.
TEXT
        exit
        ;;
    *) "$0" --help >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/python-tools
wanted=python/requirements.txt
say() { printf 'setup: %s\n' "$*" >&2; }

there() { cmp -s "$wanted" "$folder/requirements.txt"; }
if there; then exit 0; fi
mkdir -p "$(dirname "$folder")"
# Two at once: the second waits, and then finds everything there.
exec 9>"$folder.lock"
flock 9
if there; then exit 0; fi

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    say "Python cannot make virtual environments here (Debian: apt-get install python3-venv)"
    exit 1
fi
say "fetching the tools for the package of Python"
rm -rf "$folder"
# Not made elsewhere and renamed: its programs have the folder's name in them.
python3 -m venv "$folder"
"$folder/bin/pip" install -q --disable-pip-version-check -r "$wanted"
# Last: whoever finds it finds all of them.
cp "$wanted" "$folder/requirements.txt"
say "$("$folder/bin/maturin" --version) is in $folder"
