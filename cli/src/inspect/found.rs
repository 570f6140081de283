//! The findings of an inspection: what the table, JSON and the picture show.

use super::groups::Items;
use super::map::{Extent, Marks, State, extents};
use indicatif::HumanCount;
use ring_program::text::items;
use serde::Serialize;
use shared_block_ring::format::{FormatError, Geometry, Side};
use shared_block_ring::survey::{Checksum, Pointer, Survey};
use shared_block_ring::{DebugInfo, RingDevice};

/// A sector in front of the data area.
#[derive(Debug, Serialize)]
pub struct Sector {
    pub number: u64,
    /// First byte on the device.
    pub offset: u64,
    pub bytes: u64,
    /// Contents of the sector, in words.
    pub holds: String,
    /// Damage of the sector, in words.
    pub damage: Option<String>,
}

/// The findings: sectors, positions, extents and items of a ring, and their damage.
pub struct Found {
    pub name: String,
    pub geometry: Geometry,
    pub uuid: Option<String>,
    pub sectors: Vec<Sector>,
    /// The positions, if they are known.
    pub marks: Option<Marks>,
    pub extents: Vec<Extent>,
    pub items: Items,
    pub payload_bytes: u64,
    pub checksum: Checksum,
    /// All damage, in words.
    pub damage: Vec<String>,
    /// Unusual states that are not damage.
    pub notices: Vec<String>,
    /// Where the published bytes began when the ring was opened.
    start: u64,
}

impl Found {
    /// Makes the findings of a survey before its first step. `info` is the ring's state, if its
    /// pointers are sound.
    pub fn new<D: RingDevice>(name: String, survey: &Survey<D>, info: Option<&DebugInfo>) -> Self {
        let geometry = survey.geometry();
        let pointers = [Side::Producer, Side::Consumer].map(|side| (side, survey.pointer(side)));
        let mut damage: Vec<_> = pointers
            .iter()
            .filter_map(|(_, found)| found.as_ref().err())
            .map(ToString::to_string)
            .collect();
        damage.extend(survey.contradiction().map(|damage| damage.to_string()));
        let size = u64::from(geometry.sector_size().get());
        let uuid = survey.uuid();
        let identity = uuid.as_ref().map_or("signature of a plain ring".to_owned(), |uuid| {
            format!("signature and identity {uuid}")
        });
        let mut sectors =
            vec![Sector { number: 0, offset: 0, bytes: size, holds: identity, damage: None }];
        for (side, found) in &pointers {
            let number = side.sector();
            let (holds, damage) = match found {
                Ok(pointer) => (words_of(*side, pointer), unclean(*side, found)),
                Err(damage) => (format!("{side} pointer"), Some(damage.to_string())),
            };
            sectors.push(Sector { number, offset: number * size, bytes: size, holds, damage });
        }
        let start = survey.from().get();
        let marks = damage.is_empty().then(|| {
            // A consumer ahead of the producer, after a power loss, has consumed everything.
            let producer = survey.to().get().max(start);
            let ahead = pointers[0].1.as_ref().ok().and_then(|pointer| pointer.ahead);
            let pending = ahead.map_or(producer, |ahead| ahead.get().max(producer));
            Marks { consumer: start, producer, pending, damaged_from: producer }
        });
        // The items lie where they do all the same.
        damage.extend(pointers.iter().filter_map(|(side, found)| unclean(*side, found)));
        let end = marks.map_or(start, |marks| marks.producer);
        let notices = info.map(DebugInfo::notices).unwrap_or_default();
        Self {
            name,
            geometry,
            uuid,
            sectors,
            marks,
            extents: Vec::new(),
            items: Items::new(start, end),
            payload_bytes: 0,
            checksum: Checksum::None,
            damage,
            notices: notices.iter().map(ToString::to_string).collect(),
            start,
        }
    }

    /// Ends the findings: `consumer` is where the survey began in the end, behind what was freed
    /// during it.
    pub fn finish(&mut self, consumer: u64, checksum: Checksum) {
        if let Checksum::Bad(damage) = &checksum {
            self.damage.push(damage.to_string());
        }
        if let Some(marks) = &mut self.marks {
            marks.consumer = consumer.min(marks.producer);
            if let Checksum::Bad(_) = &checksum {
                marks.damaged_from = marks.consumer;
            } else {
                marks.damaged_from = marks.producer - self.items.broken();
            }
        }
        self.checksum = checksum;
        self.extents = extents(self.geometry, self.marks);
    }

    /// Returns where the published bytes began when the ring was opened.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Returns the bytes that were published when the ring was opened.
    pub fn published(&self) -> u64 {
        self.marks.map_or(0, |marks| marks.producer - self.start)
    }

    /// Returns the bytes of the data area in one state.
    pub fn bytes_of(&self, state: State) -> u64 {
        let of_state = self.extents.iter().filter(|extent| extent.state == state);
        of_state.map(|extent| extent.bytes).sum()
    }

    /// Returns the state of a sound ring in one line.
    pub fn summary(&self) -> String {
        let mut text = format!("{} {}", HumanCount(self.items.count()), items(self.items.count()));
        text += match &self.checksum {
            Checksum::Good(_) => ", which are what the producer wrote (by their checksum)",
            Checksum::None if self.items.count() > 0 => ", which no checksum covers",
            _ => "",
        };
        if self.items.freed() > 0 {
            text += "; some were consumed while the ring was read";
        }
        for notice in &self.notices {
            text += "; ";
            // The first words name the state, the rest explains it.
            text += notice.split([':', '(']).next().unwrap_or_default().trim();
        }
        text
    }
}

/// Returns what is wrong with the reserved bytes of a sound pointer's sector.
fn unclean(side: Side, found: &Result<Pointer, FormatError>) -> Option<String> {
    let pointer = found.as_ref().ok()?;
    (!pointer.reserved_is_zero).then(|| FormatError::Reserved { side }.to_string())
}

fn words_of(side: Side, pointer: &Pointer) -> String {
    let flag = match (side, pointer.sector.flag) {
        (Side::Producer, true) => ", suspended",
        (Side::Consumer, true) => ", asks to suspend",
        (_, false) => "",
    };
    let count = pointer.slot.filter(|slot| !slot.tally.since_base).map_or(String::new(), |slot| {
        let verb = if side == Side::Producer { "published" } else { "consumed" };
        format!(", {} {} {verb}", slot.tally.items, items(slot.tally.items))
    });
    let ahead =
        pointer.ahead.map_or(String::new(), |ahead| format!(", and a slot for position {ahead}"));
    format!("{side} pointer: position {}{count}{flag}{ahead}", pointer.sector.position)
}
