//! Block devices in use are not written to, with or without `--force`. (As root, on loop devices.)
#![allow(clippy::unwrap_used)]

use crate::common::machine::succeed;

/// No command may write to `$L`, a loop device with a ring on it, after `before` has taken it into
/// use; the refusals contain `words`.
fn assert_refused(before: &str, words: &str, after: &str) {
    succeed(&format!(
        r#"truncate -s 16M image
        L=$(loop -P image)
        "$RING" create "$L"
        {before}
        sync image
        sum=$(cksum < image)
        {}
        "$RING" check "$L" > said || :
        test "$(cksum < image)" = "$sum"
        {after}"#,
        refusals(words)
    ));
}

/// Returns a script in which every command that writes refuses `$L` with these words.
fn refusals(words: &str) -> String {
    format!(
        r#"for refused in "create --force" create produce consume suspend "journal --exec cat" "repair --write" "bench --seconds 1"; do
            must 1 "{words}" "$RING" $refused "$L"
        done"#
    )
}

#[test]
fn mounted_device_is_refused() {
    assert_refused(
        "mkfs.ext2 -q -F $L; mkdir m; mount -o ro $L m",
        "is mounted at",
        r#"umount m; "$RING" create --force "$L""#,
    );
}

#[test]
fn mount_without_proc_is_refused() {
    assert_refused(
        "mkfs.ext2 -q -F $L; mkdir m; mount -o ro $L m; umount -l /proc",
        "in use: by something that cannot be seen from here",
        "mount -t proc proc /proc; umount m",
    );
}

#[test]
fn swap_is_refused() {
    // The kernel writes to a swap at any time: its bytes are not compared.
    succeed(&format!(
        r#"truncate -s 16M image
        L=$(losetup -f --show image)
        trap 'swapoff "$L"; losetup -d "$L"' EXIT
        mkswap -q "$L"
        swapon "$L"
        {}"#,
        refusals("is a swap")
    ));
}

#[test]
fn exclusively_opened_device_is_refused() {
    assert_refused(
        r#"mkfifo held
        "$RING" journal --exec cat "$L" > /dev/null < held & exec 3> held
        until "$RING" diagnostics --json "$L" | grep -q '"consumer":[0-9]'; do :; done"#,
        "in use",
        "exec 3>&-; wait",
    );
}

#[test]
fn disk_with_a_mounted_partition_is_refused_and_its_other_partition_is_not() {
    succeed(
        r#"truncate -s 16M image
        L=$(loop -P image)
        addpart "$L" 1 2048 8192
        addpart "$L" 2 10240 8192
        mkfs.ext2 -q -F "${L}p1"
        mkdir m
        mount "${L}p1" m
        must 1 "${L}p1 is mounted" "$RING" create --force "$L"
        must 1 "${L}p1 is mounted" "$RING" create --force "${L}p1"
        "$RING" create "${L}p2"
        umount m
        mkfs.ext2 -q -F "$L"
        mount "$L" m
        must 1 "$L is mounted" "$RING" create --force "${L}p2"
        umount m"#,
    );
}

#[test]
fn block_device_that_is_also_standard_output_or_input_is_refused() {
    succeed(
        r#"
        truncate -s 1M image
        L=$(loop image)
        "$RING" create "$L"
        echo one | "$RING" produce "$L"
        mknod node b $(stat -c '0x%t 0x%T' "$L")
        for output in "$L" "$PWD/node" image; do
            must 1 'standard output is the ring itself' sh -c "'$RING' consume '$L' 1<> '$output'"
        done
        must 1 'standard output is the ring itself' sh -c "'$RING' consume image 1<> '$L'"
        must 1 'standard input is the ring itself' sh -c "'$RING' produce '$L' < node"
        [ "$("$RING" consume "$L")" = one ]
        "#,
    );
}

#[test]
fn file_or_device_behind_a_loop_device_is_refused() {
    succeed(
        r#"truncate -s 16M image
        "$RING" create image
        L=$(loop image)
        for refused in "create --force" "journal --exec cat" "repair --write"; do
            must 1 "$L shows it as a disk" "$RING" $refused image
        done
        M=$(loop "$L")
        must 1 "$M shows" "$RING" create --force "$L"
        must 0 sound "$RING" check "$L""#,
    );
}

#[test]
fn producer_and_consumer_share_a_device() {
    succeed(
        r#"truncate -s 1M image
        L=$(loop image)
        "$RING" create "$L"
        "$RING" consume --count 200 --timeout 60 "$L" > out &
        seq 200 | "$RING" produce "$L"
        wait $!
        seq 200 | cmp - out"#,
    );
}

#[test]
fn read_only_device_file_or_file_system_is_named() {
    succeed(
        r#"truncate -s 1M image
        "$RING" create image
        L=$(loop -r image)
        for refused in "create --force" produce consume "repair --write" "journal --exec cat"; do
            must 1 "read-only" "$RING" $refused "$L"
        done
        must 0 sound "$RING" check "$L"
        must 0 capacity "$RING" diagnostics "$L"
        mkdir m
        mount -t tmpfs none m
        cp image m/ring
        mount -o remount,ro m
        must 1 "Read-only file system" "$RING" create --size 1M m/new
        must 1 "Read-only file system" "$RING" produce m/ring
        must 0 sound "$RING" check m/ring
        mkdir n
        chmod 400 image
        must 1 "Permission denied" setpriv --reuid 65534 --regid 65534 --clear-groups \
            --inh-caps -all "$RING" check "$PWD/image""#,
    );
}

#[test]
fn device_with_sectors_of_4096_bytes_carries_a_ring() {
    succeed(
        r#"truncate -s 1M image
        "$RING" create image
        L=$(loop -b 4096 image)
        must 5 "4096" "$RING" check "$L"
        must 1 "has sectors of 4096 bytes, not of 512" "$RING" create --sector-size 512 --force "$L"
        "$RING" create --force "$L"
        echo one | "$RING" produce "$L"
        must 0 "sectors of 4096 bytes" "$RING" diagnostics "$L"
        test "$("$RING" consume "$L")" = one
        must 5 "sector" "$RING" check image
        must 0 sound "$RING" check --sector-size 4096 image"#,
    );
}

#[test]
fn image_smaller_or_larger_than_its_identity_is_refused() {
    succeed(
        r#"truncate -s 1M image
        "$RING" create image
        truncate -s 512K image
        L=$(loop image)
        for refused in produce consume check diagnostics; do
            must 5 "shrunk" "$RING" $refused "$L"
        done
        truncate -s 2M image
        losetup -c "$L"
        must 5 "grown" "$RING" check "$L""#,
    );
}

#[test]
fn role_is_held_on_the_file_and_on_the_loop_device_that_shows_it() {
    succeed(
        r#"truncate -s 1M image
        "$RING" create image
        L=$(loop image)
        mkfifo lines
        for pair in "image $L" "$L image"; do
            "$RING" produce ${pair% *} < lines & holder=$!
            exec 3> lines
            echo line >&3
            # The line is there: the producer is attached.
            until "$RING" diagnostics --json image | grep -q '"used":[1-9]'; do sleep 0.1; done
            must 1 "already has a producer: process $holder" "$RING" produce ${pair#* }
            # The other end may be on the other side.
            test "$("$RING" consume ${pair#* })" = line
            exec 3>&-
            wait $holder
        done"#,
    );
}
