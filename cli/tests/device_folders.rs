//! No regular file is created in a file system of device nodes: it would be in memory, where a disk
//! was meant. (As root.)
#![allow(clippy::unwrap_used)]

use crate::common::machine::succeed;

const REFUSED: &str = "file system of device nodes";

/// No command may create a file at `path` after `before`.
fn assert_nothing_is_made(before: &str, path: &str) {
    succeed(&format!(
        r#"{before}
        must 1 "{REFUSED}" "$RING" create --size 1M {path}
        must 1 "{REFUSED}" "$RING" journal --size 1M --exec cat {path}
        "$RING" create --size 64K ring
        printf '\\377' | dd of=ring bs=1 seek=520 conv=notrunc status=none
        must 1 "{REFUSED}" "$RING" repair --write --keep {path} ring
        test ! -e {path}"#
    ));
}

#[test]
fn devtmpfs_gets_no_file() {
    assert_nothing_is_made("", "/dev/vdz1");
}

#[test]
fn devtmpfs_gets_no_file_by_a_link_a_relative_path_or_a_subfolder() {
    assert_nothing_is_made("ln -s /dev link", "link/vdz1");
    assert_nothing_is_made("cd /dev; cd \"$OLDPWD\"; ln -s / root", "root/dev/../dev/vdz1");
    assert_nothing_is_made(
        "mkdir -p /dev/blockring-test; trap 'rmdir /dev/blockring-test' EXIT",
        "/dev/blockring-test/vdz1",
    );
}

#[test]
fn bind_mounted_devtmpfs_gets_no_file() {
    assert_nothing_is_made("mkdir m; mount --bind /dev m", "m/vdz1");
    assert_nothing_is_made("mkdir m; mount -t devtmpfs none m", "m/vdz1");
    // A part of it in a container whose own /dev is a tmpfs.
    assert_nothing_is_made(
        "mkdir m; mount --bind /dev/net m; mount -t tmpfs none /dev; mknod /dev/null c 1 3",
        "m/vdz1",
    );
}

#[test]
fn tmpfs_of_a_container_gets_no_file() {
    assert_nothing_is_made("mount -t tmpfs none /dev; mknod /dev/null c 1 3", "/dev/vdz1");
    // The tmpfs of another container.
    assert_nothing_is_made("mkdir m; mount -t tmpfs none m; mknod m/null c 1 3", "m/vdz1");
    // A /dev that is a folder of the root file system.
    assert_nothing_is_made("mkdir m; mknod m/null c 1 3", "m/vdz1");
}

#[test]
fn dangling_link_is_not_followed() {
    succeed(
        r#"ln -s /dev/vdz1 link
        must 1 "symbolic link to /dev/vdz1, and no file is made through a link" "$RING" create --size 1M link
        must 1 "symbolic link to /dev/vdz1, which does not exist" "$RING" create link
        must 1 "symbolic link to /dev/vdz1, which does not exist" "$RING" produce link
        must 1 "symbolic link to /dev/vdz1" "$RING" journal --size 1M --exec false link
        "$RING" create --size 64K journal
        printf 'one\n' > input
        timeout 20 "$RING" journal --exec false --retry 0.01 --limit 1 --aside link --timeout 1 journal < input || :
        test ! -e /dev/vdz1"#,
    );
}

#[test]
fn tmpfs_of_memory_carries_a_ring() {
    succeed(
        r#"name=/dev/shm/blockring-test-$$
        trap 'rm -f "$name"' EXIT
        "$RING" create --size 1M "$name"
        mkdir m
        mount -t tmpfs none m
        "$RING" create --size 1M m/ring"#,
    );
}

#[test]
fn file_among_device_nodes_is_refused() {
    succeed(
        r#"mkdir m
        mount -t tmpfs none m
        "$RING" create --size 64K m/ring
        mknod m/null c 1 3
        must 1 "file system of device nodes" "$RING" create --force m/ring
        must 1 "file system of device nodes" "$RING" produce m/ring
        must 1 "file system of device nodes" "$RING" journal --exec cat m/ring
        must 0 "" "$RING" check m/ring"#,
    );
}

#[test]
fn missing_device_is_refused_without_advice_to_create() {
    succeed(
        r#"said=$("$RING" produce /dev/vdz1 2>&1 < /dev/null) && exit 1
        case $said in *--size*) echo "$said"; exit 1 ;; esac
        said=$("$RING" create /dev/vdz1 2>&1) && exit 1
        case $said in *--size*) echo "$said"; exit 1 ;; esac"#,
    );
}
