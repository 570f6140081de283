#!/usr/bin/env bash
# A Debian system of a folder, booted without a machine of its own. See scripts/systemd-in.sh --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/systemd-in.sh FOLDER UNIT

Runs systemd of the Debian system in FOLDER as the first process of namespaces and of a control group of its own, without a
network, until it ends or SIGTERM ends this: all of its processes are killed then. UNIT is what it starts.
Prints the number of that process; `nsenter --all --target NUMBER COMMAND...` runs a command in the system. Needs root.

Example:
  scripts/systemd-in.sh /tmp/debian multi-user.target
TEXT
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
[ $# = 2 ] || { usage >&2; exit 2; }
root=$(realpath "$1")
work=$(mktemp -d "${TMPDIR:-/tmp}/blockring-systemd.XXXXXX")
group=$(basename "$work")
first=

# shellcheck disable=SC2016 # variables of the shell inside
clean_up() {
    [ -z "$first" ] || kill -KILL "$first" 2>/dev/null || true
    # Nobody needs to read that it was killed.
    wait 2>/dev/null || true
    # The groups outlive their processes, which are gone soon.
    unshare --mount bash -euc '
        mount -t cgroup2 cgroup2 "$1"
        for ((look = 0; look < 100; look++)); do
            [ -d "$1/$2" ] || exit 0
            find "$1/$2" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
        done' bash "$work" "$group" || true
    rmdir "$work"
}
trap clean_up EXIT

# shellcheck disable=SC2016 # variables of the shell inside
setpriv --pdeathsig KILL unshare --mount --pid --net --uts --ipc --fork --kill-child bash -euc '
    # As all others know this process.
    read -r number _ </proc/self/stat
    echo "$number"
    mount -t cgroup2 cgroup2 "$2"
    mkdir "$2/$3"
    echo 0 >"$2/$3/cgroup.procs"
    umount "$2"
    exec unshare --cgroup bash -euc "$4" bash "$1" "$5"' bash "$root" "$work" "$group" '
    root=$1
    mount --bind "$root" "$root"
    cd "$root"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    # This machine stays as it is.
    mount --bind proc/sys proc/sys
    mount -o remount,bind,ro proc/sys
    mount -t tmpfs -o mode=755 dev dev
    mkdir dev/shm dev/pts
    mount -t tmpfs shm dev/shm
    mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    for node in null zero full random urandom tty; do
        touch "dev/$node"
        mount --bind "/dev/$node" "dev/$node"
    done
    mount -t tmpfs -o mode=755 run run
    pivot_root . mnt
    umount -l mnt
    exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit="$2" --log-target=journal --show-status=no' \
    "$2" </dev/null &
first=$!
wait "$first"
