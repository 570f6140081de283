#!/usr/bin/env bash
# Tests under an interpreter that knows undefined behaviour (Miri), and under AddressSanitizer and ThreadSanitizer.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/sanitize.sh [--long] [PART...]
       scripts/sanitize.sh --build [--long] [PART...]

Runs tests under tools that find undefined behaviour, and fails where one finds something. Without PART it runs miri and thread, and
with --long all parts:
  miri      an interpreter: the modules that use only memory of the process (format, reader, lending in place, mapped memory, both
            sides of the virtqueue), with far fewer repetitions; no file is mapped and no socket opened
  thread    ThreadSanitizer: the unit tests of ring-os and the virtio driver
  address   AddressSanitizer: the unit tests of the library, ring-os, the virtio driver and the backend, and a ring in memory. An
            ordinary test run has the fuzz targets under it, which cover library and backend (see scripts/fuzz.sh --help)
The ordinary run takes a minute or two on two processors, and each part several minutes of building the first time.
--long adds the slow tests of the same modules to miri, the library and a ring in memory to thread, and to address tests of files,
journals, lending, the executor, and whole backends.
--build only builds.

miri and thread need the nightly tool chain with the components miri and rust-src, which are installed with rustup where they are
missing; thread needs them since the standard library has to be instrumented, too. address works on the stable tool chain.
Each part builds in a folder of its own in target/ (sanitize-miri, sanitize-address, sanitize-thread).

Exit codes:
  0   nothing was found
  1   something was found, or a test failed, or does not build
  2   the arguments are wrong
  3   nothing was found, but miri or thread could not be run: no nightly tool chain with these components, and none to be had

Examples:
  scripts/sanitize.sh                the ordinary run
  scripts/sanitize.sh miri           only the interpreter
  scripts/sanitize.sh --long address everything under AddressSanitizer
TEXT
}

only_build=0 long=0 parts=()
while (($#)); do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --build) only_build=1 ;;
        --long) long=1 ;;
        miri | address | thread) parts+=("$1") ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
if ((!${#parts[@]})); then
    parts=(miri thread)
    ((!long)) || parts+=(address)
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_INCREMENTAL=0
# A panic that a test expects costs the interpreter many seconds, if it has to name the callers.
export RUST_BACKTRACE=0

say() { printf 'sanitize: %s\n' "$*" >&2; }

have_nightly() {
    cargo +nightly miri --version >/dev/null 2>&1 && [ -d "$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library" ]
}

# Installs what is missing, if it can be had.
need_nightly() {
    ! have_nightly || return 0
    command -v rustup >/dev/null || return 1
    say "installing the nightly tool chain's components miri and rust-src"
    if ! rustc +nightly --version >/dev/null 2>&1; then
        rustup toolchain install nightly --profile minimal --component miri,rust-src >&2 || return 1
    else
        rustup component add --toolchain nightly miri rust-src >&2 || return 1
    fi
    have_nightly
}

# run WORD...: cargo's command, and behind `--` the options of the test programs.
run() {
    local word cargo=()
    if ((only_build)); then
        for word; do
            [ "$word" != -- ] || break
            cargo+=("$word")
        done
        "${cargo[@]}" --no-run
    else
        "$@"
    fi
}

miri_tests() { # WORD...
    MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-strict-provenance" PROPTEST_CASES=2 CARGO_TARGET_DIR=$folder/sanitize-miri \
        run cargo +nightly miri test --locked "$@"
}

# What is pure, and takes an interpreter minutes, is left to --long. `free_bytes_alone_are_stored` would take hours.
miri() {
    local skip_library=() skip_backend=(--skip free_bytes_alone_are_stored) in_memory=() modules=(data_path::queue data_path::request)
    if ((long)); then
        modules+=(data_path::guard)
    else
        skip_library=(--skip search_fails_after_repeated_readings_or_too_many)
        in_memory=(lent)
    fi
    # A function whose result is asked for is not ended by the first command that fails.
    miri_tests -p shared-block-ring --lib -- format:: rules:: history:: stage:: window:: reader:: "${skip_library[@]}" &&
        miri_tests -p shared-block-ring --test in_memory -- "${in_memory[@]}" &&
        miri_tests -p ring-os --lib -- mapping &&
        miri_tests -p virtio-blk-driver --lib -- tests:: --skip pci --skip reconnect &&
        miri_tests -p vhost-device-blockring --lib -- "${modules[@]}" "${skip_backend[@]}"
}

# Programs for the build itself (build scripts, procedural macros) are not instrumented, since the tests' target is named.
sanitized_tests() { # SANITIZER WORD...
    local sanitizer=$1
    shift
    RUSTFLAGS="-Zsanitizer=$sanitizer" CARGO_TARGET_DIR=$folder/sanitize-$sanitizer run cargo "$@"
}

address_tests() { # WORD...
    # Leaks are no fault here: memory that a device may still write to stays mapped on purpose, with what describes it. The backend's
    # own handler of SIGBUS and those of the tests are to run, and the sanitizer's is not.
    RUSTC_BOOTSTRAP=1 ASAN_OPTIONS="detect_leaks=0:handle_sigbus=0:allow_user_segv_handler=1" \
        sanitized_tests address test --locked --target "$host" "$@"
}

address() {
    address_tests -p shared-block-ring -p ring-os -p virtio-blk-driver -p vhost-device-blockring --lib --test in_memory || return
    ((long)) || return 0
    address_tests -p shared-block-ring --test in_place &&
        address_tests -p shared-block-ring --test all -- batches:: journal:: &&
        address_tests -p vhost-device-blockring --test all -- executor hostile_queue::
}

thread() {
    local tests=(-p ring-os -p virtio-blk-driver --lib)
    ((!long)) || tests+=(-p shared-block-ring --test in_memory)
    TSAN_OPTIONS="suppressions=$PWD/scripts/sanitize-thread.txt" \
        sanitized_tests thread +nightly test --locked -Zbuild-std --target "$host" "${tests[@]}"
}

nightly=yes
for part in "${parts[@]}"; do
    if [ "$part" != address ] && { [ "$nightly" = no ] || ! need_nightly; }; then
        nightly=no
        say "$part is not run: no nightly tool chain with the components miri and rust-src here, and rustup cannot install them"
        continue
    fi
    start=$SECONDS
    "$part" || { say "$part: FAILED, after $((SECONDS - start)) s"; exit 1; }
    say "$part: $( ((only_build)) && echo built || echo nothing found), $((SECONDS - start)) s"
done
[ "$nightly" = yes ] || exit 3
