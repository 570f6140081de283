//! Verdicts of `check` on rings that are damaged, near the end of their stream, or merely unusual.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use shared_block_ring::format::{FormatError, Side, decode_sector0, put_slot, slots_of};
use shared_block_ring::{
    BlockDevice, Control, CreateOptions, Error, Notice, Position, Repair, check, create,
};
use uuid::Uuid;

const SECTOR: usize = 512;

/// Bytes of the data area.
const CAPACITY: u64 = 5 * 512;

fn ring() -> RingFile {
    RingFile::new(8 * SECTOR, 512)
}

fn plain() -> RingFile {
    let ring = RingFile::blank(8 * SECTOR, 512);
    create(&ring.open(), CreateOptions::new().plain(true)).unwrap();
    ring
}

fn changed(ring: &RingFile, change: impl FnOnce(&mut [u8])) {
    let mut bytes = ring.bytes();
    change(&mut bytes);
    std::fs::write(&ring.path, bytes).unwrap();
}

fn at(ring: &RingFile, consumer: u64, producer: u64) {
    changed(ring, |bytes| {
        for (side, position) in [(Side::Producer, producer), (Side::Consumer, consumer)] {
            let start = usize::try_from(side.sector()).unwrap() * SECTOR;
            bytes[start..start + 8].copy_from_slice(&position.to_le_bytes());
            bytes[start + 9..start + 128].fill(0);
        }
    });
}

fn refusal(ring: &RingFile) -> FormatError {
    match check(ring.open()) {
        Err(Error::Format(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn notices(ring: &RingFile) -> Vec<Notice> {
    check(ring.open()).unwrap();
    Control::open(ring.open()).unwrap().debug_info().unwrap().notices()
}

/// Repairs the ring, and returns whether it can be used then.
fn is_mended(ring: &RingFile) -> bool {
    let plan = Repair::plan(&ring.open()).unwrap();
    assert!(!plan.fixes.is_empty());
    plan.write(&ring.open()).unwrap();
    check(ring.open()).unwrap();
    let mut producer = ring.producer().unwrap();
    let end = producer.push("item").unwrap();
    producer.advance(end).unwrap();
    let mut consumer = ring.consumer().unwrap();
    consumer.pop(consumer.position()).unwrap().bytes == b"item"
}

#[test]
fn check_finds_a_position_beyond_the_end_of_the_stream_and_repair_mends_it() {
    for ring in [ring(), plain()] {
        for position in [(1 << 63) + 4, u64::MAX - 511, u64::MAX - 3] {
            at(&ring, position, position);
            let error = refusal(&ring);
            assert!(matches!(error, FormatError::BeyondEnd { .. }), "{error}");
            assert!(error.to_string().contains("blockring repair"), "{error}");
            let attached =
                [ring.producer().map(|_| ()), ring.consumer().map(|_| ())].map(Result::unwrap_err);
            for error in attached {
                assert!(matches!(error, Error::Format(FormatError::BeyondEnd { .. })), "{error}");
            }
            assert!(is_mended(&ring));
        }
    }
}

#[test]
fn producer_and_consumer_use_the_stream_to_its_end() {
    for ring in [ring(), plain()] {
        let start = (1 << 63) - 600;
        at(&ring, start, start);
        assert_eq!(notices(&ring), [Notice::NearEnd(600)]);
        let mut producer = ring.producer().unwrap();
        let mut consumer = ring.consumer().unwrap();
        let refused = producer.push(&[7; 600]).unwrap_err();
        assert!(
            matches!(refused, Error::Format(FormatError::Exhausted { needed: 604, .. })),
            "{refused}"
        );
        let first = producer.push(&[7; 500]).unwrap();
        let last = producer.push(&[8; 92]).unwrap();
        assert_eq!(last, Position::END);
        assert!(matches!(
            producer.push(""),
            Err(Error::Format(FormatError::Exhausted { needed: 4, .. }))
        ));
        producer.advance(last).unwrap();
        assert_eq!(consumer.pop(consumer.position()).unwrap().bytes, [7; 500]);
        assert_eq!(consumer.pop(first).unwrap().bytes, [8; 92]);
        consumer.advance(last).unwrap();
        drop((producer, consumer));
        let error = refusal(&ring);
        assert!(matches!(error, FormatError::Exhausted { .. }), "{error}");
        assert!(error.to_string().contains("create a new ring"), "{error}");
        let mut producer = ring.producer().unwrap();
        assert!(matches!(producer.push(""), Err(Error::Format(FormatError::Exhausted { .. }))));
    }
}

#[test]
fn check_reports_a_consumer_ahead_of_the_producer() {
    let ring = ring();
    at(&ring, 1000, 400);
    assert_eq!(notices(&ring), [Notice::ConsumerAhead(600)]);
    at(&ring, 400 + CAPACITY + 4, 400);
    assert!(matches!(refusal(&ring), FormatError::Pointers { .. }));
}

#[test]
fn check_reports_a_suspend_and_whether_it_is_acknowledged() {
    let ring = ring();
    assert_eq!(notices(&ring), []);
    let mut control = Control::open(ring.open()).unwrap();
    control.suspend().unwrap();
    assert_eq!(notices(&ring), [Notice::SuspendPending]);
    drop(ring.producer().unwrap());
    assert_eq!(notices(&ring), [Notice::Suspended]);
    control.resume().unwrap();
    assert_eq!(notices(&ring), [Notice::ResumePending]);
    for notice in [Notice::ConsumerAhead(4), Notice::Suspended, Notice::NearEnd(8)] {
        assert!(notice.to_string().contains('('), "{notice} says nothing to do");
    }
}

#[test]
fn check_finds_reserved_bytes_that_are_not_zero_and_repair_mends_them() {
    for side in [Side::Producer, Side::Consumer] {
        let start = usize::try_from(side.sector()).unwrap() * SECTOR;
        for byte in [9, 15, 112, 127] {
            let ring = ring();
            changed(&ring, |bytes| bytes[start + byte] = 1);
            assert_eq!(refusal(&ring), FormatError::Reserved { side });
            assert!(is_mended(&ring));
        }
        let ring = plain();
        changed(&ring, |bytes| bytes[start + 40] = 1);
        assert_eq!(refusal(&ring), FormatError::Reserved { side });
        assert!(is_mended(&ring));
    }
}

fn uuid_of(ring: &RingFile) -> Uuid {
    decode_sector0(&ring.bytes()[..SECTOR], ring.open().geometry()).unwrap().uuid().unwrap()
}

#[test]
fn check_finds_slots_of_two_streams_and_repair_mends_them() {
    let ring = ring();
    let mut producer = ring.producer().unwrap();
    let end = producer.push("item one").unwrap();
    producer.advance(end).unwrap();
    let mut consumer = ring.consumer().unwrap();
    consumer.pop(Position::ZERO).unwrap();
    consumer.advance(end).unwrap();
    drop((producer, consumer));
    let uuid = uuid_of(&ring);
    changed(&ring, |bytes| {
        let sector = &mut bytes[2 * SECTOR..3 * SECTOR];
        let [slot, _] = slots_of(uuid, sector);
        let mut lie = slot.unwrap();
        lie.tally.crc ^= 1;
        sector[9..128].fill(0);
        put_slot(uuid, sector, Position::ZERO, &lie);
    });
    assert!(matches!(refusal(&ring), FormatError::Streams { .. }));
    assert!(is_mended(&ring));
}
