#!/bin/sh
# A producer in a container that has nothing but the socket of a backend: no network, no other files, processes or rights.
set -eu

usage() {
    cat <<'TEXT'
usage: examples/container-producer.sh SOCKET [BLOCKRING [OPTION...]]

Pushes standard input into the ring that vhost-device-blockring serves at SOCKET (its --socket-path), as "blockring produce OPTION..."
does, from namespaces of its own: users, mounts, network, processes, IPC and host name. All that is inside is BLOCKRING (the one on
PATH, otherwise), which has to be linked statically, and, read-only, the folder of SOCKET: give it one of its own. The folder and not
the socket alone, because a backend that is started again makes a new one, and the producer goes on there.

A static program:
  RUSTFLAGS='-C target-feature=+crt-static' \
      cargo build --release --target x86_64-unknown-linux-gnu --bin blockring

Needs no privileges, only a kernel that lets users make namespaces (sysctl user.max_user_namespaces), and util-linux. Where users may not
make them, as in a chroot, root may: the producer is then the user 65534 (nobody), which the socket must be open to (--socket-mode 666).
TEXT
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    "") usage >&2; exit 2 ;;
esac
socket=$(realpath "$1")
blockring=$(realpath "$(command -v "${2:-blockring}")")
shift
[ $# -eq 0 ] || shift

# What takes the rights away: inside another namespace of users everybody is nobody; without one root becomes nobody.
if unshare --user --map-root-user true 2>/dev/null; then
    users="--user --map-root-user" nobody="--user"
elif [ "$(id -u)" = 0 ]; then
    users="" nobody="--setgid=65534 --setuid=65534"
else
    echo "container-producer: users may not make namespaces here (sysctl user.max_user_namespaces, or a chroot): run it as root" >&2
    exit 1
fi

# shellcheck disable=SC2016,SC2086 # what is in quotes is expanded inside; the options are words
exec unshare $users --mount --net --pid --ipc --uts --fork --kill-child sh -euc '
    socket=$1 blockring=$2 nobody=$3
    shift 3
    # Any folder will do: what it holds is hidden for this container only. But for "ro", the options are those that a mount
    # may have already, and that must not be taken away from it.
    mount -t tmpfs -o mode=755 container /mnt
    cd /mnt
    mkdir ring
    touch blockring
    mount --bind -o ro,nosuid,nodev,noexec "${socket%/*}" ring
    mount --bind -o ro,nosuid,nodev "$blockring" blockring
    mount -o remount,bind,ro .
    # What nobody starts has no capabilities, and with another root than that of its mounts it is not let into a further
    # namespace that would give it some.
    exec unshare $nobody --root=. /blockring produce "$@" "vhost-user:/ring/${socket##*/}"
' sh "$socket" "$blockring" "$nobody" "$@"
