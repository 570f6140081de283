//! Requests that go straight to the executor, without queue and front end: what a guest may change.
#![allow(clippy::unwrap_used)]

use ring_test_support::beside::beside;
use ring_test_support::executor_disk::{DATA_AT, Disk, Driver, HOLD, IDLE, answer, is_ok};
use ring_test_support::process::PATIENCE;
use shared_block_ring::format::{FLAG_AT, PointerSector, SLOT_BYTES, SLOTS_AT, Side, TEXT_AT};
use shared_block_ring::wait::wait_readable;
use shared_block_ring::{Consumer, OpenOptions, Position, Producer, RingDevice};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vhost_device_blockring::data_path::guard::Reason;
use vhost_device_blockring::data_path::request_state::{Answer, RequestState};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{Bytes, GuestAddress};

fn at(bytes: u64) -> Position {
    Position::new(bytes).unwrap()
}

fn pointer(side: Side, position: u64) -> Vec<u8> {
    let mut sector = vec![0; 512];
    PointerSector { position: at(position), flag: false }.encode(
        side,
        Some(("q", "guest")),
        &mut sector,
    );
    sector
}

/// Returns a sector that starts with an item of `len` bytes of `byte`.
fn item(len: u32, byte: u8) -> Vec<u8> {
    let mut sector = len.to_le_bytes().to_vec();
    sector.extend(std::iter::repeat_n(byte, len as usize));
    sector.resize(512, 0xff);
    sector
}

#[test]
fn producer_is_served_by_the_executor() {
    let mut disk = Disk::new(Side::Producer);
    disk.accepted(3, &item(8, 7));
    let mut consumer = disk.consumer();
    assert!(consumer.pop(Position::ZERO).is_err(), "visible before its advance");
    disk.accepted(1, &pointer(Side::Producer, 12));
    assert_eq!(consumer.pop(Position::ZERO).unwrap().bytes, [7; 8]);
    consumer.advance(at(12)).unwrap();
    assert_eq!(disk.read(2, 512), disk.bytes()[1024..1536]);
    assert_eq!(disk.counters.published.get(), 1);
}

#[test]
fn host_is_woken_only_after_the_answer() {
    let mut disk = Disk::new(Side::Producer);
    let is_rung = |disk: &Disk| wait_readable(&[disk.host.fd()], Some(Duration::ZERO)).unwrap();
    disk.accepted(3, &item(8, 7));
    disk.host.announce();
    disk.executor.wake_host();
    assert_eq!(is_rung(&disk), None, "for data that are not visible");
    disk.accepted(1, &pointer(Side::Producer, 12));
    assert_eq!(is_rung(&disk), None, "before the answer");
    disk.executor.wake_host();
    assert_eq!(is_rung(&disk), Some(0));
    disk.host.awake();
    disk.host.announce();
    disk.executor.wake_host();
    assert_eq!((is_rung(&disk), disk.counters.wakeups.get()), (None, 1), "a second time");
}

/// Pushes items of growing length in batches, attaching anew after every three; pops them and
/// advances every `stride` items.
fn laps<P: RingDevice, C: RingDevice>(
    producer: impl Fn() -> P,
    consumer: impl Fn() -> C,
    stride: u32,
) {
    let mut next = 0u32;
    for lap in 0..40u8 {
        let mut pushing = Producer::attach(producer(), "q", "sender").unwrap();
        for batch in 0..3 {
            let items: Vec<_> = (0..10).map(|n| vec![lap; usize::from(lap + n + batch)]).collect();
            let end = pushing.push_batch(&items).unwrap();
            pushing.advance(end).unwrap();
        }
        drop(pushing);
        let mut popping = Consumer::attach(consumer(), "q", "receiver").unwrap();
        let mut at = popping.position();
        for number in 0..30u8 {
            let item = popping.pop(at).unwrap();
            assert_eq!(item.bytes.len(), usize::from(lap + number % 10 + number / 10));
            at = item.next;
            next += 1;
            if next.is_multiple_of(stride) {
                popping.advance(at).unwrap();
            }
        }
        popping.advance(at).unwrap();
        let facts = popping.debug_info().unwrap();
        assert_eq!(
            (facts.producer_items, facts.consumer_items),
            (Some(next.into()), Some(next.into()))
        );
        assert_eq!(popping.unchecked_bytes(), 0);
    }
}

#[test]
fn writes_of_the_library_are_never_refused() {
    for (guest, stride) in
        [(Side::Producer, 1), (Side::Producer, 7), (Side::Consumer, 1), (Side::Consumer, 7)]
    {
        let mut disk = Disk::new(guest);
        let host = disk.outside();
        let shared = Driver::new(&mut disk, || ());
        match guest {
            Side::Producer => laps(|| &shared, host, stride),
            Side::Consumer => laps(host, || &shared, stride),
        }
    }
}

/// Returns every state of a pointer sector that a backend can leave which is killed while it stores
/// `new` over `old`, store by store.
fn halfway(old: &[u8], new: &[u8]) -> Vec<Vec<u8>> {
    let mut sector = old.to_vec();
    let mut states = vec![sector.clone()];
    let mut store = |range: std::ops::Range<usize>, bytes: &[u8]| {
        sector[range].copy_from_slice(bytes);
        states.push(sector.clone());
    };
    store(TEXT_AT..512, &new[TEXT_AT..]);
    for at in
        SLOTS_AT.into_iter().filter(|&at| old[at..at + SLOT_BYTES] != new[at..at + SLOT_BYTES])
    {
        store(at..at + 8, &[0; 8]);
        store(at + 8..at + SLOT_BYTES, &new[at + 8..at + SLOT_BYTES]);
        store(at..at + 8, &new[at..at + 8]);
    }
    store(FLAG_AT..FLAG_AT + 1, &new[FLAG_AT..=FLAG_AT]);
    store(0..8, &new[..8]);
    states
}

#[test]
fn pointer_stored_halfway_by_a_killed_backend_is_stored_by_the_next() {
    for guest in [Side::Producer, Side::Consumer] {
        let start = usize::try_from(guest.sector() * 512).unwrap();
        let disk = Disk::new(guest);
        let mut producer = Producer::attach(disk.outside()(), "queue", "p").unwrap();
        let mut consumer = disk.consumer();
        for number in 0..4 {
            let end = producer.push(&[number; 20]).unwrap();
            if guest == Side::Consumer {
                producer.advance(end).unwrap();
                consumer.pop(consumer.position()).unwrap();
            } else {
                producer.flush().unwrap();
            }
            let before = disk.bytes();
            match guest {
                Side::Producer => producer.advance(end).unwrap(),
                Side::Consumer => consumer.advance(end).unwrap(),
            }
            let new = disk.bytes()[start..start + 512].to_vec();
            for (store, sector) in halfway(&before[start..start + 512], &new).iter().enumerate() {
                let prepare = |path: &PathBuf| {
                    let file = std::fs::File::options().write(true).open(path).unwrap();
                    file.write_all_at(&before, 0).unwrap();
                    file.write_all_at(sector, start as u64).unwrap();
                };
                println!("{guest}, item {number}, {store} stores");
                Disk::with(guest, false, 13, prepare).accepted(guest.sector(), &new);
            }
        }
    }
}

#[test]
fn sectors_that_are_not_the_guests_cannot_change() {
    let mut disk = Disk::new(Side::Producer);
    let image = disk.bytes();
    disk.accepted(0, &image[..512]);
    disk.accepted(2, &image[1024..1536]);
    let mut signature = image[..512].to_vec();
    signature[40] ^= 1;
    disk.refused(0, &signature, Reason::Signature);
    disk.refused(2, &pointer(Side::Consumer, 4), Reason::HostPointer);
    disk.refused(0, &vec![0; 512], Reason::Signature);
}

#[test]
fn published_items_are_frozen() {
    let mut disk = Disk::new(Side::Producer);
    disk.accepted(3, &item(8, 7));
    disk.accepted(1, &pointer(Side::Producer, 12));
    disk.refused(3, &item(8, 8), Reason::PublishedData);
    // The rest of the sector is free, and the published part is unchanged.
    let mut sector = item(8, 7);
    sector[12..16].copy_from_slice(&4u32.to_le_bytes());
    disk.accepted(3, &sector);
}

#[test]
fn pointer_that_contradicts_the_items_is_refused() {
    let mut disk = Disk::new(Side::Producer);
    disk.accepted(3, &item(8, 7));
    disk.refused(1, &pointer(Side::Producer, 16), Reason::ItemFraming);
    disk.refused(1, &pointer(Side::Producer, 8), Reason::ItemFraming);
    disk.refused(1, &pointer(Side::Producer, 5124), Reason::PointerBeyond);
    let mut bytes = pointer(Side::Producer, 12);
    bytes[8] = 0;
    disk.refused(1, &bytes, Reason::PointerFlag);
    bytes[8] = 2;
    bytes[0] = 13;
    disk.refused(1, &bytes, Reason::PointerMisaligned);
    bytes[0] = 12;
    bytes[100] = 1;
    disk.refused(1, &bytes, Reason::PointerExtension);
    disk.accepted(1, &pointer(Side::Producer, 12));
    disk.refused(1, &pointer(Side::Producer, 0), Reason::PointerBackwards);
    disk.accepted(1, &pointer(Side::Producer, 12));
}

#[test]
fn write_across_pointer_and_data_is_judged_as_the_sequence_of_its_sectors() {
    let mut disk = Disk::new(Side::Producer);
    disk.accepted(3, &item(8, 7));
    let image = disk.bytes();
    // Sector 1 publishes the item, which sector 3 of the same write may not change any more.
    let write = |data: &[u8]| [&pointer(Side::Producer, 12)[..], &image[1024..1536], data].concat();
    disk.refused(1, &write(&item(8, 8)), Reason::PublishedData);
    disk.accepted(1, &write(&item(8, 7)));
}

#[test]
fn stale_page_is_refused_with_its_own_reason() {
    let mut disk = Disk::new(Side::Producer);
    disk.accepted(3, &item(8, 7));
    disk.accepted(1, &pointer(Side::Producer, 12));
    let cached = disk.bytes()[..4096].to_vec();
    let mut consumer = disk.consumer();
    consumer.pop(Position::ZERO).unwrap();
    consumer.advance(at(12)).unwrap();
    disk.refused(0, &cached, Reason::BufferedPage);
    let fresh = disk.bytes()[..4096].to_vec();
    disk.accepted(0, &fresh);
}

#[test]
fn guest_consumer_changes_its_pointer_alone() {
    let publish = |path: &PathBuf| {
        let mut producer =
            Producer::attach(OpenOptions::default().open(path).unwrap(), "q", "host").unwrap();
        let end = producer.push_batch(&["first", "second"]).unwrap();
        producer.advance(end).unwrap();
    };
    let mut disk = Disk::with(Side::Consumer, false, 13, publish);
    disk.refused(1, &pointer(Side::Producer, 0), Reason::HostPointer);
    disk.refused(3, &item(5, 0), Reason::ForeignData);
    disk.refused(2, &pointer(Side::Consumer, 8), Reason::ItemFraming);
    disk.refused(2, &pointer(Side::Consumer, 28), Reason::PointerBeyond);
    disk.accepted(2, &pointer(Side::Consumer, 12));
    disk.accepted(2, &pointer(Side::Consumer, 24));
    disk.refused(2, &pointer(Side::Consumer, 12), Reason::PointerBackwards);
}

#[test]
fn read_only_disk_refuses_every_write() {
    let mut disk = Disk::with(Side::Producer, true, 13, |_| ());
    disk.refused(3, &item(8, 7), Reason::ReadOnly);
    let same = disk.bytes()[..512].to_vec();
    disk.refused(0, &same, Reason::ReadOnly);
}

#[test]
fn requests_beyond_the_device_are_refused() {
    let mut disk = Disk::new(Side::Producer);
    disk.refused(13, &[0; 512], Reason::OutOfRange);
    disk.refused(12, &[0; 1024], Reason::OutOfRange);
    disk.refused(u64::MAX / 512, &[0; 512], Reason::OutOfRange);
    disk.refused(3, &[0; 100], Reason::OutOfRange);
    let behind = disk.run(VIRTIO_BLK_T_IN, 0, 13, 512, Some(HOLD));
    assert_eq!(answer(&behind), Some(Answer::FAILED));
}

#[test]
fn executor_answers_get_id_flush_and_unknown_types() {
    let mut disk = Disk::new(Side::Producer);
    let mut run = |kind, len| answer(&disk.run(kind, 0, 0, len, Some(HOLD)));
    assert_eq!(run(VIRTIO_BLK_T_GET_ID, 20), Some(Answer::ok(20)));
    let id = disk.mem.read_obj::<[u8; 4]>(GuestAddress(DATA_AT)).unwrap();
    assert_eq!(id, *b"ring");
    let mut run = |kind, len| answer(&disk.run(kind, 0, 0, len, Some(HOLD)));
    assert_eq!(run(VIRTIO_BLK_T_FLUSH, 0), Some(Answer::ok(0)), "nothing but the flush is left");
    assert_eq!(run(11, 16), Some(Answer::UNSUPPORTED));
}

#[test]
fn idle_read_is_answered_with_news_and_held_without() {
    let mut disk = Disk::new(Side::Producer);
    let whole = Some(Answer::ok(512));
    let idle = |disk: &mut Disk, hold| disk.run(VIRTIO_BLK_T_IN, IDLE, 2, 512, hold);
    let is_held = |disk: &mut Disk| matches!(idle(disk, Some(HOLD)), RequestState::Held { until } if until > Instant::now());
    assert_eq!(answer(&idle(&mut disk, Some(HOLD))), whole, "nothing was read before");
    assert!(is_held(&mut disk));
    // Ordinary reads, and reads of other sectors, are answered at once and count for nothing here.
    disk.read(2, 512);
    let other = disk.run(VIRTIO_BLK_T_IN, IDLE, 1, 512, Some(HOLD));
    assert_eq!(answer(&other), whole);
    assert!(is_held(&mut disk));
    assert_eq!(answer(&idle(&mut disk, None)), whole, "its time is up");
    disk.accepted(3, &item(8, 7));
    disk.accepted(1, &pointer(Side::Producer, 12));
    let mut consumer = disk.consumer();
    consumer.pop(Position::ZERO).unwrap();
    consumer.advance(at(12)).unwrap();
    assert_eq!(answer(&idle(&mut disk, Some(HOLD))), whole);
    disk.executor.forget();
    assert_eq!(answer(&idle(&mut disk, Some(HOLD))), whole, "a new front end has read nothing");
}

#[test]
fn long_batch_is_walked_over_several_turns() {
    // 65,536 items are the budget of a turn: 300,000 empty ones need five.
    let sectors = 3 + 300_000 * 4 / 512 + 1;
    let mut disk = Disk::with(Side::Producer, false, sectors, |_| ());
    let mut state = disk.write(1, &pointer(Side::Producer, 1_200_000));
    let mut turns = 0;
    while let RequestState::Walking(write) = state {
        turns += 1;
        state = disk.resume(write);
    }
    assert!(is_ok(&state), "{state:?}");
    assert_eq!(turns, 4);
}

/// Runs `test` while another processor of the guest writes both of `bytes` alternately to byte
/// `place` of the data.
fn racing<T>(
    disk: &mut Disk,
    place: u64,
    bytes: [[u8; 4]; 2],
    test: impl FnOnce(&mut Disk) -> T,
) -> T {
    let mem = disk.mem.clone();
    let work = || {
        for bytes in bytes {
            mem.write_slice(&bytes, GuestAddress(DATA_AT + place)).unwrap();
        }
    };
    beside(work, || test(disk))
}

/// Repeats `attempt` many times, and until one was refused for `refused`: the other processor may
/// have to wait for its turn.
fn raced(disk: &mut Disk, refused: Reason, mut attempt: impl FnMut(&mut Disk)) {
    let start = Instant::now();
    let mut attempts = 0;
    while attempts < 20_000 || disk.counters.refused(refused) == 0 {
        attempt(disk);
        attempts += 1;
        assert!(start.elapsed() < PATIENCE, "the race was no race");
    }
}

#[test]
fn write_that_changes_while_it_is_judged_is_stored_as_it_was_judged() {
    let mut disk = Disk::new(Side::Producer);
    let items = [&item(8, 7)[..12], &item(200, 9)[..500]].concat();
    disk.accepted(3, &items);
    // Position 12 ends an item, 16 does not.
    let sector = pointer(Side::Producer, 12);
    disk.mem.write_slice(&sector, GuestAddress(DATA_AT)).unwrap();
    let published = racing(&mut disk, 0, [[12, 0, 0, 0], [16, 0, 0, 0]], |disk| {
        raced(disk, Reason::ItemFraming, |disk| {
            disk.run(VIRTIO_BLK_T_OUT, 0, 1, 512, Some(HOLD));
            let position = disk.bytes()[512];
            assert!(position == 0 || position == 12, "{position}");
        });
        disk.counters.published.get()
    });
    assert_eq!(published, 1);
    // Bytes 4 to 7 are published.
    disk.mem.write_slice(&items, GuestAddress(DATA_AT)).unwrap();
    racing(&mut disk, 4, [[7; 4], [8; 4]], |disk| {
        raced(disk, Reason::PublishedData, |disk| {
            disk.run(VIRTIO_BLK_T_OUT, 0, 3, 512, Some(HOLD));
            assert_eq!(disk.bytes()[1536 + 4..1536 + 8], [7; 4]);
        });
    });
}

#[test]
fn executor_without_a_guard_is_a_plain_disk() {
    let mut disk = Disk::plain(Side::Producer);
    let sectors = disk.bytes().len() / 512;
    for sector in 0..sectors as u64 {
        let bytes: Vec<u8> =
            (0..=255).cycle().skip(usize::try_from(sector).unwrap()).take(512).collect();
        assert_eq!(answer(&disk.write(sector, &bytes)), Some(Answer::ok(0)), "sector {sector}");
        assert_eq!(disk.read(sector, 512), bytes);
    }
    let whole: Vec<u8> = (0..251).cycle().take(sectors * 512).collect();
    assert_eq!(answer(&disk.write(0, &whole)), Some(Answer::ok(0)));
    assert!(disk.bytes() == whole && disk.read(0, whole.len()) == whole);
    let behind = disk.write(sectors as u64, &[0; 512]);
    assert_eq!(answer(&behind), Some(Answer::FAILED), "behind the end");
}
