//! Items that are lent to a consumer in place, and items that are copied first.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use ring_simulation::model::{case, follow};
use ring_test_support::RingFile;
use ring_test_support::backend::{Backend, Word};
use shared_block_ring::device::{DeviceError, Forbidden};
use shared_block_ring::format::{FormatError, Side};
use shared_block_ring::handover::Role;
use shared_block_ring::{
    BlockDevice, Consumer, Error, MappedDevice, Position, RingDevice, UnixDevice,
};
use std::io::IoSlice;
use std::os::unix::fs::FileExt;

/// A ring of 1024 bytes of data.
fn ring() -> RingFile {
    RingFile::new(5 * 512, 512)
}

fn publish(file: &RingFile, items: &[&[u8]]) {
    let mut producer = file.producer().unwrap();
    let position = producer.push_batch(items).unwrap();
    producer.advance(position).unwrap();
}

fn consumer(backend: &Backend) -> Consumer<UnixDevice> {
    Consumer::attach(backend.connect_in_place(Role::Consumer), "queue", "consumer").unwrap()
}

/// Whether these bytes lie in a mapping of a file of this process.
fn lie_in(bytes: &[u8], file: &RingFile) -> bool {
    let at = bytes.as_ptr().addr();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.ends_with(file.path.to_str().unwrap())).any(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let (end, _) = rest.split_once(' ').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        (number(start)..number(end)).contains(&at)
    })
}

/// Returns the bytes of each item from `at` on, and whether it was lent where it lies.
fn seen(
    consumer: &mut Consumer<UnixDevice>,
    at: Position,
    file: &RingFile,
) -> Vec<(Vec<u8>, bool)> {
    let note = |mut seen: Vec<_>, bytes: &[u8]| {
        seen.push((bytes.to_vec(), lie_in(bytes, file)));
        seen
    };
    let (end, folded) = consumer.fold(at, Vec::new(), |seen, item| note(seen, item.bytes)).unwrap();
    let (mut popped, mut at) = (Vec::new(), at);
    while at < end {
        let item = consumer.pop(at).unwrap();
        (popped, at) = (note(popped, item.bytes), item.next);
    }
    assert_eq!(popped, folded);
    folded
}

#[test]
fn item_is_lent_in_place_unless_it_straddles_the_wrap_point() {
    let file = ring();
    let backend = Backend::new(&file, Word::Guarded);
    let mut consumer = consumer(&backend);
    publish(&file, &[&[1; 300], &[2; 600]]);
    let start = consumer.position();
    assert_eq!(seen(&mut consumer, start, &file), [(vec![1; 300], true), (vec![2; 600], true)]);
    let (end, ()) = consumer.fold(start, (), |(), _| ()).unwrap();
    consumer.advance(end).unwrap();
    publish(&file, &[b"before", &[3; 400], b"", b"behind"]);
    let expected = [
        (b"before".to_vec(), true),
        (vec![3; 400], false),
        (vec![], true),
        (b"behind".into(), true),
    ];
    assert_eq!(seen(&mut consumer, end, &file), expected);
    // One that ends with the data area straddles nothing, nor does its successor.
    let (end, ()) = consumer.fold(end, (), |(), _| ()).unwrap();
    consumer.advance(end).unwrap();
    let to_the_end = vec![4; usize::try_from(2048 - end.get() - 4).unwrap()];
    publish(&file, &[&to_the_end, b"first"]);
    assert_eq!(seen(&mut consumer, end, &file), [(to_the_end, true), (b"first".into(), true)]);
}

#[test]
fn items_are_copied_before_they_are_looked_at_unless_backend_and_caller_vouch_for_them() {
    let cases = [(Word::Guarded, false), (Word::NotGuarded, true), (Word::Nothing, true)];
    for (word, vouched) in cases {
        let file = ring();
        let backend = Backend::new(&file, word);
        let connect = if vouched { Backend::connect_in_place } else { Backend::connect };
        let device = connect(&backend, Role::Consumer);
        let mut consumer = Consumer::attach(device, "queue", "consumer").unwrap();
        let guest = std::fs::File::options().write(true).open(&file.path).unwrap();
        publish(&file, &[b"honest", b"second"]);
        // The guest changes what it has published, length included, while the consumer is at it.
        let forge = || guest.write_all_at(&[0xff; 24], 3 * 512).unwrap();
        let item = consumer.pop(Position::ZERO).unwrap();
        assert!(!lie_in(item.bytes, &file));
        forge();
        assert_eq!(item.bytes, b"honest");
        let next = item.next;
        assert_eq!(consumer.pop(next).unwrap().bytes, b"second");
        let (end, items) = consumer
            .fold(Position::ZERO, Vec::new(), |mut items, item| {
                forge();
                items.push(item.bytes.to_vec());
                items
            })
            .unwrap();
        assert_eq!(items, [b"honest", b"second"]);
        consumer.advance(end).unwrap();
    }
}

#[test]
fn device_lends_only_published_bytes_that_are_not_freed_and_only_to_its_consumer() {
    let file = ring();
    let backend = Backend::new(&file, Word::Guarded);
    publish(&file, &[&[1; 100], &[2; 100]]);
    let at = |bytes| Position::new(bytes).unwrap();
    for role in [Role::Control, Role::Producer] {
        assert_eq!(backend.connect_in_place(role).lend(at(0), at(104)), None);
    }
    let mut device = backend.connect_in_place(Role::Consumer);
    let lent = |device: &mut UnixDevice, from, to| device.lend(at(from), at(to)).map(<[u8]>::len);
    assert_eq!(lent(&mut device, 0, 208), Some(208));
    assert_eq!(lent(&mut device, 0, 212), None, "not published");
    publish(&file, &[&[3; 700]]);
    assert_eq!(lent(&mut device, 208, 912), Some(704));
    device.edit_pointer(Side::Consumer, &mut |sector| sector[0] = 104).unwrap();
    assert_eq!(lent(&mut device, 100, 208), None, "free");
    publish(&file, &[&[4; 150]]);
    assert_eq!(lent(&mut device, 912, 1024), Some(112));
    assert_eq!(lent(&mut device, 912, 1028), None, "beyond the wrap point");
    assert_eq!(lent(&mut device, 1024, 1028), Some(4));
    assert_eq!(lent(&mut device, 208, 104), None);
    device.release_role();
    assert_eq!(lent(&mut device, 104, 208), None, "others may free it now");
}

#[test]
fn mapped_file_is_lent_only_if_its_user_vouches_for_it() {
    let file = ring();
    publish(&file, &[&[1; 100]]);
    let at = |bytes| Position::new(bytes).unwrap();
    let mut device = file.open_mapped();
    assert_eq!(device.lend(at(0), at(104)), None);
    // SAFETY: nothing else writes the file from here on.
    let mut device = unsafe { device.lend_in_place() };
    assert_eq!(device.lend(at(0), at(104)).map(<[u8]>::len), Some(104));
}

#[test]
fn device_writes_what_its_role_writes_and_nothing_else() {
    let file = ring();
    let backend = Backend::new(&file, Word::Guarded);
    let own: [(Role, &[u64]); 3] =
        [(Role::Producer, &[1, 3, 4]), (Role::Consumer, &[2]), (Role::Control, &[])];
    for (role, allowed) in own {
        let device = backend.connect(role);
        for sector in 0..5 {
            let before = file.bytes();
            let mut bytes = before[usize::try_from(sector).unwrap() * 512..][..512].to_vec();
            bytes[500] ^= 1;
            let written = device.write(sector, &[IoSlice::new(&bytes)]);
            if allowed.contains(&sector) {
                written.unwrap();
                assert!(file.bytes() != before, "{role:?}, sector {sector}");
            } else {
                let error = written.unwrap_err();
                assert_eq!(Forbidden::of(&error), Some(&Forbidden::Role(role)), "{error}");
                assert!(file.bytes() == before, "{role:?}, sector {sector}");
            }
        }
        // Not beyond its own sectors either.
        assert!(device.write(1, &[IoSlice::new(&[0; 1024])]).is_err());
        let other = if role == Role::Producer { Side::Consumer } else { Side::Producer };
        let before = file.bytes();
        let edited = device.edit_pointer(other, &mut |sector| sector[0] ^= 4);
        assert_eq!(Forbidden::of(&edited.unwrap_err()), Some(&Forbidden::Role(role)));
        assert!(file.bytes() == before);
    }
}

#[test]
fn region_of_a_client_is_mapped_for_what_its_role_writes() {
    let file = RingFile::new(64 * 512, 512);
    let backend = Backend::new(&file, Word::Guarded);
    for (role, expected) in [
        (Role::Control, &["r--s"][..]),
        (Role::Consumer, &["rw-s", "r--s"]),
        (Role::Producer, &["rw-s"]),
    ] {
        let _device = backend.connect(role);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mapped = maps.lines().filter(|line| line.ends_with(file.path.to_str().unwrap()));
        let access: Vec<_> = mapped.map(|line| line.split(' ').nth(1).unwrap()).collect();
        assert_eq!(access, expected, "{role:?}");
    }
}

#[test]
fn ring_that_is_mapped_for_reading_refuses_every_write() {
    let file = ring();
    let geometry = file.open().geometry();
    let ring = std::fs::File::open(&file.path).unwrap();
    let device = MappedDevice::read_only(ring, "ring", geometry).unwrap();
    let forbidden = |result: Result<(), DeviceError>| {
        assert_eq!(Forbidden::of(&result.unwrap_err()), Some(&Forbidden::ReadOnly));
    };
    for sector in 0..5 {
        forbidden(device.write(sector, &[IoSlice::new(&[0; 512])]));
    }
    forbidden(device.edit_pointer(Side::Consumer, &mut |sector| sector[8] = 1));
    shared_block_ring::check(device).unwrap();
}

#[test]
fn damage_is_found_in_place() {
    let file = ring();
    let backend = Backend::new(&file, Word::Guarded);
    let mut consumer = consumer(&backend);
    publish(&file, &[&[1; 600]]);
    let next = consumer.pop(Position::ZERO).unwrap().next;
    consumer.advance(next).unwrap();
    // It straddles the wrap point, and is damaged behind it.
    publish(&file, &[&[2; 300], &[3; 300]]);
    let guest = std::fs::File::options().write(true).open(&file.path).unwrap();
    guest.write_all_at(&[9], 3 * 512).unwrap();
    let start = consumer.position();
    let Err(Error::Format(FormatError::Span { to, .. })) = consumer.pop(start) else {
        panic!("the damage was not seen");
    };
    consumer.advance(to).unwrap();
    publish(&file, &[b"sound"]);
    assert_eq!(consumer.pop(to).unwrap().bytes, b"sound");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// The same life, lent in place and copied.
    #[test]
    fn handed_over_ring_behaves_as_a_queue(case in case()) {
        for word in [Word::Guarded, Word::NotGuarded] {
            let bytes = usize::try_from(case.sectors).unwrap() * case.sector_size.bytes();
            let file = RingFile::new(bytes, case.sector_size.get());
            let backend = Backend::new(&file, word);
            let open = |side| -> Box<dyn RingDevice> {
                match side {
                    Side::Producer => Box::new(file.open()),
                    Side::Consumer => Box::new(backend.connect_in_place(Role::Consumer)),
                }
            };
            follow(open, case.operations.clone());
            // What the consumer has said of the stream is true.
            shared_block_ring::check(file.open()).unwrap();
        }
    }

    /// Both ends go on from any place of a lap, with items of any length: each consumer sees the
    /// same.
    #[test]
    fn consumer_in_place_sees_the_items_that_a_copying_one_sees(
        laps in prop::collection::vec(prop::collection::vec(0usize..400, 1..8), 1..20),
        frees in any::<u64>(),
    ) {
        let file = ring();
        let lending = Backend::new(&file, Word::Guarded);
        for (lap, lengths) in laps.iter().enumerate() {
            let mut producer = file.producer().unwrap();
            let items: Vec<_> = lengths.iter().map(|&length| vec![u8::try_from(lap).unwrap(); length]).collect();
            if let Ok((_, position)) = producer.push_some(&items) {
                producer.advance(position).unwrap();
            }
            let copied = all_of(&mut file.consumer().unwrap());
            let mut consumer = consumer(&lending);
            prop_assert_eq!(&all_of(&mut consumer), &copied);
            // Some of it, or all.
            let keep = if frees >> (lap % 64) & 1 == 0 { 0 } else { copied.len() / 2 };
            if let Some((next, _)) = copied.get(copied.len().wrapping_sub(keep + 1)) {
                consumer.advance(*next).unwrap();
            }
        }
    }
}

fn all_of<D: RingDevice>(consumer: &mut Consumer<D>) -> Vec<(Position, Vec<u8>)> {
    let note = |mut items: Vec<_>, next, bytes: &[u8]| {
        items.push((next, bytes.to_vec()));
        items
    };
    let start = consumer.position();
    consumer.fold(start, Vec::new(), |items, item| note(items, item.next, item.bytes)).unwrap().1
}
