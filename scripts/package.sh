#!/usr/bin/env bash
# Packages of the programs, for Debian and for others. See scripts/package.sh --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/package.sh [--tar] [--version VERSION] [--programs FOLDER] [FOLDER]

Builds the programs (scripts/build.sh), or takes those in --programs, and makes of them in FOLDER (target/packages):
  blockring                the program, its man pages and completions, documents and examples
  vhost-device-blockring   the daemon, units of systemd, its user, /etc/blockring
  blockring-guest          the program for a guest and its units, without any dependency
Prints the paths of the packages. Needs debhelper (Debian: apt-get install debhelper), and no root.

  --tar               makes a tar file with an install script instead, for other distributions. Needs no debhelper
  --version VERSION   the version of the packages, instead of that of Cargo.toml
  --programs FOLDER   the programs are in FOLDER already: nothing is built

DEBFULLNAME and DEBEMAIL name the maintainer of the packages, as for other tools of Debian. The date of all files is
SOURCE_DATE_EPOCH, or that of the last commit.

Examples:
  scripts/package.sh && apt install ./target/packages/*blockring_*.deb
  scripts/package.sh --version 0.1.1~test /tmp/upgrade
  DEBEMAIL=me@example.org scripts/package.sh
  scripts/package.sh --tar
TEXT
}

tar= version= programs= folder=
while [ $# -gt 0 ]; do
    case "$1" in
        --tar) tar=yes ;;
        --version) version=${2:?--version takes a version} && shift ;;
        --programs) programs=${2:?--programs takes a folder} && shift ;;
        -h | --help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
        *) [ -z "$folder" ] || { usage >&2; exit 2; }; folder=$1 ;;
    esac
    shift
done

start=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
root=$PWD
if [ -n "$folder" ]; then folder=$(cd "$start" && realpath -m "$folder"); else folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/packages; fi
version=${version:-$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
maintainer="${DEBFULLNAME:-The shared-block-ring developers} <${DEBEMAIL:-packages@blockring.invalid}>"
if [ -z "$tar" ] && ! command -v dh >/dev/null; then
    echo "package.sh: debhelper is missing (Debian: apt-get install debhelper); --tar does without" >&2
    exit 1
fi
if [ -n "$programs" ]; then programs=$(cd "$start" && realpath "$programs"); else programs=$(scripts/build.sh); fi

work=$(mktemp -d "${TMPDIR:-/tmp}/blockring-package.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/source
mkdir -p "$folder" "$tree/stage"

# What the packages and the tar file have in common, in the places where it is installed.
stage() {
    local stage=$1
    install -D -t "$stage/usr/bin" "$programs/blockring" "$programs/vhost-device-blockring"
    "$stage/usr/bin/blockring" generate "$stage/usr/share"
    "$stage/usr/bin/vhost-device-blockring" --generate "$stage/usr/share"
    install -D -m 644 -t "$stage/usr/lib/systemd/system" packaging/systemd/*.service packaging/systemd/*.socket
    install -D -t "$stage/usr/lib/blockring" packaging/guest/*
    install -D -m 644 -t "$stage/usr/share/qemu/vhost-user" packaging/vhost-user/*.json
    install -D -m 644 -t "$stage/etc/blockring" packaging/etc/forward.toml
    # The documents lie as in the repository, with the files that they lead to: so their links hold.
    install -D -m 644 -t "$stage" README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md
    install -D -m 644 -t "$stage/docs" docs/*.md docs/*.svg
    install -D -m 644 -t "$stage/examples" examples/*.rs packaging/etc/*.toml contrib/prometheus/alerts.yml contrib/grafana/blockring.json
    install -D -t "$stage/examples" examples/*.sh
    install -D -m 644 -t "$stage/examples/c" examples/c/*.c
    install -D -m 644 -t "$stage/examples/python" examples/python/*.py
    python3 packaging/third-party.py >"$stage/third-party.txt"
}

make_packages() {
    local package
    cp -r packaging/debian "$tree/"
    cp CHANGELOG.md "$tree/"
    cd "$tree/debian"
    sed -i "s|@MAINTAINER@|$maintainer|" control
    for package in blockring vhost-device-blockring blockring-guest; do
        sed "s/PACKAGE/$package/; /^@MIT@$/{
            r /dev/stdin
            d
        }" copyright.in <"$work/mit" >"$package.copyright"
        sed "s/PACKAGE/$package/" lintian-overrides.in >"$package.lintian-overrides"
    done
    cp "$root/packaging/systemd/sysusers.conf" vhost-device-blockring.sysusers
    cp "$root/packaging/systemd/tmpfiles.conf" vhost-device-blockring.tmpfiles
    cat >changelog <<TEXT
shared-block-ring ($version-1) unstable; urgency=medium

  * Packages of version $version. The file changelog.gz beside this one
    says what has changed.

 -- $maintainer  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
TEXT
    cd ..
    # Debugging symbols would need packages of their own.
    DEB_BUILD_OPTIONS=noautodbgsym dpkg-buildpackage -b -us -uc -nc >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    mv ../*.deb "$folder"
    for package in blockring vhost-device-blockring blockring-guest; do echo "$folder/${package}_$version-1_amd64.deb"; done
}

make_tar() {
    local name=blockring-$version-x86_64-linux
    install -m 755 packaging/install.sh "$tree/stage/install.sh"
    install -D -m 644 packaging/systemd/sysusers.conf "$tree/stage/usr/lib/sysusers.d/vhost-device-blockring.conf"
    install -D -m 644 packaging/systemd/tmpfiles.conf "$tree/stage/usr/lib/tmpfiles.d/vhost-device-blockring.conf"
    install -m 644 LICENSE-* "$tree/stage"
    mv "$tree/stage" "$tree/$name"
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$tree" -czf "$folder/$name.tar.gz" "$name"
    printf '%s\n' "$folder/$name.tar.gz"
}

# As a paragraph of debian/copyright.
sed 's/^$/./; s/^/ /' LICENSE-MIT >"$work/mit"
stage "$tree/stage"
if [ -n "$tar" ]; then make_tar; else make_packages; fi
