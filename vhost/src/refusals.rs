//! Telling the operator what was refused, without letting a guest fill the log.

use crate::counters::Counters;
use crate::guard::Reason;
use crate::pace::Pace;
use std::sync::Arc;

/// Counts every refusal, and logs some.
pub struct Refusals {
    counters: Arc<Counters>,
    paces: [Pace; Reason::ALL.len()],
}

impl Refusals {
    /// None so far.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { counters, paces: [Pace::default(); Reason::ALL.len()] }
    }

    /// Counts one; `sector` is where the request began, in units of 512 bytes.
    pub fn refuse(&mut self, reason: Reason, sector: Option<u64>) {
        self.counters.refuse(reason);
        if !self.paces[reason.index()].due() {
            return;
        }
        let hint = match reason {
            Reason::BufferedPage => {
                ": the guest writes through its page cache, it must use O_DIRECT"
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
