#!/usr/bin/env bash
# All tests, suite by suite, each with a budget of time, so that a hang is a failure with a name.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/test.sh [--long]

Installs and fetches what is missing (see scripts/setup.sh --help), builds, and runs the suites
  library      the ring library and the blockring program, and its micro-benchmarks, run once
  simulation   every crash of short programs on a simulated disk, interleavings, mutants
  vhost        the vhost-user back end
  programs     builds what runs in the guests
  counted      builds what is counted in the suite "bench"
  qemu         real guests (emulated where there is no KVM)
  bench        instructions of a request and of an item, which have bounds; whether the measurements work (scripts/bench.sh --help)
  fuzz         each fuzz target for 20 s (see scripts/fuzz.sh --help)
  crashes      real kills and power cuts: a few (see scripts/crash-campaign.sh --help)
With --long, the better part of an hour: ten million damaged images, a hundred million simulated crashes,
interleavings with more preemptions, and more than a thousand kills and a hundred power cuts.
Ends with one line a suite: passed or FAILED, and the seconds it took. Fails if one of them failed.
TEXT
}

long=0
case "${1:-}" in
    "") ;;
    --long) long=1 && export BLOCKRING_LONG=1 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

summary=()
failed=no

# suite NAME MINUTES COMMAND...
suite() {
    local name=$1 minutes=$2 start=$SECONDS status=0 verdict
    shift 2
    printf '\n== %s (at most %s min): %s\n' "$name" "$minutes" "$*"
    # Everything a test starts is in timeout's process group, and goes with it.
    timeout --kill-after=10 "${minutes}m" "$@" || status=$?
    case $status in
        0) verdict=passed ;;
        124 | 137) verdict="FAILED: out of time" failed=yes ;;
        *) verdict="FAILED" failed=yes ;;
    esac
    summary+=("$(printf '%-10s %5s s  %s' "$name" "$((SECONDS - start))" "$verdict")")
}

finish() {
    printf '\n== summary\n'
    printf '%s\n' "${summary[@]}"
    [ "$failed" = no ] || exit 1
}

suite setup 10 scripts/setup.sh
suite build 15 cargo test --locked --workspace --no-run
# What follows would only repeat why.
[ "$failed" = no ] || finish
suite library "$((long ? 45 : 8))" cargo test --locked -p shared-block-ring
suite simulation "$((long ? 60 : 6))" cargo test --locked -p ring-simulation -- --nocapture
suite vhost 5 cargo test --locked -p vhost-device-blockring
# The programs for the guests are release builds, and not to be waited for within a test's own bounds.
suite programs 15 cargo run --locked --release -p qemu-tests --bin boot-guest -- --prepare
# So is the one whose instructions are counted.
suite counted 10 cargo build --locked --release -p vhost-device-blockring --bench instructions
# A guest takes a processor; more of them at once only make each other slow.
suite qemu 16 cargo test --locked -p qemu-tests -- --test-threads=2
suite bench 5 cargo test --locked -p ring-bench
suite fuzz 15 scripts/fuzz.sh --each 20
if ((long)); then
    suite crashes 60 scripts/crash-campaign.sh
else
    suite crashes 10 scripts/crash-campaign.sh --short
fi
finish
