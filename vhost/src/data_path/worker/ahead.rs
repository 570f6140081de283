//! Chains that are read ahead of the request that is carried out.
//!
//! What a driver has just written lies in its processor's cache, and fetching a cache line from
//! there takes longer than a request. So several chains are read at once, and the lines that they
//! name are prefetched, before the first of them is carried out.

use crate::data_path::fast_path::FastChain;
use crate::data_path::queue::{Broken, SplitQueue};
use crate::data_path::request::Kind;

/// Chains that are read at once.
const DEPTH: u16 = 8;

/// The chains that were read and not carried out.
#[derive(Default)]
pub(super) struct Ahead {
    chains: [Option<FastChain>; DEPTH as usize],
    /// The places in `chains` of those that were not returned yet.
    next: usize,
    end: usize,
}

impl Ahead {
    /// Returns the queue's next chain, which begins at `head`, if the fast path takes it. To be
    /// called once for every chain, in their order.
    #[inline]
    pub fn chain(
        &mut self,
        queue: &mut SplitQueue<'_>,
        head: u16,
    ) -> Result<Option<&FastChain>, Broken> {
        if self.next == self.end {
            self.fill(queue, head)?;
        }
        let place = self.next;
        self.next += 1;
        Ok(self.chains.get(place).and_then(Option::as_ref))
    }

    /// Returns the sector and the bytes of the write two chains behind the one that
    /// [`chain`](Self::chain) returns next. They are good for a prefetch alone: the driver can
    /// still change the header.
    #[inline]
    pub fn later_write(&self, queue: &mut SplitQueue<'_>) -> Option<(u64, u64)> {
        let chain = self.chains[..self.end].get(self.next + 2)?.as_ref()?;
        match chain.parse(queue.memory())? {
            (Kind::Write, sector) => Some((sector, chain.data_len())),
            _ => None,
        }
    }

    #[inline]
    fn fill(&mut self, queue: &mut SplitQueue<'_>, head: u16) -> Result<(), Broken> {
        let offered = queue.offered(DEPTH)?;
        let count = offered.min(DEPTH);
        (self.next, self.end) = (0, count.into());
        let mut next = Some(head);
        for (place, chain) in (1..=count).zip(&mut self.chains) {
            *chain = next.and_then(|head| queue.fast_chain(head));
            next = queue.head_behind(place);
        }
        if offered > 1 {
            self.prefetch(queue, count, offered);
        }
        Ok(())
    }

    fn prefetch(&self, queue: &mut SplitQueue<'_>, count: u16, offered: u16) {
        for chain in self.chains[..self.end].iter().flatten() {
            chain.prefetch(queue.memory());
        }
        queue.prefetch_used(count);
        for place in count..offered.min(2 * DEPTH) {
            queue.prefetch_chain(place);
        }
    }
}
