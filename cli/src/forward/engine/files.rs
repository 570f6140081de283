//! The budget of open files (descriptors): what does not fit into it waits by the ring, rather than
//! fail somewhere.

use super::super::ring::{Phase, Ring};
use super::Engine;
use ring_program::descriptors::{self, REMEDY};
use std::time::{Duration, Instant};

/// Descriptors of an open ring, and those that opening it takes for a moment: a hand-over has a
/// connection, the region, two locks and two events.
const RING: u64 = 8;

/// Descriptors beside those of rings and lanes: the engine's own, and those that threads of sinks
/// and libraries take for a moment.
const OTHERS: u64 = 32;

/// Pause between two looks at whether a ring that waits fits by now.
const LOOK: Duration = Duration::from_secs(1);

impl Engine<'_, '_> {
    /// Returns whether another ring may be opened. If not, it waits, and a warning says so.
    pub fn has_files(&mut self, number: u64) -> bool {
        let lane = self.sink.descriptors();
        // Most limits are far away: no look is needed.
        if self.spare_files().is_some() {
            return true;
        }
        let now = Instant::now();
        // Hundreds may wait: they look once, together.
        if now >= self.next_files {
            if self.has_room(lane) {
                return true;
            }
            self.next_files = now + LOOK;
        }
        let limit = self.files;
        let words = format!("the ring waits for open files: the limit is {limit} ({REMEDY})");
        let Some(ring) = self.rings.get_mut(&number) else { return true };
        ring.report.error = Some(format!("{}: {words}", ring.name));
        self.due.insert((self.next_files, number));
        // One message for all: others wait for the same thing.
        if self.few_files.failed(&words).1 {
            log::warn!("{}: {words}; the same goes for rings that come after it", ring.name);
        }
        false
    }

    /// Returns how many descriptors are left when all rings have theirs; none if they do not fit.
    pub fn spare_files(&self) -> Option<u64> {
        let rings = self.names.len() as u64 * (RING + self.sink.descriptors());
        self.files.checked_sub(rings + 2 * OTHERS)
    }

    /// Returns whether a ring and its lane fit beside what is open, and what will be for the rings
    /// that are being opened or have had no item.
    fn has_room(&self, lane: u64) -> bool {
        let open = match descriptors::open() {
            Ok(open) => open,
            // Not even for the look.
            Err(e) if e.raw_os_error() == Some(libc::EMFILE) => return false,
            // Without a number there is no budget: what fails is tried again.
            Err(_) => return true,
        };
        let reserved = |ring: &Ring| match &ring.phase {
            Phase::Opening => RING + lane,
            Phase::Open(opened) if opened.lane.as_ref().is_none_or(|lane| !lane.is_used) => lane,
            Phase::Open(_) | Phase::Closed | Phase::Stopped => 0,
        };
        let reserved: u64 = self.rings.values().map(reserved).sum();
        open + reserved + RING + lane + OTHERS <= self.files
    }
}
