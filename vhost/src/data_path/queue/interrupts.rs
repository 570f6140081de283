//! Interrupt decisions (virtio 1.3, 2.7.7).

use super::{Broken, ENTRIES, HEAD_BYTES, Index, SplitQueue, load};
use std::sync::atomic::{Ordering, fence};

/// Completions between two looks whether the driver wants an interrupt although there is more to
/// do.
const BATCH: u16 = 8;

/// Completions after which the decision is final even in a queue that is never empty: indices have
/// 16 bits.
const MOST_UNSIGNALLED: u16 = 1 << 12;

impl SplitQueue<'_> {
    /// Returns whether to interrupt the driver for the completions since the last decision, after a
    /// request behind which there may be more: once for several completions, so that the driver can
    /// go on meanwhile.
    #[inline]
    pub fn wants_interrupt_meanwhile(&mut self) -> Result<bool, Broken> {
        if self.next_used.since(self.looked) < BATCH {
            return Ok(false);
        }
        self.look()
    }

    /// Returns whether to interrupt the driver for the completions since the last decision. `more`
    /// says that the worker goes on with this queue; otherwise the decision is final.
    pub fn wants_interrupt(&mut self, more: bool) -> Result<bool, Broken> {
        if self.signalled == Some(self.next_used) {
            return Ok(false);
        }
        if more && self.unsignalled() < MOST_UNSIGNALLED {
            return self.look();
        }
        // The driver writes that it wants an interrupt, then reads the used index once more: with a
        // fence on both sides one of us sees the other's store.
        fence(Ordering::SeqCst);
        let wanted = self.has_passed_event()?;
        self.signalled = Some(self.next_used);
        self.looked = self.next_used;
        Ok(wanted)
    }

    /// Looks without a fence, which would wait until the driver's processor has given up every cache
    /// line that was stored to: longer than a request takes. So a wish that the driver has just
    /// written may be missed; a later decision finds it.
    fn look(&mut self) -> Result<bool, Broken> {
        self.looked = self.next_used;
        let wanted = self.has_passed_event()?;
        if wanted {
            self.signalled = Some(self.next_used);
        }
        Ok(wanted)
    }

    /// Completions since the last interrupt decision: fewer than an index can count.
    fn unsignalled(&self) -> u16 {
        self.signalled.map_or(u16::MAX, |signalled| self.next_used.since(signalled))
    }

    fn has_passed_event(&self) -> Result<bool, Broken> {
        if !self.event_idx {
            // VRING_AVAIL_F_NO_INTERRUPT is bit 0.
            return Ok(load(&self.available, 0, Ordering::Relaxed)? & 1 == 0);
        }
        let at = ENTRIES + HEAD_BYTES * usize::from(self.size);
        let event = load(&self.available, at, Ordering::Relaxed)?;
        let behind = self.next_used.since(Index::new(event)).wrapping_sub(1);
        Ok(self.signalled.is_none_or(|signalled| behind < self.next_used.since(signalled)))
    }
}
