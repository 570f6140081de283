//! What a run prints: counts, a hash of all items, and times.

use serde::Serialize;
use std::time::Duration;
use twox_hash::XxHash3_128;

/// The JSON object of one run.
#[derive(Serialize, Default)]
pub struct Report {
    pub items: u64,
    pub bytes: u64,
    /// XXH3-128 of every item's length (u32, little-endian) and payload. Nobody forges these items,
    /// and an emulated processor takes several times as long for a cryptographic hash.
    pub xxh3: String,
    /// Times that the run had to wait for the other end.
    pub waits: u64,
    /// Median of a read of one sector, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_ns: Option<u64>,
    /// Time from a push until its item is visible, in nanoseconds: of the quickest tenth, and of
    /// half of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shown_ns: Option<[u64; 2]>,
}

/// Items that a run has pushed or popped.
#[derive(Default)]
pub struct Tally {
    pub items: u64,
    bytes: u64,
    pub waits: u64,
    hash: XxHash3_128,
}

impl Tally {
    pub fn add(&mut self, item: &[u8]) {
        self.items += 1;
        self.bytes += item.len() as u64;
        // An item's length is a u32 on the ring.
        self.hash.write(&u32::try_from(item.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.hash.write(item);
    }

    pub fn report(self) -> Report {
        let xxh3 = format!("{:032x}", self.hash.finish_128());
        let Self { items, bytes, waits, .. } = self;
        Report { items, bytes, xxh3, waits, ..Report::default() }
    }
}

/// Returns the time below which one in `part` of the sorted times is, in nanoseconds.
pub fn nanoseconds(times: &[Duration], part: usize) -> u64 {
    let time = times.get(times.len() / part).map_or(0, Duration::as_nanos);
    u64::try_from(time).unwrap_or(u64::MAX)
}
