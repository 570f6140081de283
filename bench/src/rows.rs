//! Rows of requests, and their bars.

use crate::bars::Bar;
use serde::Serialize;
use std::time::Duration;

/// Direction of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Reads from the disk.
    Read,
    /// Writes to the disk.
    Write,
}

/// The front end's way to wait for completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Waiting {
    /// Polling of the used ring.
    Polling,
    /// Sleep until an interrupt.
    Sleeping,
}

/// Arguments of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Settings {
    /// The arguments that make the daemon fast.
    Fast,
    /// No arguments.
    Default,
}

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Bytes of a request.
    pub bytes: u32,
    /// Reads or writes.
    pub direction: Direction,
    /// Requests in flight.
    pub depth: u16,
    /// Way to wait for completions.
    pub waiting: Waiting,
    /// Pause between a completion and the next request.
    pub think: Option<Duration>,
    /// Arguments of the daemon.
    pub settings: Settings,
    /// Separate regions that requests go to in turn.
    pub regions: u64,
    /// The bars.
    pub bars: &'static [Bar],
}

const ROW: Row = Row {
    bytes: 4096,
    direction: Direction::Write,
    depth: 1,
    waiting: Waiting::Polling,
    think: None,
    settings: Settings::Fast,
    regions: 1,
    bars: &[],
};
const READ: Row = Row { direction: Direction::Read, ..ROW };
const SLEEPING: Row = Row { waiting: Waiting::Sleeping, ..ROW };
const DEFAULT: Row = Row { settings: Settings::Default, ..SLEEPING };

/// The row that others are compared with: the peer's fastest requests.
pub const PEER_ROW: Row = Row { bytes: 512, depth: 32, ..ROW };

/// Returns all rows.
pub const ROWS: &[Row] = &[
    Row { bytes: 512, bars: &[Bar::Lines(2.4), Bar::Peer(32.0)], ..ROW },
    Row { bytes: 512, depth: 32, bars: &[Bar::Peer(40.0)], ..ROW },
    Row { bars: &[Bar::Peer(21.0)], ..ROW },
    Row { depth: 32, bars: &[Bar::Peer(16.0)], ..ROW },
    Row { bytes: 64 << 10, depth: 8, bars: &[Bar::Copy(0.85)], ..ROW },
    Row { bytes: 512, ..READ },
    Row { bytes: 512, depth: 32, ..READ },
    Row { bars: &[Bar::Peer(28.0)], ..READ },
    Row { depth: 32, ..READ },
    Row { bytes: 64 << 10, depth: 8, ..READ },
    Row { bars: &[Bar::Peer(11.0)], ..SLEEPING },
    Row { depth: 32, bars: &[Bar::Peer(9.0)], ..SLEEPING },
    Row { bars: &[Bar::Peer(8.0)], ..DEFAULT },
    Row { think: Some(Duration::from_millis(1)), bars: &[Bar::Thrift], ..DEFAULT },
];

/// Regions of the rows whose lines are cold: as many as a host has rings.
const COLD: u64 = 64;

const LIKE_LOOP: &[Bar] = &[Bar::Loop(0.9)];
const NEARLY_LIKE_LOOP: &[Bar] = &[Bar::Loop(0.85)];

/// Returns the rows that are compared with a bare loop.
pub const REFERENCE_ROWS: &[Row] = &[
    Row { bytes: 512, bars: LIKE_LOOP, ..ROW },
    Row { bytes: 512, depth: 32, bars: LIKE_LOOP, ..ROW },
    Row { bars: LIKE_LOOP, ..ROW },
    Row { depth: 32, bars: LIKE_LOOP, ..ROW },
    Row { bars: LIKE_LOOP, ..READ },
    Row { bytes: 64 << 10, depth: 8, bars: LIKE_LOOP, ..ROW },
    Row { bytes: 512, bars: &[Bar::Loop(0.9), Bar::LoopTime(1.1)], ..SLEEPING },
    Row { bytes: 512, depth: 32, bars: LIKE_LOOP, ..SLEEPING },
    Row { bars: LIKE_LOOP, ..SLEEPING },
    Row { depth: 32, bars: LIKE_LOOP, ..SLEEPING },
    Row { bytes: 512, regions: COLD, bars: NEARLY_LIKE_LOOP, ..ROW },
    Row { bytes: 512, depth: 32, regions: COLD, bars: NEARLY_LIKE_LOOP, ..ROW },
    Row { regions: COLD, bars: NEARLY_LIKE_LOOP, ..ROW },
    Row { depth: 32, regions: COLD, bars: NEARLY_LIKE_LOOP, ..ROW },
];

impl Row {
    /// Returns the name by which the row is chosen.
    pub fn name(&self) -> String {
        let size = match self.bytes {
            bytes if bytes >= 1024 => format!("{}K", bytes / 1024),
            bytes => bytes.to_string(),
        };
        let direction = match self.direction {
            Direction::Read => "read",
            Direction::Write => "write",
        };
        let waiting = match self.waiting {
            Waiting::Polling => "",
            Waiting::Sleeping => "-sleeping",
        };
        let settings = match self.settings {
            Settings::Fast => "",
            Settings::Default => "-default",
        };
        let think = self.think.map(|time| format!("-think{}ms", time.as_millis()));
        let think = think.unwrap_or_default();
        let cold = if self.regions > 1 { "-cold" } else { "" };
        format!("{size}-{direction}-qd{}{waiting}{settings}{think}{cold}", self.depth)
    }
}
