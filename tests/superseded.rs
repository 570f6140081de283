//! Two lives of one process on one ring, as after the restore of an older snapshot, and nobody between who would refuse.
#![allow(clippy::unwrap_used)]

mod common;

use common::RingFile;
use common::journal::{Done, SOON, disk, entry, held, in_time, keeping, options, start, until};
use ring_simulation::{Disk, DiskDevice, Fault, Operation, Unlocked};
use shared_block_ring::{
    Consumer, Control, CreateOptions, Error, Position, Producer, SyncError, Synced, create,
};
use std::io::Write;
use std::process::{Command, Stdio};

fn ring(sectors: u64, plain: bool) -> Disk {
    let disk = disk(sectors);
    create(&DiskDevice::new(&disk), CreateOptions { plain }).unwrap();
    disk
}

fn producer(disk: &Disk) -> Producer<DiskDevice> {
    Producer::attach(DiskDevice::new(disk), "q", "producer").unwrap()
}

fn consumer(disk: &Disk) -> Consumer<DiskDevice> {
    Consumer::attach(DiskDevice::new(disk), "q", "consumer").unwrap()
}

fn publish(producer: &mut Producer<DiskDevice>, text: &str) -> Position {
    let end = producer.push(text).unwrap();
    producer.advance(end).unwrap();
    end
}

fn drain(disk: &Disk) -> Vec<String> {
    let mut consumer = consumer(disk);
    let (end, items) = consumer
        .fold(consumer.position(), Vec::new(), |mut items, item| {
            items.push(String::from_utf8(item.bytes.to_vec()).unwrap());
            items
        })
        .unwrap();
    consumer.advance(end).unwrap();
    items
}

#[test]
fn a_producer_is_told_what_it_cannot_account_for_and_goes_on() {
    for plain in [false, true] {
        let disk = ring(64, plain);
        let mut old = producer(&disk);
        let published = publish(&mut old, "first");
        let mut new = producer(&disk);
        let pushed = old.push_batch(&["lost", "too"]).unwrap();
        let ring_at = publish(&mut new, "of the other life");
        match old.advance(pushed) {
            Err(Error::Superseded { ring, from, to, items, .. }) => {
                assert_eq!((ring, from, to, items), (ring_at, published, pushed, Some(2)));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(old.position(), ring_at);
        assert!(matches!(old.advance(pushed), Err(Error::Advance { .. })));
        publish(&mut old, "goes on");
        assert_eq!(drain(&disk), ["first", "of the other life", "goes on"]);
    }
}

#[test]
fn a_producer_that_had_nothing_under_way_is_told_that_nothing_is_missing() {
    let disk = ring(64, false);
    let (mut old, mut new) = (producer(&disk), producer(&disk));
    publish(&mut new, "of the other life");
    match old.state() {
        Err(Error::Superseded { from, to, items, .. }) => {
            assert_eq!((from, to, items), (Position::ZERO, Position::ZERO, Some(0)));
        }
        other => panic!("{other:?}"),
    }
    publish(&mut old, "next");
    assert_eq!(drain(&disk), ["of the other life", "next"]);
}

#[test]
fn an_older_copy_of_the_ring_takes_back_what_a_producer_had_published() {
    let disk = ring(64, false);
    let mut producer = producer(&disk);
    let kept = publish(&mut producer, "kept");
    let old: Vec<u8> = whole(&disk);
    let gone = publish(&mut producer, "gone");
    disk.write(0, &old).unwrap();
    match producer.state() {
        Err(Error::Superseded { ring, from, to, items, .. }) => {
            assert_eq!((ring, from, to, items), (kept, kept, gone, Some(1)));
        }
        other => panic!("{other:?}"),
    }
    publish(&mut producer, "next");
    assert_eq!(drain(&disk), ["kept", "next"]);
}

fn whole(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; 64 * 512];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_write_that_fails_where_nobody_else_was_is_a_failure_of_the_device() {
    let disk = ring(64, false);
    let mut producer = producer(&disk);
    let end = producer.push("item").unwrap();
    producer.flush().unwrap();
    disk.inject(Fault { operation: Operation::Write, after: 0, errno: 5, for_ever: false });
    assert!(matches!(producer.advance(end), Err(Error::Device(_))));
    assert!(matches!(producer.advance(end), Err(Error::Failed)));
}

#[test]
fn a_consumer_is_told_what_was_freed_elsewhere_and_never_given_what_lies_there_now() {
    // More than a consumer reads at a time.
    const ITEM: usize = 1000;
    const ITEMS: usize = 600;
    let disk = ring(2000, false);
    let mut sender = producer(&disk);
    let letter = |letter: &str| vec![letter.repeat(ITEM); ITEMS];
    let end = sender.push_batch(&letter("a")).unwrap();
    sender.advance(end).unwrap();
    let mut old = consumer(&disk);
    let mut at = old.pop(old.position()).unwrap().next;
    assert_eq!(drain(&disk).len(), ITEMS);
    let end = sender.push_batch(&letter("b")).unwrap();
    sender.advance(end).unwrap();
    assert_eq!(drain(&disk).len(), ITEMS);
    let last = sender.push_batch(&letter("c")).unwrap();
    sender.advance(last).unwrap();
    let told = loop {
        match old.pop(at) {
            Ok(item) => {
                assert!(item.bytes.iter().all(|&byte| byte == b'a'));
                at = item.next;
            }
            Err(e) => break e,
        }
    };
    match told {
        Error::Superseded { ring, from, to, items, .. } => {
            assert_eq!((ring, to, items), (end, end, Some(2 * ITEMS as u64)));
            assert_eq!(from, Position::ZERO);
        }
        other => panic!("{other}"),
    }
    assert!(old.pop(old.position()).unwrap().bytes.iter().all(|&byte| byte == b'c'));
    old.advance(last).unwrap();
}

#[test]
fn a_journal_that_was_overtaken_says_so_to_those_who_wait_and_goes_on() {
    let disk = disk(64);
    let ((begun, answer), perform) = held();
    let journal = start(&disk, options(), perform);
    let ticket = journal.push(&entry(0)).unwrap();
    begun.recv_timeout(SOON).unwrap();
    // The other life performs it, and takes another entry.
    assert_eq!(drain(&disk).len(), 1);
    publish(&mut producer(&disk), &entry(1));
    answer.send(Ok(())).unwrap();
    let ticket = in_time(move || ticket.sync(Some(SOON)));
    assert!(matches!(ticket, Err(SyncError::Superseded)), "{ticket:?}");
    let next = journal.push(&entry(2)).unwrap();
    let mut performed = Vec::new();
    while performed.len() < 2 {
        performed.extend(begun.recv_timeout(SOON).unwrap());
        answer.send(Ok(())).unwrap();
    }
    assert_eq!(performed, [entry(1), entry(2)]);
    assert_eq!(in_time(move || next.sync(Some(SOON))).unwrap(), Synced::Performed);
    journal.shutdown();
    let done = Done::default();
    let journal = start(&disk, options(), keeping(&done));
    journal.push(&entry(3)).unwrap();
    until(|| *done.lock().unwrap() == [entry(3)]);
}

#[test]
fn blockring_produce_ends_with_a_code_of_its_own_and_says_which_input_is_in_doubt() {
    let ring = RingFile::new(64 * 512, 512);
    let program = env!("CARGO_BIN_EXE_blockring");
    let mut produce = Command::new(program)
        .args(["produce", ring.path.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = produce.stdin.take().unwrap();
    input.write_all(b"first\n").unwrap();
    let position = || Control::open(ring.open()).unwrap().debug_info().unwrap().producer;
    until(|| position() > Position::ZERO);
    // Past the locks, as a restored guest is.
    let mut other = Producer::attach(Unlocked(ring.open()), "q", "other").unwrap();
    let end = other.push("of the other life").unwrap();
    other.advance(end).unwrap();
    // Idle or not; the pipe may be closed by then.
    let _ = input.write_all(b"second\n");
    let output = produce.wait_with_output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6), "{words}");
    assert!(words.contains("superseded") && words.contains("item 2 of the input"), "{words}");
    let left = Command::new(program).arg("consume").arg(&ring.path).output().unwrap();
    assert_eq!(left.stdout, b"first\nof the other life\n");
}
