//! The chains behind the next one.
//!
//! What a driver has just written lies in its processor's cache, and fetching a line from there
//! takes longer than a request. So some chains are read at once, and what they name is asked for,
//! before the first of them is carried out.

use crate::data_path::plain::PlainChain;
use crate::data_path::queue::{Broken, SplitQueue};

/// Chains that are read at once.
const DEPTH: u16 = 8;

/// The chains that were read and not carried out.
#[derive(Default)]
pub(super) struct Ahead {
    chains: [Option<PlainChain>; DEPTH as usize],
    /// The places in `chains` that were not asked for yet.
    next: usize,
    end: usize,
}

impl Ahead {
    /// Returns the chain that begins at `head`, the queue's next one, if it has the usual shape.
    /// Called once for every chain, in their order.
    #[inline]
    pub fn chain(
        &mut self,
        queue: &mut SplitQueue<'_>,
        head: u16,
    ) -> Result<Option<&PlainChain>, Broken> {
        if self.next == self.end {
            self.fill(queue, head)?;
        }
        let place = self.next;
        self.next += 1;
        Ok(self.chains.get(place).and_then(Option::as_ref))
    }

    #[inline]
    fn fill(&mut self, queue: &mut SplitQueue<'_>, head: u16) -> Result<(), Broken> {
        let offered = queue.offered(DEPTH)?;
        let count = offered.min(DEPTH);
        (self.next, self.end) = (0, count.into());
        let mut next = Some(head);
        for (place, chain) in (1..=count).zip(&mut self.chains) {
            *chain = next.and_then(|head| queue.plain_chain(head));
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
