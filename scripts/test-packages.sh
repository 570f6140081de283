#!/usr/bin/env bash
# Tests of the packages, in a Debian system of their own. See scripts/test-packages.sh --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/test-packages.sh [--prepare]

Makes the packages (scripts/package.sh) of the programs of scripts/build.sh, and checks them:
  - lintian has neither errors nor warnings;
  - in a copy of a bare Debian 12 apt installs them with nothing but what they depend on, the programs run, the user and
    the folders are there, and the daemon serves a ring as that user;
  - systemd accepts the units, and rates their exposure at 2.0 at most; the programs make no system call that their units refuse;
  - an upgrade keeps what the user has changed in /etc; a purge leaves nothing but rings and the user's files, and names them;
  - the package for guests needs nothing, and gives way to the other one;
  - the tar file installs and uninstalls.
Needs root. All mounts are in a namespace of their own; the copy is in a temporary folder.

  --prepare   makes the bare system in target/packages-root, if it is not there: this fetches some 100 MB

Example:
  scripts/test-packages.sh --prepare && scripts/test-packages.sh
TEXT
}

prepare=
case "${1:-}" in
    "") ;;
    --prepare) prepare=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin:/sbin
bare=$(realpath -m "${CARGO_TARGET_DIR:-target}")/packages-root
if [ "$(id -u)" != 0 ]; then
    echo "test-packages.sh: installing packages needs root" >&2
    exit 3
fi

say() { printf 'test-packages: %s\n' "$*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

# inside FOLDER COMMAND...: as root of the system in FOLDER, without a network. Its /proc and its processes end with the command.
network=(--net)
inside() {
    local folder=$1
    shift
    unshare "${network[@]}" --mount --pid --fork --kill-child bash -c 'mount -t proc proc "$1/proc" && exec chroot "$@"' bash "$folder" \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
}

# A bare system that has also fetched, and not installed, what the packages depend on: the test itself needs no network.
make_bare() {
    local made
    mkdir -p "$bare"
    # Two at once: the second waits, and then finds it there.
    exec 9>"$bare/lock"
    flock 9
    if [ ! -d "$bare/root" ]; then
        made=$(mktemp -d "$bare/new.XXXXXX")
        # shellcheck disable=SC2064 # the folder's name as it is now
        trap "rm -rf '$made'" EXIT
        debootstrap --variant=minbase bookworm "$made/root" >"$made/log" || { cat "$made/log" >&2; exit 1; }
        # What is installed in a system that is thrown away need not be durable.
        echo force-unsafe-io >"$made/root/etc/dpkg/dpkg.cfg.d/fast"
        cp /etc/resolv.conf "$made/root/etc/resolv.conf"
        network=()
        inside "$made/root" sh -c 'apt-get clean && apt-get update -q && apt-get install -y -q --no-install-recommends --download-only systemd' \
            >"$made/log" 2>&1 || { cat "$made/log" >&2; exit 1; }
        mv "$made/root" "$bare/root"
    fi
    exec 9>&-
}

if [ -n "$prepare" ]; then
    make_bare
    exit
fi
[ -d "$bare/root" ] || fail "there is no bare system: scripts/test-packages.sh --prepare makes it"

work=$(mktemp -d "${TMPDIR:-/tmp}/blockring-packages.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
programs=$(scripts/build.sh)

# Whoever installs them waits for no compression here.
export DPKG_DEB_COMPRESSOR_TYPE=gzip DPKG_DEB_COMPRESSOR_LEVEL=1
say "packages"
scripts/package.sh --programs "$programs" "$work/debs" >"$work/made"
[ "$(wc -l <"$work/made")" = 3 ] || fail "there are not three packages"
xargs lintian --allow-root --fail-on error,warning <"$work/made" || fail "lintian objects"

cp -a "$bare/root" "$root"
mkdir "$root/debs"
for package in blockring vhost-device-blockring blockring-guest; do cp "$work/debs/${package}_"*.deb "$root/debs/$package.deb"; done
# Also in a chroot: no service is started.
apt_get() { inside "$root" apt-get -y -q --no-install-recommends "$@" >"$work/log" 2>&1 || { cat "$work/log"; return 1; }; }
install() { apt_get install "$@" || fail "apt does not install $*"; }
ours() { (cd "$root" && find . -xdev -path ./debs -prune -o -iname '*blockring*' -print | grep -v '^./var/lib/dpkg/\|^./var/log/\|^./etc/\(passwd\|group\|g\?shadow\)' || true); }

say "the guest's package, in a system without anything else"
before=$(inside "$root" dpkg-query -W | wc -l)
install /debs/blockring-guest.deb
[ "$(inside "$root" dpkg-query -W | wc -l)" = $((before + 1)) ] || fail "blockring-guest has brought other packages"
inside "$root" blockring --version | grep -q '^blockring ' || fail "blockring does not run"
cp "$root/usr/lib/systemd/system/blockring-journal@.service" "$work"

say "the host's packages"
install /debs/blockring.deb /debs/vhost-device-blockring.deb
[ "$(inside "$root" dpkg-query -W -f '${db:Status-Abbrev}' blockring-guest)" != "ii " ] || fail "blockring-guest is still there"
inside "$root" vhost-device-blockring --print-capabilities | grep -q block || fail "vhost-device-blockring does not run"
inside "$root" getent passwd blockring | grep -q ':/var/lib/blockring:/usr/sbin/nologin$' || fail "there is no user blockring"
for folder in run/blockring var/lib/blockring; do
    [ "$(inside "$root" stat -c %U "/$folder")" = blockring ] || fail "/$folder is not the user's"
done
for page in blockring blockring-forward blockring-produce vhost-device-blockring; do
    mman -M "$root/usr/share/man" -w "$page" >/dev/null 2>&1 || fail "there is no page $page"
done

say "a ring of the user blockring"
as_user='setpriv --reuid blockring --regid blockring --init-groups'
# shellcheck disable=SC2016 # variables of the shell inside
inside "$root" bash -euc '
    $1 vhost-device-blockring --socket-path /run/blockring/web.sock --blk-file /var/lib/blockring/web.ring --size 64K \
        --consumer-socket /run/blockring/web.out 2>/tmp/log &
    for ((look = 0; look < 600; look++)); do [ ! -S /run/blockring/web.out ] || break; sleep 0.1; done
    $1 blockring health unix:/run/blockring/web.out
    kill $! && wait $!' bash "$as_user" >"$work/log" 2>&1 || fail "the daemon does not serve a ring: $(cat "$work/log" "$root/tmp/log")"
# shellcheck disable=SC2086 # words
inside "$root" $as_user blockring forward --check-config --config /etc/blockring/forward.toml |
    grep -q 'the configuration is sound' || fail "forward.toml is not sound"

say "units"
cp "$work/blockring-journal@.service" "$root/usr/lib/systemd/system"
units=(blockring@web.service blockring@web.socket blockring-forward.service blockring-journal@logs.service)
inside "$root" systemd-analyze verify --man=no "${units[@]}" >"$work/verify" 2>&1 || fail "systemd objects: $(cat "$work/verify")"
[ ! -s "$work/verify" ] || fail "systemd objects: $(cat "$work/verify")"
for unit in blockring@.service blockring-forward.service blockring-journal@.service; do
    inside "$root" systemd-analyze security --offline=true --threshold=20 --no-pager "/usr/lib/systemd/system/$unit" >"$work/security" ||
        fail "$unit is exposed too much: $(cat "$work/security")"
done

# allowed UNIT: the system calls that it allows, sorted.
allowed() {
    # shellcheck disable=SC2016 # variables of the shell inside
    inside "$root" bash -euc '
        expand() {
            for name; do
                case $name in @*) expand $(systemd-analyze syscall-filter "$name" | sed "1d; /#/d") ;; *) echo "$name" ;; esac
            done
        }
        cd "$(mktemp -d)"
        touch so_far
        sed -n "s/^SystemCallFilter=//p" "/usr/lib/systemd/system/$1" | while read -r line; do
            case $line in
                ~*) expand ${line#\~} | sort -u | comm -23 so_far - >next ;;
                *) expand $line | sort -u - so_far >next ;;
            esac
            mv next so_far
        done
        cat so_far' bash "$1"
}

# expect_allowed UNIT FILE: what strace has written there.
expect_allowed() {
    local refused
    allowed "$1" >"$work/allowed"
    refused=$(sed -nE 's/^[0-9]+ +([a-z0-9_]+)\(.*/\1/p' "$2" | sort -u | comm -23 - "$work/allowed")
    [ -s "$work/allowed" ] && [ -s "$2" ] && [ -z "$refused" ] || fail "$1 refuses system calls that the program makes: $refused"
}

say "system calls"
mkdir "$work/life"
(
    cd "$work/life"
    # -D: the daemon, and not strace, is the shell's child, which is stopped below.
    strace -D -f -o daemon.calls "$programs/vhost-device-blockring" --socket-path guest --blk-file ring --size 64K --consumer-socket out --cpu 0 \
        2>log &
    for ((look = 0; look < 600; look++)); do [ ! -S out ] || break; sleep 0.1; done
    seq 10 | "$programs/blockring" produce --timeout 60 vhost-user:guest
    strace -f -o forward.calls "$programs/blockring" forward --drain --drain-timeout 60 unix:out --to file:items
    kill $!
    wait $!
) || fail "the daemon or the forwarder does not run under strace: $(cat "$work/life/log")"
[ "$(wc -l <"$work/life/items")" = 10 ] || fail "the items are not forwarded"
expect_allowed blockring@.service "$work/life/daemon.calls"
expect_allowed blockring-forward.service "$work/life/forward.calls"
rm "$root/usr/lib/systemd/system/blockring-journal@.service"

say "upgrade"
echo '# kept by the upgrade' >>"$root/etc/blockring/forward.toml"
echo 'OPTIONS=--size 1M' >"$root/etc/blockring/rings.d/web.conf"
# The same package with another version and another default, as a later release has them.
dpkg-deb -R "$root/debs/vhost-device-blockring.deb" "$work/next"
version=$(sed -n 's/^Version: //p' "$work/next/DEBIAN/control")
sed -i "s/^Version: .*/Version: $version+test/" "$work/next/DEBIAN/control"
echo '# a new default' >>"$work/next/etc/blockring/forward.toml"
dpkg-deb -b "$work/next" "$root/debs/next.deb" >/dev/null
apt_get -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold install /debs/next.deb || fail "apt does not upgrade"
[ "$(inside "$root" dpkg-query -W -f '${Version}' vhost-device-blockring)" = "$version+test" ] || fail "it is not upgraded"
grep -q '^# kept by the upgrade' "$root/etc/blockring/forward.toml" || fail "the upgrade has replaced forward.toml"
grep -q 1M "$root/etc/blockring/rings.d/web.conf" || fail "the upgrade has replaced the user's file"

say "purge"
apt_get purge blockring vhost-device-blockring blockring-guest || fail "apt does not purge"
for kept in /var/lib/blockring /etc/blockring/rings.d; do
    grep -q "kept, as it is not empty: $kept\$" "$work/log" || fail "purge does not say that it keeps $kept: $(cat "$work/log")"
done
left=$(ours)
expected=$'./etc/blockring\n./var/lib/blockring'
[ "$left" = "$expected" ] || fail "purge leaves: $left"
[ "$(cd "$root" && find etc/blockring var/lib/blockring -type f | sort | tr '\n' ' ')" = "etc/blockring/rings.d/web.conf var/lib/blockring/web.ring " ] ||
    fail "purge leaves more, or less, than the user's files"

say "tar file"
tar=$(scripts/package.sh --programs "$programs" --tar --version 9.8.7 "$work/tars")
tar -C "$work/tars" -xf "$tar"
[ "$(basename "$tar")" = blockring-9.8.7-x86_64-linux.tar.gz ] || fail "its name is $tar"
installer=("$work/tars/blockring-9.8.7-x86_64-linux/install.sh" --destdir "$work/dest" --prefix /opt/ring)
"${installer[@]}"
"$work/dest/opt/ring/bin/vhost-device-blockring" --version >/dev/null || fail "the tar file's program does not run"
grep -q '^ExecStart=/opt/ring/bin/blockring ' "$work/dest/opt/ring/lib/systemd/system/blockring-forward.service" ||
    fail "the unit has another prefix"
"${installer[@]}" --uninstall | grep -q kept || fail "it does not say what it keeps"
[ "$(cd "$work/dest" && find . -type f)" = ./etc/blockring/forward.toml ] || fail "uninstall leaves: $(find "$work/dest" -type f)"
say "passed"
