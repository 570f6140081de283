#!/bin/sh
# Commands into a guest, and their results back: the host's side of blockring-exec@ (docs/guests.md).
set -eu

usage() {
    cat <<'TEXT'
usage: examples/guest-commands.sh IN OUT COMMAND...

Sends each COMMAND, a line, through the ring IN to the guest, waits at most two minutes for each answer in the ring OUT, and prints the
answers: a line "position=N status=N", and what the command has printed. Answers to earlier commands that nobody has read are thrown
away. The exit code is 1 if a command has failed or there is no answer.

Example:
  examples/guest-commands.sh unix:/run/blockring/web-in.out unix:/run/blockring/web-out.out 'uname -r' 'systemctl is-system-running'
TEXT
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
if [ $# -lt 3 ]; then
    usage >&2
    exit 2
fi
in=$1 out=$2
shift 2

blockring consume "$out" >/dev/null
printf '%s\n' "$@" | blockring produce "$in"
answers=$(mktemp)
trap 'rm -f "$answers"' EXIT
# What a command prints has no NUL, which a shell could not keep.
blockring consume --follow --framing nul --count $# --timeout 120 "$out" | tr '\0' '\n' >"$answers"
cat "$answers"
[ "$(grep -c '^position=[0-9]* status=' "$answers")" -ge $# ]
! grep -q '^position=[0-9]* status=[1-9]' "$answers"
