#!/usr/bin/env bash
# A fuzzer on one target, for a time.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/fuzz.sh TARGET SECONDS [libFuzzer option...]
       scripts/fuzz.sh --minimise TARGET

Runs a coverage-guided fuzzer, on one processor, and fails where it finds something: the input is then in
fuzz/artifacts/TARGET, and
    RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none TARGET FILE     runs it again
New inputs of interest go to fuzz/corpus/TARGET, whose committed part every ordinary test run replays.
--minimise drops those that reach nothing the others do not.
Installs cargo-fuzz where it is missing; works on the stable tool chain. Needs a C++ compiler.

Targets:
  image     damage to a ring: what is read from it was pushed, or there is an error with a name
  format    heads and headers of any bytes: decoded and encoded again the same, or an error with a name
  request   a virtqueue and guest memory of any content: requests within their bounds, or refusals
  handover  messages of the consumer's socket, with descriptors: a message or an error, nothing left open

Examples:
  scripts/fuzz.sh image 60
  scripts/fuzz.sh image 3600 -runs=10000000
TEXT
}

minimise=no
case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    --minimise) minimise=yes; shift ;;
esac
target=${1:-}
if [ -z "$target" ] || { [ "$minimise" = no ] && ! [[ "${2:-}" =~ ^[0-9]+$ ]]; }; then
    usage >&2
    exit 2
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
if [ ! -f "fuzz/fuzz_targets/$target.rs" ]; then
    echo "no target $target: see scripts/fuzz.sh --help" >&2
    exit 2
fi
cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz

# The instrumentation's flags are unstable ones. There is no sanitizer by default: what is fuzzed has no unsafe code,
# and runs several times as fast.
export RUSTC_BOOTSTRAP=1
mkdir -p "fuzz/corpus/$target"
if [ "$minimise" = yes ]; then
    # `cargo fuzz cmin` keeps more: it takes the inputs one by one, this the fewest.
    least=$(mktemp -d)
    trap 'rm -rf "$least"' EXIT
    cargo fuzz run --sanitizer none "$target" "$least" "fuzz/corpus/$target" -- \
        -set_cover_merge=1 -max_len=1024
    rm -rf "fuzz/corpus/$target"
    cp -r "$least" "fuzz/corpus/$target"
    chmod 755 "fuzz/corpus/$target"
    exit
fi
seconds=$2
shift 2
exec cargo fuzz run --sanitizer none "$target" -- \
    -max_total_time="$seconds" -max_len=1024 -timeout=10 -print_final_stats=1 "$@"
