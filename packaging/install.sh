#!/bin/sh
# Installs what lies beside it. See ./install.sh --help.
set -eu

usage() {
    cat <<'TEXT'
usage: ./install.sh [--guest | --uninstall] [--prefix FOLDER] [--destdir FOLDER]

Installs blockring and vhost-device-blockring, their man pages and completions, and units of systemd; without
--destdir it also makes the user blockring and the folders /run/blockring and /var/lib/blockring, where systemd's
tools are. Files in /etc/blockring that are there already stay as they are.

  --guest            in a guest: blockring, its pages and completions, and the units for guests
  --uninstall        removes what it has installed; /etc/blockring and /var/lib/blockring stay
  --prefix FOLDER    instead of /usr/local
  --destdir FOLDER   installs below FOLDER, for those who make packages

Examples:
  ./install.sh
  ./install.sh --guest --prefix /usr
  ./install.sh --destdir /tmp/package --prefix /usr
  ./install.sh --uninstall
TEXT
}

guest='' uninstall='' prefix=/usr/local destdir=''
while [ $# -gt 0 ]; do
    case "$1" in
        --guest) guest=yes ;;
        --uninstall) uninstall=yes ;;
        --prefix) prefix=${2:?--prefix takes a folder} && shift ;;
        --destdir) destdir=${2:?--destdir takes a folder} && shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
cd "$(dirname "$0")"

# Paths below usr/ of what is installed.
wanted() {
    (cd usr && find . -type f) | sed 's|^\./||' | while read -r file; do
        case "$guest,$file" in
            yes,*vhost-device-blockring* | yes,*/blockring@* | yes,*/blockring-many.service | yes,*/blockring-forward.service) ;;
            ,*/blockring-journal@* | ,*/blockring-listen@* | ,*/blockring-exec@* | ,lib/blockring/*) ;;
            *) echo "$file" ;;
        esac
    done
}

to=$destdir$prefix
if [ -n "$uninstall" ]; then
    # Both kinds of installation.
    (cd usr && find . -type f) | sed "s|^\./|$to/|" | while read -r file; do rm -f "$file"; done
    echo "kept, if they are there: $destdir/etc/blockring and $destdir/var/lib/blockring"
else
    wanted | while read -r file; do
        mkdir -p "$to/$(dirname "$file")"
        # A program that runs keeps its old file.
        rm -f "$to/$file"
        case "$file" in
            *.service | share/qemu/*) sed "s#/usr/\\(bin\\|lib/blockring\\)/#$prefix/\\1/#g" "usr/$file" >"$to/$file" ;;
            *) cp "usr/$file" "$to/$file" ;;
        esac
        case "$file" in bin/* | lib/blockring/*) chmod 755 "$to/$file" ;; *) chmod 644 "$to/$file" ;; esac
    done
    if [ -z "$guest" ]; then
        mkdir -p "$destdir/etc/blockring/rings.d" "$destdir/etc/blockring/many.d"
        [ -e "$destdir/etc/blockring/forward.toml" ] || cp etc/blockring/forward.toml "$destdir/etc/blockring/"
    fi
fi

[ -z "$destdir" ] || exit 0
if [ -z "$uninstall" ] && [ -z "$guest" ]; then
    for tool in sysusers tmpfiles; do
        if command -v "systemd-$tool" >/dev/null; then
            case $tool in sysusers) create='' ;; tmpfiles) create=--create ;; esac
            "systemd-$tool" $create "$prefix/lib/$tool.d/vhost-device-blockring.conf"
        else
            echo "no systemd-$tool here: do what $prefix/lib/$tool.d/vhost-device-blockring.conf says" >&2
        fi
    done
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
