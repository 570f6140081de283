//! Outcomes as text.

use crate::requests::Outcome;
use crate::rounds::NEAR;
use std::fmt::Write;

/// Head of the columns.
pub fn head(guard: bool) -> String {
    let guard = if guard { "   guard" } else { "" };
    format!(
        "{:<38} {:>9} {:>9} {:>7} {:>5} {:>8} {:>6} {:>6} {:>8} {:>6} {:>7}{guard}  wanted",
        "row", "ours", "qsd", "x qsd", "time", "p50", "lines", "L", "wake", "copy", "rounds"
    )
}

/// Returns the legend of the columns.
pub fn legend(clock: f64) -> String {
    format!(
        "\
ours, qsd   requests in a second: this backend, qemu-storage-daemon; medians of short rounds in turns
time        the backend's processor time for a request, of qemu-storage-daemon's
p50, lines  half of the requests took at most this, without the clock's {clock:.0} ns; the same in round trips of a line
L           a cache line between the two processors, there and back; ratios to qsd count only where it is
            at most {NEAR:.0} ns: other rounds are left out where enough are near, else the verdict says \"far\"
wake        there and back between the processors where the front sleeps for a request's time and is woken, and nothing else is done
copy        bytes moved, of what memcpy alone moves between such buffers and such a file
guard       requests in a second with the guard, of those without
"
    )
}

/// Returns one row as text.
pub fn line(outcome: &Outcome) -> String {
    let Outcome { name, ours, peer, times_peer, line, rounds, .. } = outcome;
    let found = outcome.found();
    let mut text = format!(
        "{name:<38} {:>9} {:>9} {times_peer:>7.2} {:>5} {:>8} {:>6} {line:>6.0} {:>8} {:>6} {:>7}",
        count(ours.requests),
        count(peer.requests),
        part(found.of_peer_time),
        ours.p50.map(time).unwrap_or_default(),
        ratio(found.lines),
        outcome.wake.map(time).unwrap_or_default(),
        part(found.of_copy),
        format!("{}/{}", rounds.0, rounds.1),
    );
    if outcome.guarded.is_some() {
        let _ = write!(text, " {:>7}", part(outcome.guarded));
    }
    text + "  " + &outcome.wanted()
}

/// Returns a rate as text.
pub fn count(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.0} k", value / 1e3),
        value if value >= 1e3 => format!("{:.1} k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

/// Returns a time as text.
pub fn time(nanoseconds: f64) -> String {
    if nanoseconds >= 1e4 {
        format!("{:.0} us", nanoseconds / 1e3)
    } else {
        format!("{:.2} us", nanoseconds / 1e3)
    }
}

/// Returns a ratio as text; nothing where there is none.
pub fn ratio(value: Option<f64>) -> String {
    value.map(|value| format!("{value:.1}")).unwrap_or_default()
}

/// Returns a part of a whole as text.
pub fn part(value: Option<f64>) -> String {
    value.map(|value| format!("{:.0} %", 100.0 * value)).unwrap_or_default()
}
