#!/usr/bin/env bash
# What a release asks of the packages that others use. See scripts/check-packages.sh --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/check-packages.sh

Checks the packages that others use:
  documentation   rustdoc has no warnings
  Rust version    the oldest one that Cargo.toml states still builds them (installed by rustup if it is missing)
  publishing      each package builds from what would be uploaded (a dry run, in the order of their dependencies)
  compatibility   with the last release, by cargo-semver-checks, where there is a release (a tag v*)
Takes some minutes. Ends at the first check that fails, with its exit code.
TEXT
}

case "${1:-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
packages=(ring-os shared-block-ring virtio-blk-driver ring-address ring-program ring-metrics blockring vhost-device-blockring)
selected=()
for package in "${packages[@]}"; do selected+=(--package "$package"); done
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

printf '== documentation\n'
RUSTDOCFLAGS="-D warnings" cargo doc --locked --profile test --no-deps "${selected[@]}"

oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
printf '== Rust version: %s\n' "$oldest"
if ! rustup run "$oldest" rustc --version; then
    rustup toolchain install "$oldest" --profile minimal
fi
CARGO_TARGET_DIR=$target/oldest rustup run "$oldest" cargo check --locked "${selected[@]}"
rm -rf "$target/oldest"

printf '== publishing\n'
CARGO_TARGET_DIR=$target/packages cargo publish --dry-run --locked "${selected[@]}"
rm -rf "$target/packages"

printf '== compatibility\n'
if release=$(git describe --abbrev=0 --match 'v*' 2>/dev/null); then
    cargo semver-checks --version >/dev/null 2>&1 || cargo install --locked cargo-semver-checks
    cargo semver-checks --baseline-rev "$release" "${selected[@]}"
else
    echo "there is no release yet to compare with"
fi
