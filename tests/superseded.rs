//! Two instances of one process on one ring, as after the restore of an older snapshot, without a
//! guard that would refuse the older one.
#![allow(clippy::unwrap_used)]

use ring_simulation::{Disk, DiskDevice, Fault, Operation};
use ring_test_support::journal::{Done, disk, entry, held, in_time, keeping, options, start};
use ring_test_support::process::{PATIENCE, eventually};
use shared_block_ring::{
    Consumer, CreateOptions, Error, Position, Producer, SyncError, Synced, create,
};

fn ring(sectors: u64, plain: bool) -> Disk {
    let disk = disk(sectors);
    create(&DiskDevice::new(&disk), CreateOptions::new().plain(plain)).unwrap();
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
fn superseded_producer_names_the_items_in_doubt_and_goes_on() {
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
        assert!(matches!(old.advance(pushed), Err(Error::InvalidAdvance { .. })));
        publish(&mut old, "goes on");
        assert_eq!(drain(&disk), ["first", "of the other life", "goes on"]);
    }
}

#[test]
fn superseded_producer_with_nothing_pushed_has_no_items_in_doubt() {
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
fn older_copy_of_the_ring_takes_back_published_items() {
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
fn write_that_fails_without_another_instance_is_a_failure_of_the_device() {
    let disk = ring(64, false);
    let mut producer = producer(&disk);
    let end = producer.push("item").unwrap();
    producer.flush().unwrap();
    disk.inject(Fault { operation: Operation::Write, after: 0, errno: 5, for_ever: false });
    assert!(matches!(producer.advance(end), Err(Error::Device(_))));
    assert!(matches!(producer.advance(end), Err(Error::Failed)));
}

#[test]
fn superseded_consumer_names_the_freed_items_and_never_gets_their_successors() {
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
fn superseded_journal_ends_its_waits_and_goes_on() {
    let disk = disk(64);
    let ((begun, answer), perform) = held();
    let journal = start(&disk, options(), perform);
    let ticket = journal.push(&entry(0)).unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    // The other life performs it, and takes another entry.
    assert_eq!(drain(&disk).len(), 1);
    publish(&mut producer(&disk), &entry(1));
    answer.send(Ok(())).unwrap();
    let ticket = in_time(move || ticket.sync(Some(PATIENCE)));
    assert!(matches!(ticket, Err(SyncError::Superseded)), "{ticket:?}");
    let next = journal.push(&entry(2)).unwrap();
    let mut performed = Vec::new();
    while performed.len() < 2 {
        performed.extend(begun.recv_timeout(PATIENCE).unwrap());
        answer.send(Ok(())).unwrap();
    }
    assert_eq!(performed, [entry(1), entry(2)]);
    assert_eq!(in_time(move || next.sync(Some(PATIENCE))).unwrap(), Synced::Performed);
    journal.shutdown();
    let done = Done::default();
    let journal = start(&disk, options(), keeping(&done));
    journal.push(&entry(3)).unwrap();
    eventually("the last entry is performed", || *done.lock().unwrap() == [entry(3)]);
}
