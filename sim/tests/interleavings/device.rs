//! A ring whose two ends wake each other: `UnixDevice` without the kernel.

use crate::memory::Shared;
use loom::sync::{Condvar, Mutex};
use shared_block_ring::device::bell::{Announcement, Sleeper};
use shared_block_ring::device::{DeviceError, MappedDevice, Sleep};
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::wait::Woken;
use shared_block_ring::{BlockDevice, RingDevice};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Words of the page that the two announcements are in.
pub const PAGE_WORDS: [usize; 2] = [0, 64];

/// A model of an eventfd: several writes are one wake-up, which can be cleared.
#[derive(Default)]
pub struct Event {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    /// Waits until the event is readable.
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
    }

    fn forget(&self) {
        *self.rung.lock().unwrap() = false;
    }
}

/// One direction of waking, as the library's `Bell` over a real event.
pub struct Bell {
    announcement: Announcement<Shared>,
    event: Arc<Event>,
}

impl Bell {
    pub fn new(page: Shared, sleeper: Sleeper, event: &Arc<Event>) -> Self {
        Self { announcement: Announcement::new(page, sleeper), event: Arc::clone(event) }
    }

    pub fn announce(&self) {
        self.announcement.announce();
    }

    pub fn wait(&self) {
        self.event.wait();
    }

    pub fn awake(&self) {
        self.announcement.withdraw();
        self.event.forget();
    }

    pub fn ring(&self) {
        if self.announcement.take() {
            self.event.ring();
        }
    }
}

/// A mapped ring and the bells of one of its ends.
pub struct Belled {
    region: MappedDevice<Shared>,
    ours: Bell,
    theirs: Bell,
    /// Whether a mutant looks for a sleeper before it publishes.
    rings_too_early: bool,
    sleeps: AtomicU64,
}

impl Belled {
    pub fn new(
        region: MappedDevice<Shared>,
        ours: Bell,
        theirs: Bell,
        rings_too_early: bool,
    ) -> Self {
        Self { region, ours, theirs, rings_too_early, sleeps: AtomicU64::new(0) }
    }

    /// Returns the number of sleeps of this end.
    pub fn sleeps(&self) -> u64 {
        self.sleeps.load(Ordering::Relaxed)
    }

    fn publish(
        &self,
        publish: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if self.rings_too_early {
            self.theirs.ring();
            return publish();
        }
        publish()?;
        self.theirs.ring();
        Ok(())
    }
}

impl BlockDevice for Belled {
    fn name(&self) -> &str {
        self.region.name()
    }

    fn geometry(&self) -> Geometry {
        self.region.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        self.region.read(first, bufs)
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        if first <= Side::Consumer.sector() {
            self.publish(|| self.region.write(first, bufs))
        } else {
            self.region.write(first, bufs)
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.region.flush()
    }
}

impl RingDevice for Belled {
    fn edit_pointer(&self, side: Side, edit: &mut dyn FnMut(&mut [u8])) -> Result<(), DeviceError> {
        self.publish(|| self.region.edit_pointer(side, edit))
    }

    fn sleeper(&self) -> Option<&dyn Sleep> {
        Some(self)
    }
}

impl Sleep for Belled {
    fn announce(&self) {
        self.ours.announce();
    }

    fn sleep(
        &self,
        _interrupts: &[BorrowedFd<'_>],
        _deadline: Option<Instant>,
    ) -> Result<Woken, DeviceError> {
        self.ours.wait();
        self.sleeps.fetch_add(1, Ordering::Relaxed);
        self.ours.awake();
        Ok(Woken::Elapsed)
    }
}
