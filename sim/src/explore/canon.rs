//! Canonical form of a disk: two disks with the same form behave alike.

use crate::disk::Content;
use shared_block_ring::format::{
    Geometry, PointerSector, Side, damaged_slots, decode_sector0, slots_of,
};
use std::hash::{DefaultHasher, Hash, Hasher};
use uuid::Uuid;

/// Returns the UUID of the ring on a disk whose sector 0 has these versions.
pub fn uuid_of(geometry: Geometry, versions: &[Content]) -> Option<Uuid> {
    let decoded = |content: &Content| decode_sector0(content, geometry).ok()?.uuid();
    versions.iter().rev().find_map(decoded)
}

/// Returns a form that is equal for contents of sector `index` which differ only in what no promise
/// rests on: times, texts, the UUID itself, and the one of its two places that a slot is in.
pub fn sector_key(geometry: Geometry, uuid: Option<Uuid>, index: usize, content: &Content) -> u64 {
    let mut hasher = DefaultHasher::new();
    let side = match index {
        0 => {
            decode_sector0(content, geometry).is_ok().hash(&mut hasher);
            return hasher.finish();
        }
        1 => Side::Producer,
        2 => Side::Consumer,
        _ => {
            content.hash(&mut hasher);
            return hasher.finish();
        }
    };
    match (PointerSector::decode(side, content), uuid) {
        (Ok(pointer), Some(uuid)) => {
            (pointer.position, pointer.flag).hash(&mut hasher);
            let mut slots = slots_of(uuid, content).map(|slot| slot.map(|s| (s.position, s.tally)));
            slots.sort_by_key(|slot| slot.map(|(position, _)| position));
            slots.hash(&mut hasher);
            damaged_slots(uuid, content).hash(&mut hasher);
        }
        _ => content[..128].hash(&mut hasher),
    }
    hasher.finish()
}
