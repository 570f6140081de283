//! Over memory of this process: no file, no clock, no system call but those that make the memory.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::device::{MappedDevice, Mapping, Memory};
use crate::format::{SectorSize, Side, framed_len};
use std::sync::Arc;

/// Items that two threads pass to each other.
const ITEMS: u32 = if cfg!(miri) { 24 } else { 20_000 };

/// A data area of 1024 bytes.
fn geometry() -> Geometry {
    Geometry::new(SectorSize::DEFAULT, 5).unwrap()
}

/// A ring's memory, and where its producer stands.
struct Ring {
    memory: Arc<Mapping>,
    end: Position,
}

fn load(memory: &Mapping, side: Side) -> Position {
    Position::new(memory.load_u64(geometry().pointer_start(side))).unwrap()
}

fn store(memory: &Mapping, side: Side, position: Position) {
    memory.store_u64(geometry().pointer_start(side), position.get());
}

impl Ring {
    fn new() -> Self {
        let memory = Mapping::anonymous(geometry().total_bytes()).unwrap();
        Self { memory: Arc::new(memory), end: Position::ZERO }
    }

    /// Publishes an item if there is room for it.
    fn publish(&mut self, payload: &[u8]) -> bool {
        let len = framed_len(u32::try_from(payload.len()).unwrap());
        let freed = load(&self.memory, Side::Consumer);
        if self.end.get() + len > freed.get() + geometry().capacity().get() {
            return false;
        }
        let mut bytes = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend(payload);
        bytes.resize(usize::try_from(len).unwrap(), 0);
        let mut rest = &bytes[..];
        for extent in geometry().extents(self.end.get(), len) {
            let (now, later) = rest.split_at(usize::try_from(extent.len).unwrap());
            self.memory.write(extent.offset, now);
            rest = later;
        }
        self.end = self.end.checked_add(len).unwrap();
        store(&self.memory, Side::Producer, self.end);
        true
    }

    fn copying(&self) -> MappedDevice<Arc<Mapping>> {
        MappedDevice::over(Arc::clone(&self.memory), "ring", geometry())
    }

    fn lending(&self) -> MappedDevice<Arc<Mapping>> {
        // SAFETY: `publish` writes into free space only, and then the position. The test that has
        // this device frees.
        unsafe { self.copying().lend_in_place() }
    }
}

/// Items of lengths that differ, each of one byte all over.
fn payload(number: u32) -> Vec<u8> {
    vec![number.to_le_bytes()[0]; usize::try_from(number * 7 % 301).unwrap()]
}

/// All of `from..to`, popped one by one and folded, which must be the same; and where they lie.
fn seen(
    device: &mut MappedDevice<Arc<Mapping>>,
    reader: &mut Reader,
    from: Position,
    to: Position,
) -> Vec<(Vec<u8>, bool)> {
    let memory = device.memory().addresses();
    let note = |mut items: Vec<_>, item: Popped<'_>| {
        items.push((item.bytes.to_vec(), memory.contains(&item.bytes.as_ptr().addr())));
        items
    };
    let (mut at, mut popped) = (from, Vec::new());
    while at < to {
        let found = reader.find(device, at, to).unwrap();
        let item = reader.lend(device, found).unwrap();
        at = item.next;
        popped = note(popped, item);
    }
    let (mut at, mut folded) = (from, Vec::new());
    while at < to {
        let (end, so_far, damage) =
            reader.fold(device, at, to, folded, &mut |items, item| note(items, item));
        assert_eq!(damage, None);
        (at, folded) = (end, so_far);
        if at < to {
            let found = reader.find(device, at, to).unwrap();
            let item = reader.lend(device, found).unwrap();
            at = item.next;
            folded = note(folded, item);
        }
    }
    assert_eq!(popped, folded);
    popped
}

#[test]
fn reader_sees_the_same_items_lent_and_copied() {
    let mut ring = Ring::new();
    let (mut lending, mut copying) = (ring.lending(), ring.copying());
    let [mut in_place, mut by_copy] = [Reader::new(geometry()), Reader::new(geometry())];
    let (mut number, mut from, mut lent) = (0, Position::ZERO, 0);
    for _ in 0..if cfg!(miri) { 2 } else { 200 } {
        let first = number;
        while ring.publish(&payload(number)) {
            number += 1;
        }
        let to = ring.end;
        let items = seen(&mut lending, &mut in_place, from, to);
        let copies = seen(&mut copying, &mut by_copy, from, to);
        assert!(items.iter().map(|(item, _)| item).eq(copies.iter().map(|(item, _)| item)));
        assert!(items.iter().map(|(item, _)| item.clone()).eq((first..number).map(payload)));
        assert!(copies.iter().all(|(_, in_place)| !in_place));
        lent += items.iter().filter(|(_, in_place)| *in_place).count();
        let tally = Tally::from_here(from);
        let walked = in_place.walk(&mut lending, from, to, tally).unwrap();
        assert_eq!(by_copy.walk(&mut copying, from, to, tally).unwrap(), walked);
        assert_eq!(in_place.digest(&mut lending, from, to, 0).unwrap(), walked.crc);
        store(&ring.memory, Side::Consumer, to);
        assert!(lending.lend(from, to).is_none(), "it is free");
        by_copy.clear();
        from = to;
    }
    assert!(lent > 0);
}

/// Takes what another thread publishes meanwhile, by a device that lends or copies.
fn pass(device: impl FnOnce(&Ring) -> MappedDevice<Arc<Mapping>>) {
    let mut ring = Ring::new();
    let mut device = device(&ring);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..ITEMS {
                while !ring.publish(&payload(number)) {
                    std::thread::yield_now();
                }
            }
        });
        let mut reader = Reader::new(geometry());
        let (mut number, mut at) = (0, Position::ZERO);
        while number < ITEMS {
            let to = load(device.memory(), Side::Producer);
            if at == to {
                std::thread::yield_now();
                continue;
            }
            while at < to {
                let found = reader.find(&mut device, at, to).unwrap();
                let item = reader.lend(&mut device, found).unwrap();
                assert_eq!(item.bytes, payload(number), "item {number}");
                (number, at) = (number + 1, item.next);
            }
            store(device.memory(), Side::Consumer, at);
            reader.clear();
        }
    });
}

#[test]
fn items_that_are_lent_do_not_change_while_another_thread_publishes() {
    pass(Ring::lending);
}

#[test]
fn items_are_copied_whole_while_another_thread_publishes() {
    pass(Ring::copying);
}
