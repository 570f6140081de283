#!/usr/bin/env bash
# All tests, suite by suite, each with a budget of time, so that a hang is a failure with a name.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/test.sh [--quick | --long]

Installs and fetches what is missing (see scripts/setup.sh --help), builds tests and programs, and runs the suites
  programs     all test programs but those below, three at a time: every crash of short programs on a simulated disk,
               interleavings, mutants; the vhost-user backend; blockring, and what the programs do about standard error, panics
               and limits of the machine; the library, its micro-benchmarks, run once, the virtio driver, metrics, and the C library
  examples     those in the documentation
  go           the module in Go (see scripts/test-go.sh --help)
  bench        instructions of a request and of an item, which have bounds; whether the measurements work (scripts/bench.sh --help)
  qemu         real guests (emulated where there is no KVM), two tests at a time; some in a second QEMU (scripts/fetch-qemu.sh --help);
               the commands and configuration files of the documents
  crashes      real kills, restored guests and power cuts: a few (see scripts/crash-campaign.sh --help)
  fuzz         each fuzz target for 20 s, one on each processor (see scripts/fuzz.sh --help)
  packages     Debian packages, made, installed, upgraded and purged in a system of their own (see scripts/test-packages.sh --help);
               its line says so where it was not run for lack of root
  python       the package of Python, in a bare virtual environment, and programs in several languages on one ring (scripts/test-python.sh --help)
  sanitize     tests under Miri and ThreadSanitizer, with --long under AddressSanitizer, too (see scripts/sanitize.sh --help); where
               Miri cannot be had, its line says that it was not run, and nothing fails for that
With --quick, while you edit: the tests of the packages that are no tool (all but sim, bench, qemu-tests and test-support), three at a time;
no guests, no exploration, no fuzzing. A few minutes, of which the build takes what the edit makes necessary.
With --long, the better part of an hour: ten million damaged images, a hundred million simulated crashes,
interleavings with more preemptions, more than a thousand kills, three hundred restored guests and a hundred power cuts, and a
thousand rings that come and go beside those of eight guests.

The suites go, packages and sanitize run beside the others, in the time that their waiting tests leave, and so are python, sanitize and fuzz built. Builds have no
budget; a suite has several times what it takes on two processors with nothing else to do, and builds nothing itself. A test that fails
keeps no other from running. Ends with a line for each build and suite: passed or FAILED, the seconds it took, those that it used of a
processor, which of its test programs failed, and why. Fails if one of them failed.

The tests' files lie in /dev/shm, where it has 4 GiB, lets programs be started and knows O_DIRECT.

  BLOCKRING_ACCEL   QEMU's accelerator, instead of KVM where there is one
  TMPDIR            where the tests' files lie instead
TEXT
}

long=0 quick=0 depth=()
case "${1:-}" in
    "") ;;
    --quick) quick=1 ;;
    --long) long=1 depth=(--long) && export BLOCKRING_LONG=1 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "test.sh: there is no option $1" >&2; usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

memory= work= beside=
trap '[ -z "$beside" ] || end_beside; rm -rf ${memory:+"$memory"} ${work:+"$work"}' EXIT

# On a disk the tests wait for flushes most of the time, the longer the more a build beside them
# writes, and emulated guests compute meanwhile. What a disk keeps through a loss of power is tested
# on simulated ones.
files_in_memory() {
    [ -z "${TMPDIR:-}" ] && memory=$(mktemp -d /dev/shm/blockring.XXXXXX 2>/dev/null) || return 0
    local room
    # As /tmp: some tests are other users.
    chmod 1777 "$memory"
    room=$(df --output=avail -k "$memory" | tail -n 1)
    if ((room >= 4 << 20)) && behaves_as_a_disk "$memory"; then
        export TMPDIR=$memory
        echo "test.sh: the tests' files lie in $memory"
    else
        rm -rf "$memory"
        memory=
    fi
}

# Programs can be started from there, and files be opened with O_DIRECT (tmpfs: since Linux 6.6).
behaves_as_a_disk() {
    printf '#!/bin/sh\n' >"$1/program"
    chmod +x "$1/program"
    "$1/program" 2>/dev/null && dd if=/dev/zero of="$1/file" bs=4096 count=1 oflag=direct 2>/dev/null && rm "$1/program" "$1/file"
}

files_in_memory
work=$(mktemp -d "${TMPDIR:-/tmp}/blockring-tests.XXXXXX")
export BLOCKRING_TESTS=$work/programs BLOCKRING_FAILED=$work/failed
# What guests start need not be as fast as a release. This takes two thirds of the time to build.
export BLOCKRING_PROFILE=fast

# Everything that a suite runs, with one selection of packages for each profile: another selection would ask for other features of
# the crates that the packages share, and compile those again.
build_tests() {
    cargo test --locked --workspace --no-run --message-format=json-render-diagnostics >"$work/artifacts"
    # PACKAGE'S-FOLDER<tab>PROGRAM of each test program. Programs that tests run are built too, with a profile that is not the tests'.
    grep '"profile":{[^}]*"test":true' "$work/artifacts" |
        sed -n 's/.*"manifest_path":"\([^"]*\)\/Cargo.toml".*"executable":"\([^"]*\)".*/\1\t\2/p' >"$BLOCKRING_TESTS"
}

# Packages whose tests have a suite below. A folder that is missing here would be run by nobody.
packages=("$root" "$root/address" "$root/bench" "$root/capi" "$root/cli" "$root/metrics" "$root/os" "$root/program" "$root/qemu-tests"
    "$root/sim" "$root/test-support" "$root/vhost" "$root/virtio")

expect_a_suite_for_each_package() {
    local folder missing
    missing=$(cut -f 1 "$BLOCKRING_TESTS" | sort -u | grep -vxF "$(printf '%s\n' "${packages[@]}")") || return 0
    printf 'test.sh: no suite runs the tests of %s\n' $missing >&2
    return 1
}

build_programs() {
    local programs
    programs=$(scripts/build.sh --bench instructions)
    "$programs/test-tools" boot-guest --prepare
}

# What needs no quiet machine. It builds in folders of its own, so that no lock keeps another command of cargo waiting.
work_beside() {
    # Only what tests leave: a processor that a test wants is the test's at once.
    renice -n 19 -p "$BASHPID" >/dev/null
    suite_beside "build of python" 0 scripts/test-python.sh --build
    suite_beside "build of fuzz" 0 scripts/fuzz.sh --build
    suite_beside "build of sanitize" 0 build_sanitized
    suite_beside go 10 scripts/test-go.sh
    suite_beside packages 10 scripts/test-packages.sh
    suite_beside sanitize "$((long ? 120 : 30))" scripts/sanitize.sh "${depth[@]}"
}

# suite_beside NAME MINUTES COMMAND...: leaves its line of the summary in a file. With 0 minutes there is no budget.
suite_beside() {
    local name=$1 minutes=$2 start=$SECONDS status=0 limit=() verdict
    shift 2
    ((!minutes)) || limit=(timeout --foreground --kill-after=10 "${minutes}m")
    "${limit[@]}" "$@" || status=$?
    verdict=$(verdict "$name" "$status")
    printf '%-18s %5s s  %s, beside the suites above\n' "$name" "$((SECONDS - start))" "$verdict" >>"$work/beside"
    [[ $verdict != FAILED* ]] || exit 1
}

# Without Miri (status 3) there is less to build, and the suite says so.
build_sanitized() {
    local status=0
    scripts/sanitize.sh --build "${depth[@]}" || status=$?
    [ "$status" = 0 ] || [ "$status" = 3 ]
}

# As tests and scripts ask for them. If one compiles anything, it would do so within a suite's budget.
expect_nothing_to_build() {
    local said
    said=$({
        scripts/build.sh
        scripts/build.sh --bench instructions
        cargo build --locked --workspace --profile test --bin blockring --bin vhost-device-blockring --example transfer --example collector \
            --example async_shipper --example async_collector --example scenario
        cargo test --locked --workspace --no-run
    } 2>&1)
    if grep -q '^ *Compiling' <<<"$said"; then
        printf '%s\ntest.sh: what was built is built again: the features of some crates differ between these commands\n' "$said" >&2
        return 1
    fi
}

# FUNCTION: runs it as a process of its own, stopped by the first command that fails.
in_the_background() {
    (set -e && "$1") >"$work/$1.log" 2>&1 </dev/null &
}

# Its group of processes is its own, so that it does not outlive this script: a shell lets what is in its background ignore SIGINT.
start_beside() {
    set -m
    in_the_background work_beside
    beside=$!
    set +m
}

end_beside() {
    kill -- "-$beside" 2>/dev/null || true
}

# Waits for what goes on beside the suites.
finish_beside() {
    local start=$SECONDS
    printf '\n== what was built and run beside the suites (its output is shown if it fails)\n'
    finish_build work_beside "$beside" || failed=yes
    beside=
    summary+=("$(cat "$work/beside")" "$(printf '%-18s %5s s' "wait for those" "$((SECONDS - start))")")
}

finish_build() { # NAME PROCESS
    local status=0
    wait "$2" || status=$?
    [ "$status" = 0 ] || cat "$work/$1.log"
    return "$status"
}

# test_programs NUMBER FOLDER...: so many at a time, in the order of the folders. Many tests wait for something most of the time, so that
# more of them than there are processors take little longer.
test_programs() {
    local number=$1 folder of program
    shift
    for folder in "$@"; do
        while IFS=$'\t' read -r of program; do
            [ "$of" != "$folder" ] || printf '%s\n' "$folder" "$program"
        done <"$BLOCKRING_TESTS"
    done | xargs -r -d '\n' -n 2 -P "$number" bash -c 'test_program "$@"' bash
}

test_program() { # FOLDER PROGRAM
    local said start=$SECONDS name
    name=$(basename "$2")
    cd "$1"
    if said=$("$2" 2>&1 </dev/null); then
        printf 'ok %4d s  %s: %s\n' "$((SECONDS - start))" "$name" "$(sed -n 's/^test result: ok\. \([0-9]* passed\).*/\1/p' <<<"$said")"
        return
    fi
    fails "$name" "$said" "$((SECONDS - start))"
}

# fails NAME OUTPUT SECONDS: shows all of the output here, and what it says of the reason once more in the summary.
fails() {
    local reason
    printf '%s\nFAILED %s, after %d s\n' "$2" "$1" "$3"
    reason=$(grep -E -A 8 'panicked at|^Error: ' <<<"$2" | grep -v -E '^ +[0-9]+: |^ +at |^stack backtrace:' | head -n 40 | cut -c 1-300)
    printf '%s\n    %s\n' "$1" "${reason//$'\n'/$'\n    '}" >>"$BLOCKRING_FAILED"
    return 1
}

# single_tests FOLDER NUMBER: test by test, so many at a time.
single_tests() {
    local folder program
    while IFS=$'\t' read -r folder program; do
        [ "$folder" = "$1" ] || continue
        (cd "$folder" && "$program" --list --format terse 2>/dev/null) | sed -n "s|\(.*\): test\$|$folder\n$program\n\1|p"
    done <"$BLOCKRING_TESTS" | xargs -r -d '\n' -n 3 -P "$2" bash -c 'single_test "$@"' bash
}

single_test() { # FOLDER PROGRAM TEST
    local said start=$SECONDS name
    name="$(basename "$2") $3"
    cd "$1"
    if said=$("$2" --exact "$3" --nocapture 2>&1 </dev/null); then
        printf 'ok %4d s  %s\n' "$((SECONDS - start))" "$name"
        return
    fi
    fails "$name" "$said" "$((SECONDS - start))"
}
export -f test_programs test_program single_tests single_test fails

summary=()
failed=no

verdict() { # NAME STATUS
    case $2 in
        0) echo passed ;;
        3)
            case $1 in
                sanitize) echo "not run: no Miri here" ;;
                packages) echo "not run: not root" ;;
                *) echo FAILED ;;
            esac
            ;;
        124 | 137) echo "FAILED: out of time" ;;
        *) echo FAILED ;;
    esac
}

# used FILE: seconds of a processor of all commands that had ended when `times` wrote the file. A subshell has none of its own.
used() {
    awk 'NR == 2 { gsub(/[ms]/, " "); print int($1 * 60 + $2 + $3 * 60 + $4) }' "$1"
}

# suite NAME MINUTES COMMAND...
suite() {
    local name=$1 minutes=$2 start=$SECONDS before status=0 verdict
    shift 2
    printf '\n== %s (at most %s min): %s\n' "$name" "$minutes" "$*"
    : >"$BLOCKRING_FAILED"
    times >"$work/times"
    before=$(used "$work/times")
    # Everything a test starts is in timeout's process group, and goes with it.
    timeout --kill-after=10 "${minutes}m" bash -c '"$@"' bash "$@" || status=$?
    times >"$work/times"
    verdict=$(verdict "$name" "$status")
    [[ $verdict != FAILED* ]] || failed=yes
    summary+=("$(printf '%-18s %5s s  %s, %s s of a processor' "$name" "$((SECONDS - start))" "$verdict" \
        "$(($(used "$work/times") - before))")")
    if [ -s "$BLOCKRING_FAILED" ]; then
        summary+=("$(sed 's/^/                              /' "$BLOCKRING_FAILED")")
    fi
}

finish() {
    printf '\n== summary\n'
    printf '%s\n' "${summary[@]}"
    [ "$failed" = no ] || exit 1
}

if ((quick)); then
    scripts/setup.sh --guests
    build_tests
    suite quick 15 test_programs 3 "$root" "$root/os" "$root/virtio" "$root/address" "$root/cli" "$root/metrics" "$root/program" "$root/vhost"
    finish
    exit
fi
scripts/setup.sh

printf '== build (its output is shown if it fails)\n'
start=$SECONDS
# Two at once: each of them ends with one program that is linked by one thread.
in_the_background build_programs
programs=$!
in_the_background build_tests
tests=$!
for build in "build_tests $tests" "build_programs $programs"; do
    # shellcheck disable=SC2086 # two words
    finish_build $build || failed=yes
done
[ "$failed" = yes ] || { expect_a_suite_for_each_package && expect_nothing_to_build; } || failed=yes
summary+=("$(printf '%-18s %5s s  %s' build "$((SECONDS - start))" "$([ "$failed" = no ] && echo passed || echo FAILED)")")
# What follows would only repeat why.
[ "$failed" = no ] || finish
# The helpers that boot guests need not ask cargo.
export BLOCKRING_BUILT=1
start_beside

# The searches of the simulation take a processor each, from beginning to end: first, beside tests that wait.
# Four tests of a program at a time: most of them wait for other processes.
RUST_TEST_THREADS=4 suite programs "$((long ? 120 : 15))" test_programs 3 "$root/sim" "$root/vhost" "$root/cli" "$root/program" "$root" "$root/os" \
    "$root/metrics" "$root/virtio" "$root/address" "$root/capi" "$root/test-support"
suite examples 5 cargo test --locked --workspace --doc --no-fail-fast
suite bench 5 test_programs 1 "$root/bench"
# A guest takes a processor; more of them at once only make each other slow.
suite qemu 45 single_tests "$root/qemu-tests" 2
if ((long)); then
    suite crashes 120 scripts/crash-campaign.sh
else
    suite crashes 10 scripts/crash-campaign.sh --short
fi
finish_beside
suite python 5 scripts/test-python.sh --built
suite fuzz 7 scripts/fuzz.sh --each 20
finish
