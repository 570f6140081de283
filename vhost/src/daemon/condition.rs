//! Whether the ring is as it should be, for whoever asks: health, metrics, clients of the consumer
//! socket, and the exit code.

use crate::data_path::counters::Counters;
use crate::data_path::fault::Losses;
use shared_block_ring::format::Geometry;
use std::fs::{File, Metadata};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What can be wrong with a ring that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Part of the region is lost.
    Truncated,
    /// A flush has failed: what was written before it may never become durable.
    Flush,
    /// The path does not lead to the ring any more.
    Displaced,
}

impl Fault {
    /// The fault in one line.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Truncated => "the ring's file was truncated, or its medium cannot be read",
            Self::Flush => "a flush has failed: writes fail until the backend starts anew",
            Self::Displaced => {
                "the ring's file was moved, removed or replaced: it is lost when the backend ends, unless it has another name"
            }
        }
    }
}

/// The condition of the ring that is served.
#[derive(Debug)]
pub struct Condition {
    file: Arc<File>,
    geometry: Geometry,
    counters: Arc<Counters>,
    losses: Losses,
    displaced: AtomicBool,
}

impl Condition {
    /// Observes the ring in `file`.
    pub fn new(
        file: impl Into<Arc<File>>,
        geometry: Geometry,
        counters: &Arc<Counters>,
        losses: &Losses,
    ) -> Self {
        let file = file.into();
        let (counters, losses) = (Arc::clone(counters), losses.clone());
        Self { file, geometry, counters, losses, displaced: AtomicBool::new(false) }
    }

    /// The losses of the ring's memory, and of its front end's.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// Notes whether the ring's file is somewhere else than at its path.
    pub fn set_displaced(&self, displaced: bool) {
        self.displaced.store(displaced, Ordering::Relaxed);
    }

    /// Whether the ring's file was somewhere else than at its path at the last look.
    pub fn is_displaced(&self) -> bool {
        self.displaced.load(Ordering::Relaxed)
    }

    /// Whether a request has met the end of the file, or would: nobody touches the end of an idle
    /// ring, so the file's size is looked at, too.
    pub fn is_truncated(&self) -> bool {
        let bytes = self.geometry.total_bytes();
        let is_short = |about: Metadata| about.is_file() && about.len() < bytes;
        self.losses.region_lost() || self.file.metadata().is_ok_and(is_short)
    }

    /// Returns what is wrong with the ring; of several faults, the worst.
    pub fn fault(&self) -> Option<Fault> {
        if self.is_truncated() {
            Some(Fault::Truncated)
        } else if self.counters.flush_failures.get() > 0 {
            Some(Fault::Flush)
        } else {
            self.is_displaced().then_some(Fault::Displaced)
        }
    }
}
