#!/usr/bin/env bash
# Builds and installs the C library. See scripts/install-c.sh --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/install-c.sh [--prefix DIR] [--libdir DIR] [--destdir DIR] [--library FILE]

Builds the C library and installs
  PREFIX/include/blockring.h          the header, which is the documentation
  LIBDIR/libblockring.so.VERSION      the shared library, and its links libblockring.so.0 and libblockring.so
  LIBDIR/libblockring.a               the static one
  LIBDIR/pkgconfig/blockring.pc       what pkg-config tells compilers
Needs Rust, a C compiler and its linker (Debian: apt-get install gcc libc6-dev).

  --prefix DIR     where it will be used (/usr/local)
  --libdir DIR     folder of the libraries (PREFIX/lib)
  --destdir DIR    a folder that stands for the root folder, for packages: everything is installed below it
  --library FILE   what cargo has built already for the package libblockring: nothing is built

Examples:
  sudo scripts/install-c.sh && sudo ldconfig
  scripts/install-c.sh --prefix "$HOME/.local"
  scripts/install-c.sh --prefix /usr --libdir /usr/lib/x86_64-linux-gnu --destdir debian/tmp
TEXT
}

prefix=/usr/local libdir= destdir= library=
while [ $# -gt 0 ]; do
    case "$1" in
        --prefix) prefix=${2:?--prefix takes a folder} && shift ;;
        --libdir) libdir=${2:?--libdir takes a folder} && shift ;;
        --destdir) destdir=$(realpath -m "${2:?--destdir takes a folder}") && shift ;;
        --library) library=$(realpath "${2:?--library takes a file}") && shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
prefix=$(realpath -ms "$prefix")
libdir=$(realpath -ms "${libdir:-$prefix/lib}")

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
if [ -z "$library" ]; then
    # Linked dynamically to the system's C library, unlike the programs: the shared library needs that, and the static one fits both.
    cargo build --locked --release -p libblockring
    library=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release/libblockring.a
fi

install -d "$destdir$prefix/include" "$destdir$libdir/pkgconfig"
install -m 644 capi/include/blockring.h "$destdir$prefix/include"
capi/link.sh "$library" "$destdir$libdir"
chmod 644 "$destdir$libdir/libblockring.a"
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
sed "s|@PREFIX@|$prefix|; s|@LIBDIR@|$libdir|; s|@VERSION@|$version|" capi/blockring.pc.in >"$destdir$libdir/pkgconfig/blockring.pc"
chmod 644 "$destdir$libdir/pkgconfig/blockring.pc"
printf '%s\n' "$destdir$libdir/libblockring.so.$version"
