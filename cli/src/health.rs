//! `blockring health`.

use super::address::{Address, PATIENCE, seconds, sector_size};
use super::failure::{Failure, Outcome, without_name};
use super::forward::rings::matches;
use super::forward::settings::RingSource;
use super::output::{print, require_output};
use super::sample::{Oldest, Sample, age_in_words, refuse_driven};
use clap::builder::{OsStringValueParser, TypedValueParser};
use ring_program::text;
use serde::Serialize;
use shared_block_ring::Position;
use shared_block_ring::device::shown;
use shared_block_ring::format::SectorSize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// Rings that are looked at side by side: backends that do not answer are waited for together.
const THREADS: usize = 8;

/// The longest time for which a consumer is watched that may be stuck: one that works moves within
/// it.
const WATCH: Duration = Duration::from_secs(1);

/// The pause between two looks at a consumer that is watched.
const PAUSE: Duration = Duration::from_millis(20);

/// Say whether rings are healthy, for probes: one line a ring, and the exit code
#[derive(clap::Args)]
#[command(after_help = "\
Without options a ring is healthy if it can be opened, its pointers are sound, and its backend, if
it has one, reports no fault: a flush that has failed, or a file that was truncated, moved, removed
or replaced. The exit code is 0 if all rings are healthy. If not, it is that of the worst one: 1 if
a ring passes a limit, has a fault or cannot be opened, 3 if a backend does not answer, 5 if
something is no ring or a damaged one.

A path can be a pattern (*, ?, [...]; quoted, so that the shell leaves it alone). One that matches
nothing stands for a ring that is not there.

A ring tells when the last two batches were published. If its oldest item may be older than that,
and the consumer has not moved for longer than --max-age, it is watched for up to a second: if it
does not move, the ring is not healthy. So it is with a ring that tells no times (create --plain).

Examples:
  blockring health --max-used 80 --max-age 60 --need-consumer unix:/run/vm1.out
  blockring health 'unix:/run/blockring/*.out'
  blockring health --json ring.img other.img")]
pub struct Health {
    /// The rings, as blockring --help has addresses, but none of vhost-user: and pci:
    #[arg(value_name = "RING", required = true, value_parser = OsStringValueParser::new().try_map(|text: OsString| RingSource::new(&text)))]
    rings: Vec<RingSource>,
    /// Sector size in bytes of rings in files, if they were not made with 512
    #[arg(long, value_name = "N", value_parser = sector_size)]
    sector_size: Option<SectorSize>,
    /// Greatest age of the oldest item, in seconds
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    max_age: Option<Duration>,
    /// Greatest part of the ring that may be in use, in percent
    #[arg(long, value_name = "PERCENT", value_parser = percent, allow_negative_numbers = true)]
    max_used: Option<f64>,
    /// A process has to have the role of the consumer; for a guest the backend has it
    #[arg(long)]
    need_consumer: bool,
    /// Longest wait for the answer of each backend, in seconds [default: 5]
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    timeout: Option<Duration>,
    /// Print one JSON object instead of text, also if the command fails
    #[arg(long)]
    pub json: bool,
}

fn percent(text: &str) -> Result<f64, &'static str> {
    let number = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    number.ok_or("it takes a number of percent from 0 to 100, such as 80")
}

/// The health of all rings.
#[derive(Default, Serialize)]
pub struct Verdicts {
    healthy: bool,
    rings: Vec<Verdict>,
}

/// The health of one ring.
#[derive(Serialize)]
struct Verdict {
    ring: String,
    healthy: bool,
    /// Why the ring is not healthy.
    reasons: Vec<String>,
    #[serde(flatten)]
    figures: Option<Figures>,
    #[serde(skip)]
    code: u8,
}

/// Figures of a ring that could be opened.
#[derive(Serialize)]
struct Figures {
    uuid: Option<String>,
    capacity: u64,
    used: u64,
    items: Option<u64>,
    /// The least age of the oldest item; null without one, and where the ring tells no times.
    oldest_item_age_seconds: Option<f64>,
    suspend: bool,
    suspend_ack: bool,
    has_producer: Option<bool>,
    has_consumer: Option<bool>,
    /// Requests of the guest that the backend has refused, by reason; empty without a backend.
    refused: BTreeMap<String, u64>,
    /// The figures in a line for people.
    #[serde(skip)]
    words: String,
}

impl Health {
    pub fn run(self, verdicts: &mut Verdicts) -> Outcome {
        require_output()?;
        let rings = self.rings.iter().flat_map(rings_of);
        let addresses: Vec<_> = rings.map(|ring| Address::new(ring, self.sector_size)).collect();
        addresses.iter().try_for_each(refuse_driven)?;
        self.examine_all(&addresses, verdicts)?;
        let sick = verdicts.rings.iter().filter(|verdict| !verdict.healthy);
        let (count, all) = (sick.clone().count(), verdicts.rings.len());
        let Some(code) = sick.map(|verdict| verdict.code).max() else {
            verdicts.healthy = true;
            return Ok(());
        };
        let what = if all == 1 {
            "the ring is not healthy".to_owned()
        } else {
            format!("{count} of {all} rings are not healthy")
        };
        Err(Failure::Unhealthy { what, code })
    }

    /// Looks at all rings, a few at a time, and reports them in their order.
    fn examine_all(&self, addresses: &[Address], verdicts: &mut Verdicts) -> Outcome {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let (done, results) = channel();
            for _ in 0..THREADS.min(addresses.len()) {
                let (done, next) = (done.clone(), &next);
                let look = move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(address) = addresses.get(index) else { return };
                        // Nobody waits for verdicts after a failure.
                        if done.send((index, self.examine(address))).is_err() {
                            return;
                        }
                    }
                };
                let thread = thread::Builder::new().name("look".to_owned());
                thread.spawn_scoped(scope, look).map_err(Failure::io("cannot start a thread"))?;
            }
            drop(done);
            // Verdicts that came before those of rings in front of theirs.
            let mut early = BTreeMap::new();
            for (index, verdict) in results {
                early.insert(index, verdict);
                while let Some(verdict) = early.remove(&verdicts.rings.len()) {
                    let verdict = verdict?;
                    if !self.json {
                        print(&verdict.words(), None)?;
                    }
                    verdicts.rings.push(verdict);
                }
            }
            Ok(())
        })
    }

    fn examine(&self, address: &Address) -> Result<Verdict, Failure> {
        let look = || Sample::take(address, self.timeout.unwrap_or(PATIENCE), false);
        let ring = address.name();
        match look().and_then(|sample| Ok((self.reasons(&sample, &look)?, sample))) {
            Ok((reasons, sample)) => {
                let healthy = reasons.is_empty();
                Ok(Verdict { ring, healthy, reasons, figures: Some(Figures::of(&sample)), code: 1 })
            }
            // No report may be printed there.
            Err(failure @ Failure::OutputIsRing(_)) => Err(failure),
            Err(failure) => {
                let reason = without_name(&failure.words(), &ring).to_owned();
                let (reasons, code) = (vec![reason], failure.code());
                Ok(Verdict { ring, healthy: false, reasons, figures: None, code })
            }
        }
    }

    /// Returns what is wrong with a ring that was looked at.
    fn reasons(
        &self,
        sample: &Sample,
        look: &dyn Fn() -> Result<Sample, Failure>,
    ) -> Result<Vec<String>, Failure> {
        let mut reasons: Vec<_> = sample.fault().map(shown).into_iter().collect();
        let used = sample.share() * 100.0;
        if let Some(most) = self.max_used.filter(|most| used > *most) {
            reasons.push(format!("{used:.1} % is used (at most {most} %)"));
        }
        if let Some(most) = self.max_age {
            match age_verdict(sample, most) {
                AgeVerdict::Young => {}
                AgeVerdict::Old(words) => reasons.push(words),
                AgeVerdict::Stuck(words) => {
                    if !moves(sample.consumer, look)? {
                        reasons.push(words);
                    }
                }
            }
        }
        let no_consumer = match sample.has_consumer {
            Some(true) => None,
            Some(false) => Some("no process is its consumer"),
            None => Some("it is not known whether a process is its consumer"),
        };
        if let Some(words) = no_consumer.filter(|_| self.need_consumer) {
            reasons.push(words.to_owned());
        }
        Ok(reasons)
    }
}

/// Returns the addresses that a ring's argument stands for: at least one, so that none is healthy
/// for not being there.
fn rings_of(source: &RingSource) -> Vec<PathBuf> {
    let found: Vec<_> = source.pattern().iter().flat_map(matches).collect();
    if found.is_empty() { vec![source.address.clone()] } else { found }
}

/// The verdict on the age of the oldest item, after one look.
#[derive(Debug, PartialEq)]
enum AgeVerdict {
    Young,
    /// It is too old, in words.
    Old(String),
    /// It is too old unless the consumer moves, in words.
    Stuck(String),
}

fn age_verdict(sample: &Sample, most: Duration) -> AgeVerdict {
    if tells_no_times(sample) {
        let words = "items wait, the ring tells no times, and the consumer does not move";
        return AgeVerdict::Stuck(words.to_owned());
    }
    let at_most = age_in_words(most);
    let old = |age: Duration| {
        let age = age_in_words(age);
        AgeVerdict::Old(format!("the oldest item is {age} old (at most {at_most})"))
    };
    match sample.oldest() {
        Oldest::Exactly(age) | Oldest::AtLeast(age) if age > most => old(age),
        Oldest::None | Oldest::Exactly(_) => AgeVerdict::Young,
        Oldest::AtLeast(_) => match sample.consumer_idle() {
            Some(idle) if idle > most => AgeVerdict::Stuck(format!(
                "items wait, and the consumer has not moved for {} (at most {at_most})",
                age_in_words(idle)
            )),
            _ => AgeVerdict::Young,
        },
    }
}

/// Returns whether items wait, and the ring does not tell when any of them was published.
fn tells_no_times(sample: &Sample) -> bool {
    sample.used() > 0 && sample.producer_ns.is_none() && sample.earlier.is_none()
}

/// Watches whether the consumer moves on from a position.
fn moves(from: Position, look: &dyn Fn() -> Result<Sample, Failure>) -> Result<bool, Failure> {
    let begun = Instant::now();
    while begun.elapsed() < WATCH {
        thread::sleep(PAUSE);
        if look()?.consumer != from {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Figures {
    fn of(sample: &Sample) -> Self {
        let (age, oldest) = match sample.oldest() {
            Oldest::None => (None, String::new()),
            _ if tells_no_times(sample) => (None, String::new()),
            Oldest::Exactly(age) => (Some(age), format!(", the oldest {} old", age_in_words(age))),
            Oldest::AtLeast(age) => {
                (Some(age), format!(", the oldest at least {} old", age_in_words(age)))
            }
        };
        let items = sample
            .items()
            .map_or(String::new(), |count| format!(", {count} {}", text::items(count)));
        let suspended = match (sample.suspend, sample.suspended) {
            (_, true) => ", suspended",
            (true, false) => ", asked to suspend",
            (false, false) => "",
        };
        let used = 100.0 * sample.share();
        Self {
            uuid: sample.uuid.clone(),
            capacity: sample.capacity,
            used: sample.used(),
            items: sample.items(),
            oldest_item_age_seconds: age.map(|age| age.as_secs_f64()),
            suspend: sample.suspend,
            suspend_ack: sample.suspended,
            has_producer: sample.has_producer,
            has_consumer: sample.has_consumer,
            refused: sample.refusals().map(|(reason, count)| (reason.to_owned(), count)).collect(),
            words: format!("{used:.1} % used{items}{oldest}{suspended}"),
        }
    }
}

impl Verdict {
    fn words(&self) -> String {
        let Self { ring, healthy, reasons, figures, .. } = self;
        let figures = figures.as_ref().map(|figures| &figures.words);
        match figures {
            Some(figures) if *healthy => format!("{ring}: healthy: {figures}"),
            Some(figures) => format!("{ring}: not healthy: {}; {figures}", reasons.join("; ")),
            None => format!("{ring}: not healthy: {}", reasons.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::sample::tests::sample;
    use super::*;
    use serde_json::json;

    #[test]
    fn consumer_that_moves_while_it_is_watched_works() {
        let looks = std::cell::Cell::new(0);
        let look = || {
            looks.set(looks.get() + 1);
            Ok(sample(if looks.get() < 3 { 8 } else { 12 }, 400))
        };
        assert!(moves(Position::new(8).unwrap(), &look).unwrap());
        assert_eq!(looks.get(), 3);
        let gone = || Err(Failure::Missing("gone".to_owned()));
        assert!(moves(Position::new(8).unwrap(), &gone).is_err());
    }

    fn health(need_consumer: bool) -> Health {
        Health {
            rings: Vec::new(),
            sector_size: None,
            max_age: None,
            max_used: None,
            need_consumer,
            timeout: None,
            json: false,
        }
    }

    #[test]
    fn fault_that_the_backend_reports_is_a_reason() {
        let health = health(false);
        let reasons = |backend| {
            let sample = Sample { backend, ..sample(8, 400) };
            health.reasons(&sample, &|| Ok(sample.clone())).unwrap()
        };
        // A backend of an earlier version reports none.
        for sound in [None, Some(json!({})), Some(json!({ "fault": null }))] {
            assert_eq!(reasons(sound), Vec::<String>::new());
        }
        assert_eq!(reasons(Some(json!({ "fault": "the file was moved" }))), ["the file was moved"]);
    }

    #[test]
    fn consumer_that_may_be_missing_is_not_taken_for_one() {
        let health = health(true);
        for (has_consumer, words) in
            [(Some(true), None), (Some(false), Some("no process is")), (None, Some("not known"))]
        {
            let sample = Sample { has_consumer, ..sample(8, 400) };
            let reasons = health.reasons(&sample, &|| Ok(sample.clone())).unwrap();
            assert_eq!(reasons.len(), usize::from(words.is_some()));
            assert!(words.is_none_or(|words| reasons[0].contains(words)), "{reasons:?}");
        }
    }

    #[test]
    fn age_that_the_ring_does_not_tell_is_judged_by_the_consumer() {
        let most = Duration::from_secs(60);
        assert_eq!(age_verdict(&sample(8, 8), most), AgeVerdict::Young);
        // Published 10 s ago; the consumer has not moved for 100 s.
        let mut ring = sample(8, 400);
        let AgeVerdict::Stuck(words) = age_verdict(&ring, most) else { panic!() };
        assert_eq!(words, "items wait, and the consumer has not moved for 1 min (at most 1 min)");
        ring.earlier = Some((Position::new(8).unwrap(), 0));
        assert_eq!(age_verdict(&ring, most), AgeVerdict::Young, "it was published at once");
        ring.earlier = Some((Position::new(12).unwrap(), 0));
        let AgeVerdict::Old(words) = age_verdict(&ring, most) else { panic!() };
        assert_eq!(words, "the oldest item is 16 min old (at most 1 min)");
        ring.earlier = None;
        ring.consumer_ns = Some(995_000_000_000);
        assert_eq!(age_verdict(&ring, most), AgeVerdict::Young, "the consumer is at work");
        let silent = Sample { producer_ns: None, ..ring.clone() };
        let AgeVerdict::Stuck(words) = age_verdict(&silent, most) else { panic!() };
        assert!(words.contains("tells no times"), "{words}");
        assert_eq!(Figures::of(&silent).oldest_item_age_seconds, None);
        // It has never moved, since the ring was made.
        ring.consumer_ns = None;
        assert!(matches!(age_verdict(&ring, most), AgeVerdict::Stuck(_)));
        ring.created_ns = Some(999_000_000_000);
        assert_eq!(age_verdict(&ring, most), AgeVerdict::Young, "it is new");
    }
}
