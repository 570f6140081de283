#!/usr/bin/env bash
# A fuzzer on one target, for a time.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/fuzz.sh TARGET SECONDS [libFuzzer option...]
       scripts/fuzz.sh --each SECONDS
       scripts/fuzz.sh --build
       scripts/fuzz.sh --minimise TARGET

Runs a coverage-guided fuzzer, on one processor, and fails where it finds something: the input is then in
fuzz/artifacts/TARGET, and
    RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none TARGET FILE     runs it again
New inputs of interest go to fuzz/corpus/TARGET, whose committed part every ordinary test run replays.
--each runs all targets under AddressSanitizer, one on each processor at a time, and keeps no inputs; it shows the output of those that
fail. --build only builds them for that. --minimise drops those that reach nothing the others do not.
Installs cargo-fuzz where it is missing; works on the stable tool chain. Needs a C++ compiler.

Targets:
  image       damage to a ring: what is read from it was pushed, or there is an error with a name
  format      heads and headers of any bytes: decoded and encoded again the same, or an error with a name
  request     a virtqueue and guest memory of any content: requests within their bounds, or refusals
  guard       a guest's requests while its host moves: each becomes what the oracle says, byte for byte
  vhost_user  conversations on the front ends' socket, with descriptors: none ends the backend or leaves anything open
  handover    messages of the consumer's socket, with descriptors: a message or an error, nothing left open

Examples:
  scripts/fuzz.sh image 60
  scripts/fuzz.sh image 3600 -runs=10000000
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
# The instrumentation's flags are unstable ones.
export RUSTC_BOOTSTRAP=1
# Without a sanitizer a target runs several times as fast, and finds more in a long search. A short run of all of them looks for
# undefined behaviour, too. Leaks are no fault here: memory that a device may still write to stays mapped on purpose. The backend's own
# handler of SIGBUS is to run, and the sanitizer's is not.
sanitizer=none
export ASAN_OPTIONS="detect_leaks=0:handle_sigbus=0:allow_user_segv_handler=1"

wrong() {
    usage >&2
    exit 2
}

need_cargo_fuzz() {
    cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
}

prepare() {
    if [ ! -f "fuzz/fuzz_targets/$1.rs" ]; then
        echo "no target $1: see scripts/fuzz.sh --help" >&2
        exit 2
    fi
    need_cargo_fuzz
    mkdir -p "fuzz/corpus/$1"
}

build() {
    need_cargo_fuzz
    cargo fuzz build --sanitizer "$sanitizer"
}

# fuzz TARGET SECONDS FOLDER OPTION...: new inputs go to FOLDER.
fuzz() {
    local target=$1 seconds=$2 folder=$3
    shift 3
    prepare "$target"
    cargo fuzz run --sanitizer "$sanitizer" "$target" "$folder" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=1024 -timeout=10 -print_final_stats=1 "$@"
}

# each SECONDS
each() {
    local target name processes=() process failed=no
    scratch=$(mktemp -d)
    for target in fuzz/fuzz_targets/*.rs; do
        if ((${#processes[@]} >= $(nproc))); then wait -n || true; fi
        name=$(basename "$target" .rs)
        mkdir "$scratch/$name"
        if fuzz "$name" "$1" "$scratch/$name" >"$scratch/$name.log" 2>&1; then
            echo "$name: nothing found; $(grep -h stat::number_of_executed_units "$scratch/$name.log" || true)"
        else
            cat "$scratch/$name.log"
            echo "$name: FAILED"
            exit 1
        fi &
        processes+=($!)
    done
    # Also of those that have been waited for above.
    for process in "${processes[@]}"; do wait "$process" || failed=yes; done
    [ "$failed" = no ]
}

scratch=
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT

case "${1:-}" in
    -h | --help) usage ;;
    --each)
        [[ "${2:-}" =~ ^[0-9]+$ ]] || wrong
        sanitizer=address
        build
        each "$2"
        ;;
    --build)
        sanitizer=address
        build
        ;;
    --minimise)
        [ -n "${2:-}" ] || wrong
        prepare "$2"
        # `cargo fuzz cmin` keeps more: it takes the inputs one by one, this the fewest.
        scratch=$(mktemp -d)
        cargo fuzz run --sanitizer none "$2" "$scratch" "fuzz/corpus/$2" -- \
            -set_cover_merge=1 -max_len=1024
        rm -rf "fuzz/corpus/$2"
        cp -r "$scratch" "fuzz/corpus/$2"
        chmod 755 "fuzz/corpus/$2"
        ;;
    *)
        [[ -n "${1:-}" && "${2:-}" =~ ^[0-9]+$ ]] || wrong
        target=$1 seconds=$2
        shift 2
        fuzz "$target" "$seconds" "fuzz/corpus/$target" "$@"
        ;;
esac
