#![allow(clippy::unwrap_used)]

use super::*;
use crate::device::FileDevice;
use crate::{Consumer, CreateOptions, OpenOptions, Producer, create, make_file};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

struct Ring {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Ring {
    fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring");
        make_file(&path, bytes).unwrap();
        let ring = Self { _dir: dir, path };
        create(&ring.open(), CreateOptions::new()).unwrap();
        ring
    }

    fn open(&self) -> FileDevice {
        OpenOptions::default().open(&self.path).unwrap()
    }

    fn survey(&self) -> Survey<FileDevice> {
        Survey::open(OpenOptions::default().read_only(true).open(&self.path).unwrap()).unwrap()
    }

    fn publish(&self, items: &[Vec<u8>]) {
        let mut producer = Producer::attach(self.open(), "q", "p").unwrap();
        for item in items {
            producer.push(&item[..]).unwrap();
        }
        producer.advance(producer.position()).unwrap();
    }

    fn consume(&self, items: usize) -> Position {
        let mut consumer = Consumer::attach(self.open(), "q", "c").unwrap();
        let mut at = consumer.position();
        for _ in 0..items {
            at = consumer.pop(at).unwrap().next;
        }
        consumer.advance(at).unwrap();
        at
    }

    fn damage(&self, offset: u64) {
        let file = std::fs::File::options().read(true).write(true).open(&self.path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0xff], offset).unwrap();
    }
}

fn items(count: usize, bytes: usize) -> Vec<Vec<u8>> {
    (0..count).map(|index| vec![u8::try_from(index % 251).unwrap(); bytes]).collect()
}

/// Lengths and previews of all items; asserts that nothing else is found.
fn all(survey: &mut Survey<FileDevice>) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    loop {
        match survey.step().unwrap() {
            Step::Item(header, preview) => found.push((header.length, preview.to_vec())),
            Step::End => return found,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn survey_finds_every_item_across_the_wrap_point() {
    let ring = Ring::new(512 * 1024);
    let written = items(300, 1000);
    ring.publish(&written);
    ring.consume(300);
    ring.publish(&written);
    let mut survey = ring.survey();
    let found = all(&mut survey);
    assert_eq!(found.len(), 300);
    for ((length, preview), item) in found.iter().zip(&written) {
        assert_eq!(*length, 1000);
        assert_eq!(preview[..], item[..PREVIEW_BYTES]);
    }
    assert_eq!(survey.checksum(), Checksum::Good(300 * 1004));
    assert!(matches!(survey.step(), Ok(Step::End)), "it stays at the end");
}

#[test]
fn survey_previews_an_item_longer_than_one_read() {
    let ring = Ring::new(2 << 20);
    ring.publish(&items(2, 700_001));
    let found = all(&mut ring.survey());
    assert_eq!(found[1], (700_001, vec![1; PREVIEW_BYTES]));
}

#[test]
fn survey_reports_what_is_freed_during_it_and_goes_on_behind() {
    let ring = Ring::new(1 << 20);
    ring.publish(&items(900, 1000));
    let mut survey = ring.survey();
    assert!(matches!(survey.step(), Ok(Step::Item(..))));
    // Behind the first read, so that the survey has to look at the ring again.
    let freed = ring.consume(400);
    // What was freed is written over.
    ring.publish(&[vec![0xee; 350_000]]);
    let mut count = 1;
    let reached = loop {
        match survey.step().unwrap() {
            Step::Item(..) => count += 1,
            Step::Freed(reached) => break reached,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((reached, survey.from()), (freed, freed));
    assert!(count < 400);
    assert_eq!(all(&mut survey).len(), 500);
    assert!(matches!(survey.checksum(), Checksum::Good(_)));
}

#[test]
fn survey_ends_if_everything_is_freed_during_it() {
    let ring = Ring::new(1 << 20);
    ring.publish(&items(900, 1000));
    let mut survey = ring.survey();
    assert!(matches!(survey.step(), Ok(Step::Item(..))));
    ring.consume(900);
    ring.publish(&items(100, 1000));
    ring.consume(50);
    let freed = loop {
        match survey.step().unwrap() {
            Step::Item(..) => {}
            Step::Freed(reached) => break reached,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(freed, survey.to());
    assert!(matches!(survey.step(), Ok(Step::End)));
}

#[test]
fn survey_tells_damaged_payload_from_damaged_framing() {
    let ring = Ring::new(64 * 1024);
    ring.publish(&items(10, 100));
    ring.damage(1536 + 50);
    let mut survey = ring.survey();
    assert_eq!(all(&mut survey).len(), 10);
    assert!(matches!(survey.checksum(), Checksum::Bad(FormatError::Span { .. })));
    // The highest byte of the length of the third item.
    ring.damage(1536 + 2 * 104 + 3);
    let mut survey = ring.survey();
    for _ in 0..2 {
        assert!(matches!(survey.step(), Ok(Step::Item(..))));
    }
    let Ok(Step::Damaged(at, FormatError::ItemLength { .. })) = survey.step() else { panic!() };
    assert_eq!(at.get(), 208);
    assert!(matches!(survey.step(), Ok(Step::End)));
    assert_eq!(survey.checksum(), Checksum::None);
}

#[test]
fn survey_of_damaged_pointers_finds_no_items() {
    let ring = Ring::new(64 * 1024);
    ring.publish(&items(10, 100));
    ring.damage(512 + 8);
    let mut survey = ring.survey();
    assert!(matches!(survey.pointer(Side::Producer), Err(FormatError::Flag { .. })));
    assert!(survey.pointer(Side::Consumer).is_ok());
    assert!(matches!(survey.step(), Ok(Step::End)));
    ring.damage(512 + 8);
    ring.damage(1024 + 3);
    let survey = ring.survey();
    assert!(survey.pointer(Side::Consumer).is_err() || survey.contradiction().is_some());
}

#[test]
fn survey_sees_a_slot_ahead_of_its_pointer() {
    let ring = Ring::new(64 * 1024);
    ring.publish(&items(3, 100));
    // A writer of a mapped ring that dies before it stores the position leaves the slot alone.
    let file = std::fs::File::options().read(true).write(true).open(&ring.path).unwrap();
    let mut before = [0; 8];
    file.read_exact_at(&mut before, 512).unwrap();
    ring.publish(&items(2, 100));
    file.write_all_at(&before, 512).unwrap();
    let producer = ring.survey().pointer(Side::Producer).unwrap();
    assert_eq!(producer.sector.position.get(), 3 * 104);
    assert_eq!(producer.ahead.map(Position::get), Some(5 * 104));
    assert!(producer.slot.is_some());
}
