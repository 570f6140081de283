//! Failed flushes and pointer writes: the state of the items, and the cause that is reported. (As
//! root, on loop devices.)
#![allow(clippy::unwrap_used)]

use crate::common::machine::succeed;
use crate::common::scene::Scene;
use ring_simulation::{Access, hooked};
use ring_test_support::process::finish;
use ring_test_support::{RingFile, assert_fails};
use shared_block_ring::device::{DeviceError, Operation};
use shared_block_ring::{BlockDevice, Control, FileDevice, Producer, RingDevice};
use std::cell::Cell;
use std::io;

/// A device whose writes and flushes fail, from one on, after they were carried out.
fn failing_after(device: FileDevice, succeed: u32) -> impl RingDevice {
    let left = Cell::new(succeed);
    hooked(device, move |device, access| {
        access.carry_out(device)?;
        let operation = match access {
            Access::Read { .. } => return Ok(()),
            Access::Write { .. } => Operation::Write,
            Access::Flush => Operation::Flush,
        };
        let Some(rest) = left.get().checked_sub(1) else {
            let source = io::Error::from_raw_os_error(libc::EIO);
            return Err(DeviceError::new(device.name(), operation, source));
        };
        left.set(rest);
        Ok(())
    })
}

#[test]
fn producer_knows_after_a_failure_whether_items_may_be_visible() {
    // Attaching flushes. An advance writes the items, flushes, writes the pointer, flushes.
    for (left, may_be_visible) in [(5, false), (6, false), (7, true), (8, true)] {
        let ring = RingFile::new(64 * 512, 512);
        let device = failing_after(ring.open(), left);
        let mut producer = Producer::attach(device, "queue", "producer").unwrap();
        let first = producer.push("sure").unwrap();
        producer.advance(first).unwrap();
        assert!(producer.in_doubt().is_empty());
        let second = producer.push("in doubt").unwrap();
        producer.advance(second).unwrap_err();
        producer.advance(second).unwrap_err();
        let visible = Control::open(ring.open()).unwrap().debug_info().unwrap().producer;
        if may_be_visible {
            assert_eq!(producer.in_doubt(), first..second, "{left}");
            assert_eq!(visible, second, "{left}");
        } else {
            assert!(producer.in_doubt().is_empty(), "{left}");
            assert_eq!(visible, first, "{left}");
        }
    }
}

#[test]
fn produce_names_the_items_in_doubt_where_its_pointer_cannot_be_written() {
    let scene = Scene::with_ring("64K");
    let mut command = scene.command(&["produce", "--json", "ring"]);
    let child = ring_simulation::fail_writes_at(&mut command, 512).spawn().unwrap();
    let output = finish(child, b"one\ntwo\nhal");
    let words = "accepted for sure: no whole item; in doubt, perhaps delivered: items";
    assert_fails(&output, 1, words);
    assert_fails(&output, 1, "not accepted: item ");
    assert_fails(&output, 1, "cannot write sector 1");
    let text = String::from_utf8(output.stderr).unwrap();
    let json = text.lines().find(|line| line.starts_with('{')).unwrap();
    let counts: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(counts["items"], 0);
    assert!(counts["in_doubt"].as_u64().unwrap() > 0, "{counts}");
}

/// Makes `$L`, a loop device with a ring on it over a file on a full file system; `spoil` makes
/// another program's buffered write to it that cannot be written back.
const FULL: &str = r#"mkdir t
mount -t tmpfs -o size=256k none t
head -c 64k /dev/zero > t/image
truncate -s 1M t/image
L=$(loop t/image)
"$RING" create "$L"
dd if=/dev/zero of=t/full bs=4k status=none 2> /dev/null || :
spoil() { printf x | dd of="$L" bs=1 seek=512k conv=notrunc status=none; }
"#;

#[test]
fn lost_write_of_an_earlier_program_does_not_fail_the_next() {
    succeed(&format!(
        r#"{FULL}
        spoil
        echo one | "$RING" produce "$L"
        spoil
        test "$("$RING" consume "$L")" = one
        spoil
        "$RING" suspend "$L"
        spoil
        "$RING" create --force "$L"
        # The same where the write is still to come when the disk is opened, behind one that has failed.
        exec 3< "$L"
        spoil
        blockdev --flushbufs "$L" || :
        spoil
        echo two | "$RING" produce "$L"
        spoil
        test "$("$RING" consume "$L")" = two"#
    ));
}

#[test]
fn lost_write_of_another_program_meanwhile_ends_produce_and_is_named() {
    succeed(&format!(
        r#"{FULL}
        mkfifo input
        "$RING" produce "$L" < input 2> said & produce=$!
        exec 3> input
        echo one >&3
        until "$RING" diagnostics --json "$L" | grep -q '"producer":[1-9]'; do :; done
        spoil
        echo two >&3
        exec 3>&-
        code=0
        wait "$produce" || code=$?
        cat said
        test "$code" = 1
        grep -q 'cannot flush: .*another program wrote' said
        grep -q 'not accepted: item 2 of the input (from byte 4)' said
        test "$("$RING" consume "$L")" = one"#
    ));
}
