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
  - systemd accepts the units, and rates their exposure at 2.0 at most; under them, as the first process of
    the copy, a backend is started by its socket, and items are forwarded while it is restarted and killed;
  - an upgrade keeps what the user has changed in /etc; a purge leaves nothing but rings and the user's files, and names them;
  - every link of an installed document leads to an installed file;
  - the package for guests needs nothing, and gives way to the other one;
  - piuparts finds nothing that a purge of one of them leaves or changes;
  - the tar file installs and uninstalls.
Needs root. All mounts are in a namespace of their own; the copy is in a temporary folder beside the
bare system.

  --prepare   makes the bare system in target/packages-root, if it is not there or lacks packages: this fetches some 100 MB

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

# boot UNIT: has systemd run it as the first process of the copy.
boot() {
    timeout --kill-after=10 180 scripts/systemd-in.sh "$root" "$1" </dev/null >"$work/boot" 2>&1 || { cat "$work/boot"; return 1; }
}

# What the packages depend on, other programs for init, and what commands of the documents use: tests of guests install it.
fetched='systemd systemd-sysv openrc socat'

# A bare system that has also fetched, and not installed, these packages: the tests themselves need no network.
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
        inside "$made/root" apt-get clean
        fetch_packages "$made/root"
        mv "$made/root" "$bare/root"
    elif [ "$(cat "$bare/root/$list" 2>/dev/null)" != "$fetched" ]; then
        # It was made when tests needed less.
        fetch_packages "$bare/root"
    fi
    exec 9>&-
}

list=var/cache/apt/archives/fetched
fetch_packages() {
    local network=() said
    # shellcheck disable=SC2086 # words
    said=$({ inside "$1" apt-get update -q && inside "$1" apt-get install -y -q --no-install-recommends --download-only $fetched; } 2>&1) ||
        { echo "$said" >&2; exit 1; }
    echo "$fetched" >"$1/$list"
}

if [ -n "$prepare" ]; then
    make_bare
    exit
fi
[ -d "$bare/root" ] || fail "there is no bare system: scripts/test-packages.sh --prepare makes it"

# Beside the bare system, where there is room for another.
work=$(mktemp -d "$bare/test.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
programs=$(scripts/build.sh)

# Whoever installs them waits for no compression here.
export DPKG_DEB_COMPRESSOR_TYPE=gzip DPKG_DEB_COMPRESSOR_LEVEL=1
say "packages"
scripts/package.sh --programs "$programs" --version 9.8.7~test "$work/debs" >"$work/made"
[ "$(find "$work/debs" -name '*_9.8.7~test-1_amd64.deb' | sort)" = "$(sort "$work/made")" ] || fail "it is not those packages that were made"
xargs lintian --allow-root --fail-on error,warning <"$work/made" || fail "lintian objects"

cp -a "$bare/root" "$root"
# Where the documented commands find them.
mkdir -p "$root/debs/target/packages"
cp "$work/debs"/*.deb "$root/debs/target/packages"
cp "$work/debs"/blockring-guest_*.deb "$root/debs"
printf 'APT::Get::Assume-Yes "true";\nAPT::Install-Recommends "false";\n' >"$root/etc/apt/apt.conf.d/99test"
# Also in a chroot: no service is started.
apt_get() { inside "$root" apt-get -y -q --no-install-recommends "$@" >"$work/log" 2>&1 || { cat "$work/log"; return 1; }; }
# expect_links_in FOLDER: every relative link of the documents there leads to a file.
expect_links_in() {
    local page link links=0
    while IFS=: read -r page link; do
        link=${link#](}
        link=${link%)}
        case $link in *://* | '#'*) continue ;; esac
        [ -e "$(dirname "$page")/${link%%#*}" ] || fail "$page leads to $link, which is not there"
        links=$((links + 1))
    done < <(grep -rHo --include='*.md' ']([^)]*)' "$1")
    [ "$links" -ge 40 ] || fail "only $links links in $1"
}
# documented PAGE WORDS: the code block of a page that has these words, without comments.
documented() {
    awk -v words="$2" '/^```/ { if (inside && index(block, words)) printf "%s", block; inside = !inside; block = ""; next }
        inside { sub(/ *#.*/, ""); block = block $0 "\n" }' "$1"
}
# install_by WORD: of the commands in the input, those of apt that have this word.
install_by() {
    local command installed=
    while IFS= read -r command; do
        case $command in
            "apt install "*"$1"*)
                inside "$root" bash -c "cd /debs && $command" </dev/null >"$work/log" 2>&1 || fail "$command: $(cat "$work/log")"
                installed=yes
                ;;
            scripts/package.sh | "apt install "*) ;;
            *) fail "another command is documented: $command" ;;
        esac
    done
    [ -n "$installed" ] || fail "no command installs $1"
}
ours() { (cd "$root" && find . -xdev -path ./debs -prune -o -iname '*blockring*' -print | grep -v '^./var/lib/dpkg/\|^./var/log/\|^./etc/\(passwd\|group\|g\?shadow\)' || true); }

say "the guest's package, in a system without anything else"
before=$(inside "$root" dpkg-query -W | wc -l)
documented "docs/installation.md" "apt install" | install_by ./blockring-guest_
[ "$(inside "$root" dpkg-query -W | wc -l)" = $((before + 1)) ] || fail "blockring-guest has brought other packages"
inside "$root" blockring --version | grep -q '^blockring ' || fail "blockring does not run"
cp "$root"/usr/lib/systemd/system/blockring-{journal,exec,listen}@.* "$work"
# As `systemctl enable` does it.
mkdir "$root/etc/systemd/system/sysinit.target.wants"
ln -s /lib/systemd/system/blockring-journal@.service "$root/etc/systemd/system/sysinit.target.wants/blockring-journal@logs.service"
[ -x "$root/usr/lib/blockring/exec-commands" ] || fail "there is no program for blockring-exec@.service"

say "the host's packages"
documented "README.md" "apt install" | install_by vhost-device-blockring
documented "docs/installation.md" "apt install" | install_by vhost-device-blockring
[ "$(inside "$root" dpkg-query -W -f '${db:Status-Abbrev}' blockring-guest)" != "ii " ] || fail "blockring-guest is still there"
inside "$root" vhost-device-blockring --print-capabilities | grep -q block || fail "vhost-device-blockring does not run"
inside "$root" getent passwd blockring | grep -q ':/var/lib/blockring:/usr/sbin/nologin$' || fail "there is no user blockring"
for folder in run/blockring var/lib/blockring; do
    [ "$(inside "$root" stat -c %U "/$folder")" = blockring ] || fail "/$folder is not the user's"
done
for page in blockring blockring-forward blockring-produce vhost-device-blockring; do
    mman -M "$root/usr/share/man" -w "$page" >/dev/null 2>&1 || fail "there is no page $page"
done
expect_links_in "$root/usr/share/doc/blockring"

# As management software finds it.
binary=$(sed -n 's/^ *"binary": "\(.*\)",$/\1/p' "$root"/usr/share/qemu/vhost-user/*.json)
inside "$root" "$binary" --print-capabilities >/dev/null || fail "the descriptor for management software names $binary"

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
cp "$work"/blockring-{journal,exec,listen}@.* "$root/usr/lib/systemd/system"
units=(blockring@web.service blockring@web.socket blockring-many.service blockring-forward.service blockring-journal@logs.service blockring-exec@web.service
    blockring-listen@logs.service blockring-listen@logs.socket)
inside "$root" systemd-analyze verify --man=no "${units[@]}" >"$work/verify" 2>&1 || fail "systemd objects: $(cat "$work/verify")"
[ ! -s "$work/verify" ] || fail "systemd objects: $(cat "$work/verify")"
for unit in blockring@.service blockring-many.service blockring-forward.service blockring-journal@.service blockring-listen@.service; do
    inside "$root" systemd-analyze security --offline=true --threshold=20 --no-pager "/usr/lib/systemd/system/$unit" >"$work/security" ||
        fail "$unit is exposed too much: $(cat "$work/security")"
done
rm "$root"/usr/lib/systemd/system/blockring-{journal,exec,listen}@.*

say "services, under systemd"
mkdir "$root/services"
cat >"$root/services/run" <<'TEXT'
set -eux
eventually() { local look; for ((look = 0; look < 600; look++)); do if "$@"; then return; fi; sleep 0.1; done; return 1; }
has_lines() { [ "$(cat /var/lib/blockring/forward/web.log | wc -l)" = "$1" ]; }
# As the front end of a guest.
send() { seq "$1" | setpriv --reuid blockring --regid blockring --init-groups blockring produce --timeout 60 vhost-user:/run/blockring/web.sock; }
sed s/NAME/web/ /usr/share/doc/vhost-device-blockring/examples/ring.toml >/etc/blockring/rings.d/web.toml
systemctl start blockring@web.socket blockring-forward
[ "$(systemctl is-active blockring@web)" = inactive ]
send 10
eventually has_lines 10
systemctl reload blockring-forward
systemctl restart blockring@web
send 20
eventually has_lines 30
killed=$(systemctl show -P MainPID blockring@web)
systemctl kill --signal=KILL blockring@web
is_another() { [ "$(systemctl show -P MainPID blockring@web)" != "$killed" ] && systemctl is-active blockring@web; }
eventually is_another
send 30
eventually has_lines 60
# One daemon of several rings.
for ring in one two; do sed "s/NAME/$ring/" /usr/share/doc/vhost-device-blockring/examples/many.toml >/etc/blockring/many.d/$ring.toml; done
systemctl start blockring-many
carries() {
    # `set -e` has no effect in a function that is a condition.
    echo "$2" | setpriv --reuid blockring --regid blockring --init-groups blockring produce --timeout 60 "vhost-user:/run/blockring/$1.sock" ||
        return
    eventually grep -qxF "$2" "/var/lib/blockring/forward/$1.log"
}
carries one 'by the first start'
sed s/NAME/three/ /usr/share/doc/vhost-device-blockring/examples/many.toml >/etc/blockring/many.d/three.toml
systemctl reload blockring-many
# The reload returns once the signal is sent: the ring comes later.
eventually carries three 'after a reload'
main=$(systemctl show -P MainPID blockring-many)
blockring ctl upgrade
blockring ctl upgrade --whole
[ "$(systemctl show -P MainPID blockring-many)" = "$main" ]
[ "$(systemctl is-active blockring-many)" = active ]
for ring in one two three; do carries $ring 'after two upgrades'; done
systemctl restart blockring-many
carries two 'after a restart'
systemctl stop blockring-many
rm -f /etc/blockring/many.d/* /var/lib/blockring/{one,two,three}.ring
# As an upgrade that has other units.
touch /usr/lib/systemd/system/blockring@.service
[ "$(systemctl show -P NeedDaemonReload blockring@web)" = yes ]
/var/lib/dpkg/info/vhost-device-blockring.postinst configure ''
[ "$(systemctl show -P NeedDaemonReload blockring@web)" = no ]
systemctl stop blockring@web.socket blockring@web blockring-forward
for unit in blockring@web blockring-many blockring-forward; do [ "$(systemctl show -P Result "$unit")" = success ]; done
touch /services/passed
TEXT
cat >"$root/etc/systemd/system/services.service" <<'TEXT'
[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/bash /services/run
StandardError=file:/services/log
ExecStopPost=/bin/sh -c 'journalctl -b --no-pager >/services/journal; systemctl --no-block exit'
TEXT
boot services.service || fail "systemd does not start in a namespace"
[ -e "$root/services/passed" ] || fail "services: $(cat "$root/services/journal" "$root/services/log")"
rm -rf "$root/services" "$root/etc/systemd/system/services.service" "$root"/var/lib/blockring/forward/*.log*

say "upgrade"
echo '# kept by the upgrade' >>"$root/etc/blockring/forward.toml"
echo '# so is this' >>"$root/etc/blockring/rings.d/web.toml"
# The same package with another version and another default, as a later release has them.
dpkg-deb -R "$work/debs"/vhost-device-blockring_*.deb "$work/next"
version=$(sed -n 's/^Version: //p' "$work/next/DEBIAN/control")
sed -i "s/^Version: .*/Version: $version+test/" "$work/next/DEBIAN/control"
echo '# a new default' >>"$work/next/etc/blockring/forward.toml"
dpkg-deb -b "$work/next" "$root/debs/next.deb" >/dev/null
apt_get -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold install /debs/next.deb || fail "apt does not upgrade"
[ "$(inside "$root" dpkg-query -W -f '${Version}' vhost-device-blockring)" = "$version+test" ] || fail "it is not upgraded"
grep -q '^# kept by the upgrade' "$root/etc/blockring/forward.toml" || fail "the upgrade has replaced forward.toml"
grep -q '^# so is this' "$root/etc/blockring/rings.d/web.toml" || fail "the upgrade has replaced the user's file"

say "purge"
apt_get purge blockring vhost-device-blockring blockring-guest || fail "apt does not purge"
for kept in /var/lib/blockring /etc/blockring/rings.d; do
    grep -q "kept, as it is not empty: $kept\$" "$work/log" || fail "purge does not say that it keeps $kept: $(cat "$work/log")"
done
left=$(ours)
expected=$'./etc/blockring\n./var/lib/blockring'
[ "$left" = "$expected" ] || fail "purge leaves: $left"
[ "$(cd "$root" && find etc/blockring var/lib/blockring -type f | sort | tr '\n' ' ')" = "etc/blockring/rings.d/web.toml var/lib/blockring/web.ring " ] ||
    fail "purge leaves more, or less, than the user's files"

# Each package alone, by the tool of Debian's archive, in a system as it was before them: as the user is told to clean up.
say "piuparts"
inside "$root" sh -c 'rm -r /var/lib/blockring /etc/blockring && userdel blockring'
rm -r "$root/debs" "$root/etc/apt/apt.conf.d/99test"
# There is no network, and apt has nothing to fetch.
: >"$root/etc/apt/sources.list"
mapfile -t debs <"$work/made"
unshare --net --mount piuparts --existing-chroot "$root" --hard-link --keep-sources-list --no-upgrade-test --no-eatmydata \
    --single-packages --tmpdir "$work" --log-level info "${debs[@]}" >"$work/piuparts" 2>&1 || fail "piuparts objects: $(cat "$work/piuparts")"
[ "$(grep -c 'PASS: Installation and purging test' "$work/piuparts")" = 3 ] || fail "piuparts has not tested all packages: $(cat "$work/piuparts")"

say "tar file"
tar=$(scripts/package.sh --programs "$programs" --tar --version 9.8.7 "$work/tars")
tar -C "$work/tars" -xf "$tar"
[ "$(basename "$tar")" = blockring-9.8.7-x86_64-linux.tar.gz ] || fail "its name is $tar"
expect_links_in "$work/tars/blockring-9.8.7-x86_64-linux"
installer=("$work/tars/blockring-9.8.7-x86_64-linux/install.sh" --destdir "$work/dest" --prefix /opt/ring)
"${installer[@]}"
"$work/dest/opt/ring/bin/vhost-device-blockring" --version >/dev/null || fail "the tar file's program does not run"
grep -q '^ExecStart=/opt/ring/bin/blockring ' "$work/dest/opt/ring/lib/systemd/system/blockring-forward.service" ||
    fail "the unit has another prefix"
grep -q '"binary": "/opt/ring/bin/vhost' "$work"/dest/opt/ring/share/qemu/vhost-user/*.json || fail "the descriptor has another prefix"
"${installer[@]}" --uninstall | grep -q kept || fail "it does not say what it keeps"
[ "$(cd "$work/dest" && find . -type f)" = ./etc/blockring/forward.toml ] || fail "uninstall leaves: $(find "$work/dest" -type f)"
say "passed"
