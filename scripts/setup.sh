#!/usr/bin/env bash
# Makes this machine ready to boot guests: installs what is missing, and fetches a kernel, a busybox
# and a second QEMU for them. Does nothing (in well under a second) where everything is there already.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/setup.sh [--guests | --image-only]

  1. Installs the Debian packages that are missing (QEMU, its storage daemon, compilers of C, C++ and Go, strace, valgrind, bpftrace, tools for file systems, mounts and terminals, systemd's journal, libvirt, readers of man pages, shells, tools for packages, certificates). This part
     needs root; without it the script says which packages to install, and stops.
  2. Fetches the guest's kernel and busybox as Debian packages, and unpacks them into
     target/guest-image/debian (nothing of it is installed). This part needs no root.
  3. Fetches a newer QEMU for the tests, which run guests in both: see scripts/fetch-qemu.sh --help.
  4. Fetches NATS servers for the tests of `blockring forward` (scripts/fetch-nats.sh --help).
  5. Fetches promtool for the tests of metrics and alert rules (scripts/fetch-promtool.sh --help).
  6. Fetches the tools that build and test the package of Python (scripts/fetch-python.sh --help).
  7. Makes a bare Debian system for the tests of the packages, as root (scripts/test-packages.sh --help).

  --guests       only what boots guests: the first two parts
  --image-only   only the second part

Instead of fetching, files of your own can be named (all three, then nothing is fetched):
  BLOCKRING_KERNEL    a kernel image
  BLOCKRING_MODULES   a folder with its modules (searched by name: virtio_blk.ko)
  BLOCKRING_BUSYBOX   a static busybox
The nightly tool chain of scripts/sanitize.sh is installed by that script, where it can be had.
CARGO_TARGET_DIR moves the target folder, as it does for cargo.
TEXT
}

packages=yes others=yes
case "${1:-}" in
    "") ;;
    --guests) others=no ;;
    --image-only) packages=no others=no ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
cache=$(realpath -m "${CARGO_TARGET_DIR:-target}")/guest-image

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
# Some of these programs are where only root's PATH leads.
have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

# Where packages can be installed only after a refresh of the lists, refresh them once.
lists_refreshed=no
refresh_lists() {
    [ "$lists_refreshed" = no ] || return 0
    lists_refreshed=yes
    say "refreshing the package lists (apt-get update)"
    apt-get update -q >&2
}

missing_packages() {
    have qemu-system-x86_64 || echo qemu-system-x86
    have cc || echo gcc
    # libFuzzer is C++.
    have c++ || echo g++
    # The guest's programs are linked statically; without its recommended packages gcc brings no libc.a.
    if ! have cc || [ ! -e "$(cc -print-file-name=libc.a)" ]; then echo libc6-dev; fi
    # A test counts system calls with it.
    have strace || echo strace
    # Another counts instructions.
    have valgrind || echo valgrind
    # Another traces requests.
    have bpftrace || echo bpftrace
    # Tests make file systems, mounts, loop devices, swap, terminals and other users.
    have mke2fs || echo e2fsprogs
    have losetup && have swapon || echo mount
    have setpriv && have unshare && have prlimit || echo util-linux
    have script || echo bsdutils
    # Tests of the live view press keys in it, and read its screen.
    have tmux || echo tmux
    # Tests write journal files and show them; this brings journalctl, too.
    [ -x /usr/lib/systemd/systemd-journal-remote ] || [ -x /lib/systemd/systemd-journal-remote ] || echo systemd-journal-remote
    # Man pages and completions are checked by those who read them.
    have mandoc || echo mandoc
    have zsh || echo zsh
    have fish || echo fish
    # libvirt's driver for QEMU, and its schema and validator, for the documented domain.
    have virt-qemu-run || echo libvirt-daemon-driver-qemu
    have virt-xml-validate || echo libvirt-clients
    have xmllint || echo libxml2-utils
    # Packages are made, checked, and installed in a system of their own.
    have dh || echo debhelper
    have lintian || echo lintian
    have piuparts || echo piuparts
    have debootstrap || echo debootstrap
    # Commands of the documents use the first, and are run in a network of their own, which the other sets up.
    have socat || echo socat
    have ip || echo iproute2
    # Programs are compiled with the C library as its documentation says.
    have pkg-config || echo pkg-config
    # The module in Go is tested with it.
    have go || echo golang-go
    # Keys for tests of TLS.
    have openssl || echo openssl
    have python3 || echo python3
    # The package of Python is tested in an environment of its own.
    { have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; } || echo python3-venv
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
}

# In Debian 12 it comes with the system emulator; only where it did not is it asked for, as its package there breaks that.
missing_storage_daemon() {
    have qemu-storage-daemon || echo qemu-utils
}

# install_missing FUNCTION: what it names.
install_missing() {
    local -a packages
    mapfile -t packages < <("$1")
    [ "${#packages[@]}" -gt 0 ] || return 0
    have apt-get || fail "missing here: ${packages[*]} (Debian's names). Install them, then run this again."
    [ "$(id -u)" = 0 ] || fail "missing here: ${packages[*]}
setup: install them as root, then run this again:
setup:     apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
    refresh_lists
    say "installing ${packages[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "${packages[@]}" >&2
}

# The name of the package that holds the kernel, which the meta package depends on.
kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1
}

# Downloads into the current folder. `apt-get download` needs no root, only the package lists.
download() {
    local kernel
    kernel=$(kernel_package)
    [ -n "$kernel" ] || return 1
    say "fetching $kernel and busybox-static"
    # A folder that apt's own user cannot enter is only worth a warning: silence it.
    local -a options=(-q)
    [ "$(id -u)" != 0 ] || options+=(-o APT::Sandbox::User=root)
    apt-get "${options[@]}" download "$kernel" busybox-static >&2
}

# Unpacks into a temporary folder and renames it: whoever finds the folder finds it whole.
fetch_image() {
    local work version
    if ! have apt-get || ! have dpkg-deb; then
        fail "no apt-get here: set BLOCKRING_KERNEL, BLOCKRING_MODULES and BLOCKRING_BUSYBOX (--help)"
    fi
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    # shellcheck disable=SC2064  # the folder's name as it is now
    trap "rm -rf '$work'" EXIT
    cd "$work"
    if ! download; then
        # No lists, or lists so old that the files they name are gone.
        [ "$(id -u)" = 0 ] || fail "the packages cannot be downloaded; run apt-get update as root, then this again"
        refresh_lists
        download || fail "linux-image-cloud-amd64 and busybox-static cannot be downloaded"
    fi
    dpkg-deb -x linux-image-*.deb kernel
    dpkg-deb -x busybox-static_*.deb busybox
    version=$(ls kernel/lib/modules)
    mkdir image
    mv "kernel/boot/vmlinuz-$version" image/vmlinuz
    mv "kernel/lib/modules/$version" image/modules
    mv busybox/bin/busybox image/busybox
    echo "$version" >image/version
    rm -rf "$cache/debian"
    mv image "$cache/debian"
    cd "$root"
    say "guest kernel $version is in $cache/debian"
}

# The rings need neither; what boots guests, measures them and looks at processes does.
[ -r /proc/self/status ] || fail "/proc is not mounted here: mount -t proc proc /proc, then run this again"
[ -c /dev/null ] || fail "/dev is not mounted here: mount -t devtmpfs dev /dev (or bind the host's), then run this again"

if [ "$packages" = yes ]; then
    install_missing missing_packages
    install_missing missing_storage_daemon
    have cargo || [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ] ||
        fail "cargo is missing here: install Rust (https://rustup.rs), then run this again"
fi

if [ -z "${BLOCKRING_KERNEL:-}" ] || [ -z "${BLOCKRING_MODULES:-}" ] || [ -z "${BLOCKRING_BUSYBOX:-}" ]; then
    mkdir -p "$cache"
    # Two at once: the second waits, and then finds everything there.
    exec 9>"$cache/setup.lock"
    flock 9
    [ -e "$cache/debian/version" ] || fetch_image
    exec 9>&-
fi
if [ "$others" = yes ]; then
    scripts/fetch-qemu.sh
    scripts/fetch-nats.sh
    scripts/fetch-promtool.sh
    scripts/fetch-python.sh
    # Status 3: not root, who alone can make one; the suite is not run then.
    scripts/test-packages.sh --prepare || [ $? = 3 ]
fi
