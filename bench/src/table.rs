//! Outcomes as people read them.

use crate::requests::{NEAR, Outcome};
use crate::rows::Bar;
use std::fmt::Write;

/// A guard may cost so much of the requests in a second.
const GUARD: f64 = 0.05;

/// Of the columns.
pub fn head(guard: bool) -> String {
    let guard = if guard { "   guard" } else { "" };
    format!(
        "{:<34} {:>9} {:>9} {:>7} {:>8} {:>6} {:>6} {:>6} {:>7}{guard}  wanted",
        "row", "ours", "qsd", "x qsd", "p50", "lines", "L", "copy", "rounds"
    )
}

/// What the columns mean.
pub fn legend(clock: f64) -> String {
    format!(
        "\
ours, qsd   requests in a second: this backend, qemu-storage-daemon; medians of short rounds in turns
p50, lines  half of the requests took at most this, without the clock's {clock:.0} ns; the same in round trips of a line
L           a cache line between the two processors, there and back; ratios to qsd count only where it is
            at most {NEAR:.0} ns: other rounds are left out where enough are near, else the row says \"far\"
copy        bytes moved, of what memcpy alone moves between such buffers and such a file
guard       requests in a second with the guard, of those without
"
    )
}

/// One row.
pub fn line(outcome: &Outcome) -> String {
    let Outcome { name, ours, peer, times_peer, line, near, rounds, .. } = outcome;
    let mut text = format!(
        "{name:<34} {:>9} {:>9} {times_peer:>7.1} {:>8} {:>6} {line:>6.0} {:>5.0}% {:>7}",
        count(ours.requests),
        count(peer.requests),
        ours.p50.map(time).unwrap_or_default(),
        ours.p50.map(|p50| format!("{:.1}", p50 / line)).unwrap_or_default(),
        100.0 * outcome.copied(),
        format!("{}/{}", rounds.0, rounds.1),
    );
    if let Some(guarded) = outcome.guarded {
        let _ = write!(text, " {:>6.0}%", 100.0 * guarded);
    }
    text.push_str(if *near { "  " } else { "  far; " });
    text + &verdicts(outcome)
}

/// What is wanted of it, and whether it is so.
pub fn verdicts(outcome: &Outcome) -> String {
    let mut wanted: Vec<_> =
        outcome.row.bars.iter().map(|bar| verdict(&said(bar), met(outcome, bar))).collect();
    if let Some(guarded) = outcome.guarded {
        wanted.push(verdict("guard costs <= 5 %", guarded >= 1.0 - GUARD));
    }
    wanted.join("; ")
}

fn verdict(wanted: &str, met: bool) -> String {
    format!("{wanted}: {}", if met { "yes" } else { "NO" })
}

fn said(bar: &Bar) -> String {
    match bar {
        Bar::Lines(lines) => format!("p50 <= {lines} L"),
        Bar::Peer(times) => format!(">= {times} x qsd"),
        Bar::Copy(part) => format!(">= {:.0} % of copy", part * 100.0),
        Bar::Thrift => "p50 and processor time <= qsd's".to_owned(),
    }
}

fn met(outcome: &Outcome, bar: &Bar) -> bool {
    let Outcome { ours, peer, .. } = outcome;
    match bar {
        Bar::Lines(lines) => ours.p50.is_some_and(|p50| p50 <= lines * outcome.line),
        Bar::Peer(times) => outcome.times_peer >= *times,
        Bar::Copy(part) => outcome.copied() >= *part,
        Bar::Thrift => ours.p50 <= peer.p50 && ours.processor <= peer.processor,
    }
}

/// A rate.
pub fn count(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.0} k", value / 1e3),
        value if value >= 1e3 => format!("{:.1} k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

/// A time.
pub fn time(nanoseconds: f64) -> String {
    if nanoseconds >= 1e4 {
        format!("{:.0} us", nanoseconds / 1e3)
    } else {
        format!("{:.2} us", nanoseconds / 1e3)
    }
}
