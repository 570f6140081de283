//! Arbitrary bytes of the identity, the pointer sectors and an item's header: decoded and encoded
//! again to the same, or a named error.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use shared_block_ring::Position;
use shared_block_ring::format::{
    EXTENSION, Geometry, Header, PointerSector, SLOT_BYTES, SLOTS_AT, SectorSize, Side, Signed,
    Slot, Tally, damaged_slots, decode_sector0, encode_sector0, find_slot, following_slot,
    framed_len, put_slot, slots_of, text_of,
};
use uuid::Uuid;

#[derive(Debug, Arbitrary)]
struct Input {
    sector: [u8; 512],
    /// UUID of the ring that the slots are made for.
    uuid: [u8; 16],
    /// Slots made as a writer makes them, over what the sector holds.
    writes: Vec<(u64, u64, u64, u32, bool)>,
    sectors: u64,
    size: u32,
    at: u64,
    producer: u64,
}

fn position(value: u64) -> Position {
    // Lossless: the two lowest bits are cleared.
    Position::new(value & !3).expect("a multiple of 4")
}

fn identity(input: &Input) {
    let Ok(size) = SectorSize::new(input.size) else { return };
    let Ok(geometry) = Geometry::new(size, input.sectors) else { return };
    assert!(geometry.total_bytes() >= 4 * u64::from(size.get()));
    let [first, second] = geometry.extents(input.at, geometry.capacity().get());
    assert!(first.len + second.len == geometry.capacity().get());
    assert!(first.offset + first.len <= geometry.total_bytes());
    let Ok(signed) = decode_sector0(&input.sector, geometry) else { return };
    if let Signed::Identified(identity) = signed {
        let mut sector = vec![0; 512];
        encode_sector0(&mut sector, Some(&identity));
        assert_eq!(decode_sector0(&sector, geometry), Ok(signed));
    }
}

fn pointers(input: &Input) {
    let uuid = Uuid::from_bytes(input.uuid);
    let _ = text_of(&input.sector);
    for side in [Side::Producer, Side::Consumer] {
        if let Ok(pointer) = PointerSector::decode(side, &input.sector) {
            let mut sector = input.sector;
            pointer.encode(side, Some(("queue", "client")), &mut sector);
            assert_eq!(PointerSector::decode(side, &sector), Ok(pointer));
            assert_eq!(sector[EXTENSION], input.sector[EXTENSION]);
        }
        let whole = slots_of(uuid, &input.sector).iter().flatten().count();
        assert!(whole + damaged_slots(uuid, &input.sector) <= SLOTS_AT.len());
        if let Ok(Some(slot)) = find_slot(uuid, side, &input.sector, position(input.at)) {
            assert_eq!(slot.position, position(input.at));
        }
    }
}

/// A writer's slot is found over any bytes, and its second slot leaves the first one whole.
fn slots(input: &Input) {
    let uuid = Uuid::from_bytes(input.uuid);
    let mut sector = input.sector;
    let mut last: Option<Slot> = None;
    if slots_of(uuid, &sector).iter().any(Option::is_some) {
        // The fuzzer does find valid checksums: such a slot may claim anything.
        return;
    }
    sector[EXTENSION.start..SLOTS_AT[0]].fill(0);
    sector[SLOTS_AT[1] + SLOT_BYTES..EXTENSION.end].fill(0);
    for &(at, items, base, crc, since_base) in &input.writes {
        let at = position(at);
        let present = last.map_or(position(input.at), |slot| slot.position);
        if at <= present {
            continue;
        }
        let tally = Tally { items, since_base, base: position(base), crc };
        let slot = Slot { position: at, tally, time_ns: items };
        let before = sector;
        put_slot(uuid, &mut sector, present, &slot);
        let (old, new) = ((&before[..], present), (&sector[..], at));
        assert_eq!(following_slot(uuid, Side::Producer, old, new), Ok(Some(slot)));
        assert_eq!(find_slot(uuid, Side::Producer, &sector, at), Ok(Some(slot)));
        if let Some(last) = last {
            assert_eq!(find_slot(uuid, Side::Producer, &sector, last.position), Ok(Some(last)));
        }
        last = Some(slot);
    }
}

fn header(input: &Input) {
    let (at, producer) = (position(input.at), position(input.producer));
    let bytes = [input.sector[0], input.sector[1], input.sector[2], input.sector[3]];
    if let Ok(header) = Header::decode(at, bytes, producer) {
        assert!(header.next <= producer && header.next > at);
        assert_eq!(header.next.since(at), Some(framed_len(header.length)));
    }
}

fuzz_target!(|input: Input| {
    identity(&input);
    pointers(&input);
    slots(&input);
    header(&input);
});
