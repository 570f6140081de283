//! New ring files on file systems of all kinds. (As root.)
#![allow(clippy::unwrap_used)]

use crate::common::machine::succeed;

#[test]
fn file_system_without_fallocate_gets_zeros() {
    succeed(
        r#"mkdir m
        mount -t ramfs none m
        "$RING" create --size 1M m/ring
        test "$(stat -c %s m/ring)" = 1048576
        echo one | "$RING" produce m/ring
        test "$("$RING" consume m/ring)" = one
        printf 'two\n' > input
        test "$("$RING" journal --size 1M --exec cat m/journal < input)" = two"#,
    );
}

#[test]
fn file_system_without_fallocate_has_all_blocks_allocated_or_refuses() {
    succeed(
        r#"truncate -s 8M image
        mkfs.ext2 -q -F image
        mkdir m
        mount "$(loop image)" m
        "$RING" create --size 4M m/ring
        test "$(stat -c '%b * %B' m/ring | xargs expr)" -ge 4194304
        must 1 "bytes more are needed" "$RING" create --size 6M m/more
        test "$(ls m)" = "lost+found
ring"
        umount m"#,
    );
}

#[test]
fn failed_create_gives_back_its_space() {
    succeed(
        r#"mkdir m
        mount -t tmpfs -o size=2M none m
        must 1 "4194304 bytes more are needed" "$RING" create --size 4M m/ring
        test -z "$(ls -A m)"
        test "$(stat -f -c %f m)" = "$(stat -f -c %b m)"
        "$RING" create --size 1M m/ring"#,
    );
}

#[test]
fn machine_without_proc_makes_and_uses_a_ring() {
    succeed(
        r#"umount -l /proc
        "$RING" create --size 1M ring
        test "$(stat -c %a ring)" = 600
        echo one | "$RING" produce ring
        must 0 sound "$RING" check ring
        must 1 "mount -t proc" "$RING" export ring --metrics unix:m
        must 0 "producer   8 (no process)" "$RING" diagnostics ring
        test "$("$RING" consume ring)" = one
        printf 'two\n' > input
        test "$("$RING" journal --size 1M --exec cat journal < input)" = two"#,
    );
}

#[test]
fn user_without_proc_makes_a_ring() {
    succeed(
        r#"mkdir m
        mount -t tmpfs none m
        chmod 777 m
        cp "$RING" m/blockring
        umount -l /proc
        setpriv --reuid 65534 --regid 65534 --clear-groups m/blockring create --size 1M m/ring
        test "$(stat -c '%a %u %s' m/ring)" = "600 65534 1048576""#,
    );
}

#[test]
fn path_that_names_no_file_is_refused() {
    succeed(
        r#"mkdir folder
        for path in folder/ new/ folder/. folder/..; do
            must 1 "blockring: " "$RING" create --size 1M "$path"
        done
        must 2 "value is required" "$RING" create --size 1M ""
        test -z "$(ls -A folder)"
        test ! -e new
        "$RING" create --size 64K ./-ring
        echo one | "$RING" produce -- -ring
        test "$("$RING" consume ./-ring)" = one"#,
    );
}

#[test]
fn file_that_can_only_be_mapped_is_refused_by_name() {
    succeed(
        r#"mkdir m
        mount -t hugetlbfs none m
        truncate -s 2M m/ring
        must 1 "can be mapped, and not written" "$RING" create m/ring
        must 1 "can be mapped, and not written" "$RING" create --force m/ring"#,
    );
}
