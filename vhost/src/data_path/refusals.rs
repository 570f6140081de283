//! Reporting refused requests, without letting a guest fill the log.

use crate::data_path::counters::Counters;
use crate::data_path::guard::Reason;
use crate::data_path::probes;
use ring_program::Pace;
use std::sync::Arc;

/// Counts every refusal, and logs at most one a second for each reason.
pub struct Refusals {
    counters: Arc<Counters>,
    paces: [Pace; Reason::ALL.len()],
}

impl Refusals {
    /// No refusals so far.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { counters, paces: [Pace::default(); Reason::ALL.len()] }
    }

    /// Counts a refusal; `sector` is where the request began, in units of 512 bytes.
    pub fn refuse(&mut self, reason: Reason, sector: Option<u64>) {
        self.counters.refuse(reason);
        probes::refusal(reason, sector.unwrap_or(0));
        if !self.paces[reason.index()].due() {
            return;
        }
        let hint = match reason {
            Reason::BufferedPage => {
                ": a write of a whole page over a pointer sector that is not the guest's, most often by a program that writes through the \
                 page cache (without O_DIRECT)"
            }
            _ => "",
        };
        let place = sector.map(|sector| format!(" at sector {sector}")).unwrap_or_default();
        log::warn!(
            "refused a request{place} ({reason}, {} so far){hint}",
            self.counters.refused(reason)
        );
    }
}
