//! Figures of many rings, and their bars.

use crate::bars::{Bar, Found, verdicts};
use crate::machine::median;
use crate::rings::daemon::Memory;
use crate::table::{count, part, time};
use serde::Serialize;

/// The bars: KiB of memory for a ring, per cent of a processor, seconds, and ratios.
const MEMORY: Bar = Bar::Most(150.0, "KiB a ring");
const IDLE: Bar = Bar::Most(0.5, "% of a processor");
const START: Bar = Bar::Most(5.0, "s");
const RATE: Bar = Bar::OfOne(0.9);
const FAIR: Bar = Bar::Most(3.0, "x the median ring's");
const NEIGHBOUR: Bar = Bar::Most(1.5, "x without");
const AGAIN: Bar = Bar::Most(3.0, "s");

/// All figures of a daemon of many rings.
#[derive(Debug, Clone, Serialize)]
pub struct Rings {
    /// The number of rings.
    pub count: usize,
    /// Seconds from the start until all rings were served, and until all had a front end.
    pub started: [f64; 2],
    /// Seconds of processor time that both processes have taken until then.
    pub started_for: f64,
    /// What the data process and the control process have with all rings.
    pub held: [Held; 2],
    /// The same with one ring.
    pub held_by_one: [Held; 2],
    /// Processor time of both while nothing happens, as a part of one processor.
    pub idle: f64,
    /// Rates by the number of rings that are busy.
    pub rates: Vec<Rate>,
    /// Times of requests, by what some of the rings do.
    pub shares: Vec<Share>,
    /// Ends of the data process.
    pub ends: Vec<End>,
}

/// What a process has while nothing happens.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Held {
    /// Its memory.
    pub memory: Memory,
    /// Its threads.
    pub threads: usize,
    /// Its open descriptors.
    pub descriptors: usize,
}

/// Requests of several rings on one thread.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rate {
    /// Bytes of a request.
    pub bytes: u32,
    /// Rings with requests.
    pub active: usize,
    /// Requests per second, of all.
    pub per_second: f64,
    /// The same, relative to one active ring, by rounds.
    pub of_one: f64,
    /// The same, relative to a daemon of a single ring.
    pub of_single: f64,
    /// The same, relative to copies alone between as much memory: what is missing is not the
    /// daemon's doing.
    pub of_copies: f64,
    /// Those copies, relative to those of one ring.
    pub copies_of_one: f64,
    /// Processor time of the daemon for a request, in nanoseconds. Unlike the rate it hardly
    /// depends on what else runs on the machine.
    pub processor: f64,
    /// Kicks for each request: the daemon sleeps, or is about to, when one is made.
    pub kicks: f64,
    /// Part of the visits to front ends that found nothing done.
    pub waited: f64,
}

/// Times of requests at rings that have one at a time.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Share {
    /// What the other rings do.
    pub beside: &'static str,
    /// The median time at the median ring, in nanoseconds.
    pub p50: f64,
    /// The time that all but a hundredth take at most, at the median ring.
    pub p99: f64,
    /// The same at the worst ring, relative to the median ring.
    pub worst: f64,
    /// The same at the median ring, relative to the round before the others did that.
    pub times_quiet: f64,
    /// Requests of all rings per second.
    pub rate: f64,
    /// Kicks for each request.
    pub kicks: f64,
    /// Processor time of the daemon for a request, in nanoseconds.
    pub processor: f64,
}

/// One end of the data process, with all rings connected.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct End {
    /// Seconds until all rings were served again.
    pub served: f64,
    /// Seconds until all front ends were connected again.
    pub connected: f64,
    /// Seconds of processor time that both processes have taken for that.
    pub processor: f64,
}

/// A line of the table: what was measured, the figure, what is to be known beside it, the bars.
pub type Line = [String; 4];

impl Rings {
    /// Returns the lines of the table.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = self.standing();
        lines.extend(self.rates.iter().map(Rate::line));
        lines.extend(self.shares.iter().map(Share::line));
        lines.extend(self.again());
        lines
    }

    /// Returns the line of the data process's ends, if there were any.
    fn again(&self) -> Option<Line> {
        let of = |figure: fn(&End) -> f64| {
            let mut figures: Vec<_> = self.ends.iter().map(figure).collect();
            let worst = figures.iter().copied().fold(0.0, f64::max);
            (median(&mut figures), worst)
        };
        let [served, connected] = [of(|end| end.served), of(|end| end.connected)];
        let beside = format!(
            "at worst {:.2} s; front ends connected again: {:.2} s, at worst {:.2} s, of which {:.2} s of a processor in the daemon",
            served.1,
            connected.0,
            connected.1,
            of(|end| end.processor).0
        );
        let what = format!("served again after SIGKILL, {} times", self.ends.len());
        let line = [what, format!("{:.2} s", served.0), beside, verdict(AGAIN, connected.1)];
        (!self.ends.is_empty()).then_some(line)
    }

    /// Returns the lines of a daemon that has nothing to do.
    fn standing(&self) -> Vec<Line> {
        let [served, connected] = self.started;
        let [data, control] = [0, 1].map(|process| {
            let (all, one) = (&self.held[process], &self.held_by_one[process]);
            let kib = |of: fn(&Held) -> u64| per_ring([of(all), of(one)], self.count) / 1024.0;
            let open = [all, one].map(|held| held.descriptors as u64);
            let memory = (kib(|held| held.memory.private), kib(|held| held.memory.anonymous));
            (memory.0, memory.1, per_ring(open, self.count))
        });
        let memory = data.0 + control.0;
        let split = format!(
            "data process {:.0} (anonymous {:.0}), control process {:.0} (anonymous {:.0})",
            data.0, data.1, control.0, control.1
        );
        let both = "data process + control process".to_owned();
        let [threads, control_threads] = self.held.map(|held| held.threads);
        let idle = 100.0 * self.idle;
        vec![
            [
                format!("start of {} rings", self.count),
                format!("{served:.2} s"),
                format!(
                    "front ends connected: {connected:.2} s, of which {:.2} s of a processor in the daemon",
                    self.started_for
                ),
                verdict(START, connected),
            ],
            [
                "memory".to_owned(),
                format!("{memory:.0} KiB a ring"),
                split,
                verdict(MEMORY, memory),
            ],
            [
                "threads".to_owned(),
                format!("{threads} + {control_threads}"),
                both.clone(),
                String::new(),
            ],
            [
                "descriptors".to_owned(),
                format!("{:.1} + {:.1} a ring", data.2, control.2),
                both,
                String::new(),
            ],
            ["idle".to_owned(), format!("{idle:.2} %"), String::new(), verdict(IDLE, idle)],
        ]
    }
}

/// Returns how much there is for each ring beyond the first, from that with all and with one.
fn per_ring([all, one]: [u64; 2], rings: usize) -> f64 {
    (all as f64 - one as f64) / (rings as f64 - 1.0).max(1.0)
}

fn verdict(bar: Bar, figure: f64) -> String {
    verdicts(&[bar], &Found { figure: Some(figure), ..Found::default() })
}

impl Rate {
    fn line(&self) -> Line {
        let rings = if self.active == 1 { "ring" } else { "rings" };
        let beside = format!(
            "of one ring {} (copies alone {}), of copies {}, of a single daemon {}; {} of a processor and {:.2} kicks each, visits in vain {}",
            part(Some(self.of_one)),
            part(Some(self.copies_of_one)),
            part(Some(self.of_copies)),
            part(Some(self.of_single)),
            time(self.processor),
            self.kicks,
            part(Some(self.waited)),
        );
        let found = Found { of_one: Some(self.of_one), ..Found::default() };
        let wanted = if self.active == 1 { String::new() } else { verdicts(&[RATE], &found) };
        let what = format!("{}-byte writes of {} {rings}", self.bytes, self.active);
        [what, format!("{}/s", count(self.per_second)), beside, wanted]
    }
}

impl Share {
    /// Name of the rounds that others are compared with.
    pub const QUIET: &str = "others alike";

    fn line(&self) -> Line {
        let wanted = if self.beside == Self::QUIET {
            verdict(FAIR, self.worst)
        } else {
            verdict(NEIGHBOUR, self.times_quiet)
        };
        let beside = format!(
            "p50 {}, worst ring x {:.2}, x quiet {:.2}; {}/s in all, {} of a processor and {:.2} kicks each",
            time(self.p50),
            self.worst,
            self.times_quiet,
            count(self.rate),
            time(self.processor),
            self.kicks,
        );
        [
            format!("one at a time beside {}", self.beside),
            format!("p99 {}", time(self.p99)),
            beside,
            wanted,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_of_a_ring_is_that_of_rings_beyond_the_first() {
        let cost = per_ring([1000, 100], 10);
        assert!((cost - 100.0).abs() < 1e-9, "{cost}");
        assert!(per_ring([1, 2], 1) < 0.0, "no division by zero");
    }

    #[test]
    fn rate_is_compared_with_one_ring() {
        let rate = |active, of_one| {
            let line = Rate {
                bytes: 512,
                active,
                per_second: 1e6,
                of_one,
                of_single: 1.0,
                of_copies: 1.0,
                copies_of_one: 1.0,
                processor: 300.0,
                kicks: 0.1,
                waited: 0.5,
            }
            .line();
            line[3].clone()
        };
        assert_eq!(rate(1, 1.0), "");
        assert_eq!(rate(10, 0.9), ">= 90 % of one ring: yes");
        assert_eq!(rate(10, 0.89), ">= 90 % of one ring: NO");
    }

    #[test]
    fn rings_alike_are_to_be_fair_and_others_no_burden() {
        let line = |beside, worst, times_quiet| {
            Share {
                beside,
                p50: 1e3,
                p99: 2e3,
                worst,
                times_quiet,
                rate: 1e6,
                kicks: 0.1,
                processor: 300.0,
            }
            .line()[3]
                .clone()
        };
        assert_eq!(line(Share::QUIET, 3.0, 1.0), "<= 3 x the median ring's: yes");
        assert_eq!(line(Share::QUIET, 3.1, 1.0), "<= 3 x the median ring's: NO");
        assert_eq!(line("noise", 9.0, 1.5), "<= 1.5 x without: yes");
        assert_eq!(line("noise", 1.0, 1.6), "<= 1.5 x without: NO");
    }
}
