//! Wrong use, and use at the limits, is refused with a reason and does no harm.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use shared_block_ring::format::SectorSize;
use shared_block_ring::{
    Consumer, Control, CreateOptions, Created, Durability, Error, OpenOptions, Position, Producer,
    RingDevice, State, create,
};

fn words<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn attach_refuses_a_device_without_a_ring() {
    let blank = RingFile::blank(16384, 512);
    assert!(words(blank.consumer()).contains("not a ring"));
    let small = RingFile::blank(3 * 512, 512);
    assert!(words(small.options().open(&small.path)).contains("too small"));
    assert!(words(OpenOptions::default().open("/nonexistent/ring")).contains("No such file"));
    assert!(words(OpenOptions::default().open("/dev/null")).contains("neither a file"));
}

#[test]
fn attach_refuses_a_device_of_another_shape() {
    let ring = RingFile::new(65536, 4096);
    let other = OpenOptions::default().sector_size(SectorSize::DEFAULT).open(&ring.path).unwrap();
    let text = words(Producer::attach(other, "q", "c"));
    assert!(text.contains("--sector-size 4096"), "{text}");
    let file = std::fs::OpenOptions::new().write(true).open(&ring.path).unwrap();
    file.set_len(131_072).unwrap();
    assert!(words(ring.consumer()).contains("grown"));
    file.set_len(32768).unwrap();
    assert!(words(ring.consumer()).contains("shrunk"));
}

#[test]
fn attach_refuses_a_second_producer_or_consumer_and_names_the_process() {
    let ring = RingFile::new(16384, 512);
    let mut producer = ring.producer().unwrap();
    let consumer = ring.consumer().unwrap();
    let pid = std::process::id().to_string();
    let text = words(ring.producer());
    assert!(text.contains("already has a producer") && text.contains(&pid), "{text}");
    assert!(words(ring.consumer()).contains("already has a consumer"));
    producer.detach();
    drop(consumer);
    ring.producer().unwrap();
    ring.consumer().unwrap();
}

#[test]
fn detached_handle_answers_detached() {
    let ring = RingFile::new(16384, 512);
    let mut producer = ring.producer().unwrap();
    let position = producer.push("item").unwrap();
    producer.detach();
    assert!(matches!(producer.push("more"), Err(Error::Detached)));
    assert!(matches!(producer.advance(position), Err(Error::Detached)));
    assert!(matches!(producer.state(), Err(Error::Detached)));
    assert!(matches!(producer.debug_info(), Err(Error::Detached)));
    let mut consumer = ring.consumer().unwrap();
    consumer.detach();
    assert!(matches!(consumer.pop(Position::ZERO), Err(Error::Detached)));
    assert!(matches!(consumer.advance(Position::ZERO), Err(Error::Detached)));
    assert!(matches!(consumer.suspend(), Err(Error::Detached)));
    assert!(matches!(consumer.resume(), Err(Error::Detached)));
    assert!(matches!(consumer.state(), Err(Error::Detached)));
}

#[test]
fn batch_is_published_as_a_whole_or_not_at_all() {
    let ring = RingFile::new(16384, 512);
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    producer.push("one").unwrap();
    producer.push("two").unwrap();
    let end = producer.push_batch(&["three", "four"]).unwrap();
    assert!(matches!(consumer.pop(Position::ZERO), Err(Error::Retry)));
    producer.advance(end).unwrap();
    let (_, all) = consumer
        .fold(Position::ZERO, Vec::new(), |mut all, item| {
            all.push(item.bytes.to_vec());
            all
        })
        .unwrap();
    assert_eq!(all, [&b"one"[..], b"two", b"three", b"four"]);
}

#[test]
fn advance_refuses_positions_that_are_no_end_of_an_item() {
    let ring = RingFile::new(16384, 512);
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let at = |bytes| Position::new(bytes).unwrap();
    let first = producer.push("a longer item").unwrap();
    let second = producer.push("another").unwrap();
    assert!(matches!(producer.advance(at(second.get() + 4)), Err(Error::InvalidAdvance { .. })));
    assert!(matches!(producer.advance(at(8)), Err(Error::InvalidAdvance { .. })));
    producer.advance(second).unwrap();
    assert!(matches!(producer.advance(first), Err(Error::InvalidAdvance { .. })));
    assert!(
        matches!(consumer.advance(at(second.get() + 4)), Err(Error::InvalidAdvance { .. })),
        "not published"
    );
    consumer.pop(Position::ZERO).unwrap();
    consumer.advance(first).unwrap();
    assert!(matches!(consumer.advance(Position::ZERO), Err(Error::InvalidAdvance { .. })));
    assert!(matches!(consumer.pop(Position::ZERO), Err(Error::InvalidStart { .. })));
}

#[test]
fn items_pushed_before_a_suspend_can_be_published_after_the_resume() {
    let ring = RingFile::new(16384, 512);
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let position = producer.push("item").unwrap();
    consumer.suspend().unwrap();
    assert!(matches!(producer.advance(position), Err(Error::Suspended)));
    assert_eq!(consumer.state().unwrap(), State::Suspended);
    assert!(matches!(consumer.pop(Position::ZERO), Err(Error::Retry)));
    drop(producer);
    let mut producer = ring.producer().unwrap();
    assert_eq!(producer.state().unwrap(), State::Suspended);
    assert!(matches!(producer.push("item"), Err(Error::Suspended)));
    consumer.resume().unwrap();
    let position = producer.push("item").unwrap();
    producer.advance(position).unwrap();
    assert_eq!(consumer.pop(Position::ZERO).unwrap().bytes, b"item");
}

#[test]
fn nearly_full_ring_keeps_the_oldest_bytes_in_its_last_sector() {
    let ring = RingFile::new(3 * 512 + 1024, 512);
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let first = producer.push(&[1u8; 96]).unwrap();
    let second = producer.push(&[2u8; 896]).unwrap();
    producer.advance(second).unwrap();
    consumer.pop(Position::ZERO).unwrap();
    consumer.advance(first).unwrap();
    // Ends at byte 24 of the second lap; the oldest item starts at byte 100 of the same sector.
    let third = producer.push(&[3u8; 44]).unwrap();
    producer.advance(third).unwrap();
    let item = consumer.pop(first).unwrap();
    assert_eq!((item.bytes, item.next), (&[2u8; 896][..], second));
    assert_eq!(consumer.pop(second).unwrap().bytes, [3u8; 44]);
}

#[test]
fn item_that_does_not_decode_can_be_skipped() {
    let ring = RingFile::new(16384, 512);
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    producer.push(&[0xff, 0xfe]).unwrap();
    let end = producer.push("text").unwrap();
    producer.advance(end).unwrap();
    let Err(Error::Undecodable { at, next, .. }) = consumer.pop_as::<&str>(Position::ZERO) else {
        panic!("two bytes that are not UTF-8 became a text");
    };
    assert_eq!(at, Position::ZERO);
    consumer.advance(next).unwrap();
    assert_eq!(consumer.pop_as::<&str>(next).unwrap().1, "text");
}

#[test]
fn create_leaves_a_ring_alone() {
    let ring = RingFile::new(16384, 512);
    let mut producer = ring.producer().unwrap();
    let position = producer.push("item").unwrap();
    producer.advance(position).unwrap();
    let before = ring.bytes();
    assert_eq!(create(&ring.open(), CreateOptions::default()).unwrap(), Created::Existed);
    assert_eq!(ring.bytes(), before);
}

#[test]
fn suspend_by_another_handle_survives_advances_on_a_file() {
    suspend_beside_advances(|ring| Box::new(ring.open()));
}

#[test]
fn suspend_by_another_handle_survives_advances_in_a_mapping() {
    suspend_beside_advances(|ring| Box::new(ring.open_mapped()));
}

fn suspend_beside_advances(open: impl Fn(&RingFile) -> Box<dyn RingDevice>) {
    let ring = RingFile::new(1 << 20, 512);
    let mut producer = Producer::attach(open(&ring), "queue", "producer").unwrap();
    let mut consumer = Consumer::attach(open(&ring), "queue", "consumer").unwrap();
    let mut control = Control::open(open(&ring)).unwrap();
    let end = producer.push_batch(&vec!["item"; 2000]).unwrap();
    producer.advance(end).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = consumer.position();
            while at < end {
                at = consumer.pop(at).unwrap().next;
                consumer.advance(at).unwrap();
            }
        });
        for _ in 0..200 {
            control.suspend().unwrap();
            assert_eq!(producer.state().unwrap(), State::Suspended);
            control.resume().unwrap();
            assert_eq!(producer.state().unwrap(), State::Running);
        }
    });
    assert_eq!(control.debug_info().unwrap().consumer, end);
}

#[test]
fn mapping_carries_a_stream_between_threads() {
    let ring = RingFile::new(8 * 512, 512);
    let mut producer = Producer::attach(ring.open_mapped(), "queue", "producer").unwrap();
    let mut consumer = Consumer::attach(ring.open_mapped(), "queue", "consumer").unwrap();
    producer.set_durability(Durability::PageCache);
    consumer.set_durability(Durability::PageCache);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..20_000u32 {
                let item = number.to_le_bytes().repeat(number as usize % 40);
                let position = loop {
                    match producer.push(&item) {
                        Ok(position) => break position,
                        Err(Error::Retry) => std::thread::yield_now(),
                        Err(e) => panic!("{e}"),
                    }
                };
                producer.advance(position).unwrap();
            }
        });
        for number in 0..20_000u32 {
            let next = loop {
                match consumer.pop(consumer.position()) {
                    Ok(item) => {
                        assert_eq!(item.bytes, number.to_le_bytes().repeat(number as usize % 40));
                        break item.next;
                    }
                    Err(Error::Retry) => std::thread::yield_now(),
                    Err(e) => panic!("{e}"),
                }
            };
            consumer.advance(next).unwrap();
        }
    });
}

/// A receiver notes how far it has come, and is killed before it frees what it has noted.
#[test]
fn consumer_frees_to_a_position_that_was_noted_before_it_attached() {
    let ring = RingFile::new(64 * 512, 512);
    let mut producer = ring.producer().unwrap();
    let noted = producer.push("one").unwrap();
    let end = producer.push("two").unwrap();
    producer.advance(end).unwrap();
    let mut consumer = ring.consumer().unwrap();
    consumer.advance(noted).unwrap();
    assert_eq!(consumer.pop(noted).unwrap().bytes, b"two");
    let beyond = Position::new(end.get() + 512).unwrap();
    let error = consumer.advance(beyond).unwrap_err();
    assert!(matches!(error, Error::InvalidAdvance { limit, .. } if limit == end), "{error}");
}
