#!/usr/bin/env bash
# The journal of a guest into a JetStream stream: each entry once, whatever is killed on the way.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: examples/guest-journal-to-jetstream.sh NAME SERVER [FOLDER]

On the host: serves the ring NAME of a guest in FOLDER (/var/lib/blockring without it), and forwards it to the subject journal.NAME of
the stream JOURNALS at SERVER (nats://HOST:PORT), which is made if it is not there. Each message is an entry of the guest's journal
in the export format, with all its fields. While the server is away the entries stay in the ring, and then in the guest's journal.

Ends with exit code 0 after SIGTERM, and with 1 when one of its two programs has ended, whose message says why. Start it again then:
it goes on behind what has arrived.

In the guest, whose disk is that of FOLDER/NAME.sock (docs/guests.md), with systemd and the package blockring-guest:
  systemctl enable --now blockring-journal@journal

Services do the same without a script: blockring@NAME.socket, and blockring-forward with docs/jetstream.md's lines in
/etc/blockring/forward.toml (docs/installation.md).

Example:
  examples/guest-journal-to-jetstream.sh web nats://127.0.0.1:4222
TEXT
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
if [ $# -lt 2 ]; then
    usage >&2
    exit 2
fi
name=$1 server=$2 folder=${3:-/var/lib/blockring}
cd "$folder"

trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
trap 'exit 0' TERM INT
vhost-device-blockring --socket-path "$name.sock" --blk-file "$name.ring" --size 8M --consumer-socket "$name.out" --serial journal &
blockring forward "unix:$name.out" --to "$server" --stream JOURNALS --subject 'journal.{ring}' --create-stream &
# Neither is of use without the other.
wait -n || true
exit 1
