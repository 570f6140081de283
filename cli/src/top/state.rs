//! The state of a ring in one word, with how much it asks for attention.

use super::model::Ring;

/// Part of a ring in use from which on it counts as nearly full.
const NEARLY_FULL: f64 = 0.9;

/// How much a state asks for attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// Nothing moves, and nothing has to.
    Quiet,
    /// Items flow.
    Good,
    /// Something may have to be done.
    Warning,
    /// Something has to be done.
    Trouble,
}

/// Returns the state of a ring in a word or two, and its alarm.
pub fn of(ring: &Ring) -> (&'static str, Alarm) {
    if let Some(trouble) = &ring.trouble {
        return (trouble.word, Alarm::Trouble);
    }
    let Some(sample) = &ring.sample else { return ("opening", Alarm::Quiet) };
    let rates = ring.rates();
    let waits = sample.used() > 0;
    if sample.fault().is_some() {
        ("fault", Alarm::Trouble)
    } else if sample.suspended {
        ("suspended", Alarm::Warning)
    } else if sample.suspend {
        ("suspending", Alarm::Warning)
    } else if waits && sample.has_consumer == Some(false) {
        ("no consumer", Alarm::Warning)
    } else if rates.refusals > 0.0 {
        ("refusing", Alarm::Warning)
    } else if sample.share() >= NEARLY_FULL {
        ("nearly full", Alarm::Warning)
    } else if rates.bytes_in > 0.0 || rates.bytes_out > 0.0 {
        ("flowing", Alarm::Good)
    } else if waits {
        ("waiting", Alarm::Quiet)
    } else {
        ("idle", Alarm::Quiet)
    }
}
