//! Calls that are answered later: when a ring has come so far, or has told of itself.

use crate::daemon::rings::messages::{Number, Report};
use crate::daemon::rings::varlink::ClientId;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Who waits for the reports of rings, and for what answer.
pub struct Inquiry {
    /// Who waits.
    pub client: ClientId,
    /// The question.
    pub question: Question,
    /// The rings that have not reported.
    pub missing: BTreeSet<Number>,
    /// The reports that have come.
    pub reports: BTreeMap<Number, Report>,
}

/// A question about rings.
pub enum Question {
    /// All rings.
    List,
    /// One ring, and its counters.
    Show(String),
    /// The counters of these.
    Stats,
}

/// A wait for a ring to be empty.
pub struct Drain {
    /// Who waits.
    pub client: ClientId,
    /// The ring.
    pub number: Number,
    /// How long at most.
    pub until: Option<Instant>,
    /// When the ring is looked at next.
    pub next: Instant,
}

/// A wait for a change of `suspend`.
pub struct Suspension {
    /// Who waits.
    pub client: ClientId,
    /// The ring.
    pub number: Number,
    /// What is wanted.
    pub suspend: bool,
    /// When it is given up.
    pub until: Instant,
    /// When it is tried again, if it has to be.
    pub next: Option<Instant>,
}

/// A reading of the folder whose changes are under way.
pub struct Reload {
    /// Who waits; none for a signal.
    pub client: Option<ClientId>,
    /// The rings whose change is under way.
    pub open: BTreeSet<String>,
    /// Rings that are new, gone or changed.
    pub changes: [Vec<String>; 3],
    /// Those that could not be served, and why.
    pub failed: Vec<(String, String)>,
}

impl Reload {
    /// What is answered.
    pub fn to_json(&self) -> Value {
        let [added, removed, changed] = &self.changes;
        let failed =
            self.failed.iter().map(|(name, reason)| json!({ "name": name, "reason": reason }));
        json!({
            "added": added,
            "removed": removed,
            "changed": changed,
            "failed": failed.collect::<Vec<_>>(),
        })
    }
}
