//! Bars that rows must meet.

/// A bar of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    /// The median within this many round trips of a cache line.
    Lines(f64),
    /// This many times the peer's requests per second.
    Peer(f64),
    /// This part of a copy's bytes per second.
    Copy(f64),
    /// At least the peer's requests per second, for less of the backend's processor time.
    Thrift,
    /// The guard costs at most this part of the requests per second.
    Guard(f64),
    /// This many items per second.
    Rate(f64),
    /// This part of the batches per second that writing and flushing the same bytes reaches.
    Raw(f64),
    /// At most this much above the least of all rows of its kind.
    Flat(f64),
    /// This part of the bare loop's requests per second.
    Loop(f64),
    /// At most this many times the bare loop's processor time per request.
    LoopTime(f64),
    /// This many times the messages per second of another way out of the guest.
    Way(f64, &'static str),
    /// At most this much, in that unit.
    Most(f64, &'static str),
    /// This part of the requests per second that one ring has alone.
    OfOne(f64),
}

/// Figures of a row, as far as it was measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    /// The median, in round trips of a cache line.
    pub lines: Option<f64>,
    /// Requests or items per second, relative to the peer's requests.
    pub times_peer: Option<f64>,
    /// The backend's processor time per request, relative to the peer's.
    pub of_peer_time: Option<f64>,
    /// Whether the processors were too far apart for a ratio to the peer to count.
    pub far: bool,
    /// Bytes per second, relative to a copy alone.
    pub of_copy: Option<f64>,
    /// Requests per second, relative to those without a guard.
    pub of_unguarded: Option<f64>,
    /// Items per second.
    pub rate: Option<f64>,
    /// Batches per second, relative to writing and flushing alone.
    pub of_raw: Option<f64>,
    /// A time, relative to the least of its kind.
    pub times_least: Option<f64>,
    /// Requests per second, relative to the bare loop's.
    pub of_loop: Option<f64>,
    /// Processor time per request, relative to the bare loop's.
    pub of_loop_time: Option<f64>,
    /// Messages per second, relative to another way.
    pub times_way: Option<f64>,
    /// A figure in its bar's unit.
    pub figure: Option<f64>,
    /// Requests per second of several rings, relative to those of one.
    pub of_one: Option<f64>,
}

impl Bar {
    fn said(self) -> String {
        match self {
            Bar::Lines(lines) => format!("p50 <= {lines} L"),
            Bar::Peer(times) => format!(">= {times} x qsd"),
            Bar::Copy(part) => format!(">= {:.0} % of copy", part * 100.0),
            Bar::Thrift => ">= 1 x qsd for less processor time".to_owned(),
            Bar::Guard(part) => format!("guard costs <= {:.0} %", part * 100.0),
            Bar::Rate(rate) => format!(">= {} M items/s", rate / 1e6),
            Bar::Raw(part) => format!(">= {:.0} % of raw", part * 100.0),
            Bar::Flat(part) => format!("within {:.0} % of the least", part * 100.0),
            Bar::Loop(part) => format!(">= {:.0} % of the loop", part * 100.0),
            Bar::LoopTime(times) => format!("<= {times} x the loop's processor time"),
            Bar::Way(times, way) => format!(">= {times} x {way}"),
            Bar::Most(most, unit) => format!("<= {most} {unit}"),
            Bar::OfOne(part) => format!(">= {:.0} % of one ring", part * 100.0),
        }
    }

    /// Returns whether a figure meets a bar. One that is missing or no number meets none.
    fn met(self, found: &Found) -> bool {
        let reaches = |value: Option<f64>, least: f64| value.is_some_and(|value| value >= least);
        let within = |value: Option<f64>, most: f64| value.is_some_and(|value| value <= most);
        match self {
            Bar::Lines(lines) => within(found.lines, lines),
            Bar::Peer(times) => reaches(found.times_peer, times),
            Bar::Copy(part) => reaches(found.of_copy, part),
            Bar::Thrift => {
                reaches(found.times_peer, 1.0) && found.of_peer_time.is_some_and(|part| part < 1.0)
            }
            Bar::Guard(part) => reaches(found.of_unguarded, 1.0 - part),
            Bar::Rate(rate) => reaches(found.rate, rate),
            Bar::Raw(part) => reaches(found.of_raw, part),
            Bar::Flat(part) => within(found.times_least, 1.0 + part),
            Bar::Loop(part) => reaches(found.of_loop, part),
            Bar::LoopTime(times) => within(found.of_loop_time, times),
            Bar::Way(times, _) => reaches(found.times_way, times),
            Bar::Most(most, _) => within(found.figure, most),
            Bar::OfOne(part) => reaches(found.of_one, part),
        }
    }

    fn verdict(self, found: &Found) -> String {
        let met = if self.met(found) { "yes" } else { "NO" };
        let far = found.far && matches!(self, Bar::Peer(_) | Bar::Thrift);
        format!("{}: {met}{}", self.said(), if far { " (far)" } else { "" })
    }
}

/// Returns the bars of a row, and whether each is met.
pub fn verdicts(bars: &[Bar], found: &Found) -> String {
    bars.iter().map(|bar| bar.verdict(found)).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bar, with figures that just meet it and that just do not.
    fn edges() -> Vec<(Bar, Found, Found)> {
        let none = Found::default();
        let lines = |lines| Found { lines: Some(lines), ..none };
        let peer = |times| Found { times_peer: Some(times), ..none };
        let copy = |part| Found { of_copy: Some(part), ..none };
        let thrift = |times, time| Found { of_peer_time: Some(time), ..peer(times) };
        let guard = |part| Found { of_unguarded: Some(part), ..none };
        let rate = |rate| Found { rate: Some(rate), ..none };
        let raw = |part| Found { of_raw: Some(part), ..none };
        let flat = |times| Found { times_least: Some(times), ..none };
        let of_loop = |part| Found { of_loop: Some(part), ..none };
        let loop_time = |times| Found { of_loop_time: Some(times), ..none };
        let way = |times| Found { times_way: Some(times), ..none };
        let figure = |figure| Found { figure: Some(figure), ..none };
        let of_one = |part| Found { of_one: Some(part), ..none };
        vec![
            (Bar::Lines(4.0), lines(4.0), lines(4.01)),
            (Bar::Peer(80.0), peer(80.0), peer(79.9)),
            (Bar::Copy(0.4), copy(0.4), copy(0.39)),
            (Bar::Thrift, thrift(1.0, 0.99), thrift(0.99, 0.5)),
            (Bar::Thrift, thrift(1.1, 0.5), thrift(1.1, 1.0)),
            (Bar::Guard(0.05), guard(0.95), guard(0.94)),
            (Bar::Rate(5.8e6), rate(5.8e6), rate(5.79e6)),
            (Bar::Raw(0.9), raw(0.9), raw(0.89)),
            (Bar::Flat(0.2), flat(1.2), flat(1.21)),
            (Bar::Loop(0.9), of_loop(0.9), of_loop(0.89)),
            (Bar::LoopTime(1.1), loop_time(1.1), loop_time(1.11)),
            (Bar::Way(10.0, "a port"), way(10.0), way(9.9)),
            (Bar::Most(3.0, "s"), figure(3.0), figure(3.01)),
            (Bar::OfOne(0.9), of_one(0.9), of_one(0.89)),
        ]
    }

    #[test]
    fn bar_that_is_not_met_says_no() {
        for (bar, meets, misses) in edges() {
            assert_eq!(verdicts(&[bar], &meets), format!("{}: yes", bar.said()));
            assert_eq!(verdicts(&[bar], &misses), format!("{}: NO", bar.said()));
        }
    }

    #[test]
    fn missing_measurement_meets_no_bar() {
        let nan = Some(f64::NAN);
        let nothing = Found {
            lines: nan,
            times_peer: nan,
            of_peer_time: nan,
            far: false,
            of_copy: nan,
            of_unguarded: nan,
            rate: nan,
            of_raw: nan,
            times_least: nan,
            of_loop: nan,
            of_loop_time: nan,
            times_way: nan,
            figure: nan,
            of_one: nan,
        };
        for (bar, _, _) in edges() {
            assert!(!bar.met(&Found::default()) && !bar.met(&nothing), "{bar:?}");
        }
    }

    #[test]
    fn ratio_to_the_peer_that_does_not_count_says_so() {
        let far = Found { times_peer: Some(90.0), lines: Some(5.0), far: true, ..Found::default() };
        let said = verdicts(&[Bar::Peer(80.0), Bar::Peer(120.0), Bar::Lines(4.0)], &far);
        assert_eq!(said, ">= 80 x qsd: yes (far); >= 120 x qsd: NO (far); p50 <= 4 L: NO");
    }
}
