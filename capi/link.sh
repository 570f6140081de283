#!/usr/bin/env bash
# Makes the C libraries from what rustc has built: see --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: capi/link.sh LIBRARY FOLDER

Makes in FOLDER, from the static library that cargo builds for the package libblockring,
  libblockring.a             the same as one object that shows the functions of the header alone: none of Rust's own symbols, which
                             another static library in Rust has, too, and none of what the functions do not need
  libblockring.so.VERSION    the shared library, with a version for each symbol (capi/blockring.map), and the links by which
                             programs find it (libblockring.so.0) and are linked (libblockring.so)

rustc could link a shared library by itself, but its own list of symbols, which has no versions, cannot be combined with another.
TEXT
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
[ $# = 2 ] || { usage >&2; exit 2; }
library=$1 folder=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' "$here/../Cargo.toml")

work=$(mktemp -d "${TMPDIR:-/tmp}/blockring-link.XXXXXX")
trap 'rm -rf "$work"' EXIT
sed -n 's/^ *\(blockring_[a-z_]*\);$/\1/p' "$here/blockring.map" >"$work/functions"
mapfile -t wanted < <(sed 's/^/--undefined=/' "$work/functions")

ld -r --gc-sections "${wanted[@]}" --whole-archive "$library" -o "$work/all.o"
# Functions of the system that only the parts name which were left out: ld makes them local, and no linker would find them.
readelf -sW "$work/all.o" | awk '$5 == "LOCAL" && $7 == "UND" && $8 != "" { print $8 }' >"$work/unused"
# The standard library brings LLVM's code of itself, which other versions of LLVM stumble over.
objcopy --strip-symbols="$work/unused" --keep-global-symbols="$work/functions" --strip-debug \
    --remove-section=.llvmbc --remove-section=.llvmcmd "$work/all.o" "$work/blockring.o"
rm -f "$folder/libblockring.a"
ar rcsD "$folder/libblockring.a" "$work/blockring.o"

# Nothing is left undefined (defs). Addresses of functions are resolved at the start, when they cannot be changed any more (relro, now).
# The library stays loaded (nodelete): threads may have destructors in it.
cc -shared -o "$folder/libblockring.so.$version" \
    -Wl,-soname,libblockring.so.0 -Wl,--version-script="$here/blockring.map" \
    -Wl,--whole-archive "$folder/libblockring.a" -Wl,--no-whole-archive \
    -Wl,-z,defs -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack -Wl,-z,nodelete \
    -lgcc_s -lpthread -ldl -lm
ln -sf "libblockring.so.$version" "$folder/libblockring.so.0"
ln -sf libblockring.so.0 "$folder/libblockring.so"
