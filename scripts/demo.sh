#!/usr/bin/env bash
# Shows the whole way: a guest without a network streams lines through a virtio disk, and they arrive
# on the host in order and complete.
set -euo pipefail

LINES_SENT=10000
# The back end binds its sockets within milliseconds; the consumer empties the ring within a second.
READY_SECONDS=15
DRAIN_SECONDS=30
GUEST_SECONDS=180

usage() {
    cat <<TEXT
usage: scripts/demo.sh

Builds the programs (in little time, and so that they are slower than scripts/build.sh makes them), then starts on this host
  vhost-device-blockring   the back end, with a ring of 8 MiB as a disk with the serial number "demo"
  blockring consume        which prints what arrives to standard output (its progress: standard error)
and boots a guest (QEMU; emulated where there is no KVM), which sends its kernel log and then
$LINES_SENT numbered lines through "blockring produce serial:demo". At the end the counts, the rate,
and whether the checksums of both ends agree: if not, the exit status is 1.

Needs root only when packages are missing (see scripts/setup.sh --help). Leaves nothing behind but
what it built. Runs side by side with itself.

  BLOCKRING_ACCEL   QEMU's accelerator, instead of KVM where there is one
TEXT
}

case "${1:-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

say() { printf 'demo: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

folder=
processes=()
clean_up() {
    local process
    trap - EXIT
    for process in "${processes[@]}"; do kill "$process" 2>/dev/null || true; done
    for process in "${processes[@]}"; do
        for _ in {1..50}; do
            kill -0 "$process" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    [ -z "$folder" ] || rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Waits until a command succeeds; fails when the back end is gone or the time is up.
wait_for() {
    local what=$1 seconds=$2 end=$((SECONDS + $2))
    shift 2
    until "$@"; do
        kill -0 "$backend" 2>/dev/null || fail "the back end ended before $what: $(tail -n 5 "$folder/backend.log")"
        ((SECONDS < end)) || fail "$what: not within $seconds s; the back end says: $(tail -n 5 "$folder/backend.log")"
        sleep 0.05
    done
}

# Both pointers are in the ring's file, so that looking needs no connection to the back end.
ring_is_empty() {
    "$programs/blockring" diagnostics --json "$folder/ring" 2>/dev/null | grep -q '"used":0[,}]'
}

value() { sed -n "s/^$1 //p" "$folder/guest.out"; }

scripts/setup.sh --guests
say "building"
programs=$(scripts/build.sh --fast --quiet)
"$programs/test-tools" boot-guest --programs "$programs" --prepare

folder=$(mktemp -d "${TMPDIR:-/tmp}/blockring-demo.XXXXXX")

say "starting the back end"
"$programs/vhost-device-blockring" --socket-path "$folder/vhost.socket" --blk-file "$folder/ring" --size 8M \
    --serial demo --consumer-socket "$folder/consumer.socket" >"$folder/backend.log" 2>&1 &
backend=$!
processes+=("$backend")
wait_for "its sockets are bound" "$READY_SECONDS" test -S "$folder/vhost.socket" -a -S "$folder/consumer.socket"

say "starting the consumer"
mkfifo "$folder/items"
tee "$folder/received" <"$folder/items" &
printer=$!
"$programs/blockring" consume --follow --progress "unix:$folder/consumer.socket" >"$folder/items" &
consumer=$!
# In the order in which they are to end, when they have to.
processes=("$consumer" "$printer" "$backend")

cat >"$folder/script" <<TEXT
{ dmesg; seq -w 1 $LINES_SENT | sed 's/.*/line & of $LINES_SENT from the guest/'; } >/tmp/sent
now() { cut -d ' ' -f 1 /proc/uptime; }
from=\$(now)
blockring produce serial:demo </tmp/sent || exit
echo "seconds \$from \$(now)"
echo "lines \$(wc -l </tmp/sent)"
echo "bytes \$(wc -c </tmp/sent)"
echo "sha256 \$(sha256sum </tmp/sent | cut -d ' ' -f 1)"
TEXT

say "booting the guest"
# With its temporary files in this folder, it may be killed and leaves nothing.
TMPDIR=$folder "$programs/test-tools" boot-guest --programs "$programs" --vhost-user "$folder/vhost.socket" --timeout "$GUEST_SECONDS" \
    "$folder/script" >"$folder/guest.out" &
guest=$!
processes=("$guest" "${processes[@]}")
# Waited for in the background, so that a signal is acted on at once.
wait "$guest" || fail "the guest's script failed: $(cat "$folder/guest.out")"

# The guest ends when all of it is in the ring; the consumer then ends when all of it is out.
wait_for "the ring is empty" "$DRAIN_SECONDS" ring_is_empty
kill -TERM "$consumer"
wait "$consumer" || fail "the consumer ended with status $?"
wait "$printer" || true
processes=("$backend")

received=$(sha256sum <"$folder/received" | cut -d ' ' -f 1)
say "sent     $(value lines) lines, $(value bytes) bytes, sha256 $(value sha256)"
say "received $(wc -l <"$folder/received") lines, $(wc -c <"$folder/received") bytes, sha256 $received"
value seconds | awk -v lines="$(value lines)" -v bytes="$(value bytes)" '{
    # The guest counts in hundredths of a second.
    seconds = $2 - $1 > 0.01 ? $2 - $1 : 0.01
    printf "demo: %.2f s in the guest: %.0f lines/s, %.2f MB/s\n", seconds, lines / seconds, bytes / seconds / 1e6
}' >&2
[ "$(value sha256)" = "$received" ] || fail "the checksums DIFFER"
say "the checksums agree"
