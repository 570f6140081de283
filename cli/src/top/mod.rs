//! `blockring top`: a live view of many rings.

mod detail;
mod draw;
mod input;
mod keys;
mod live;
mod model;
mod report;
mod sampler;
mod state;
mod terminal;
pub mod words;

use super::address::{Address, positive_seconds, sector_size};
use super::failure::{Failure, Outcome};
use super::forward::rings::matches;
use super::forward::settings::RingSource;
use super::output::{print, require_output};
use super::sample::refuse_driven;
use clap::builder::{OsStringValueParser, TypedValueParser};
use model::Model;
use ring_program::Stop;
use sampler::{PATIENCE, Sampler};
use shared_block_ring::format::SectorSize;
use shared_block_ring::wait::wait_readable;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// Show many rings as they change: rates, fill, age of the oldest item, refusals, state
#[derive(clap::Args)]
#[command(after_help = "\
Each RING is an address as blockring --help has it, but none of vhost-user: and pci:. A path can be
a pattern (quoted), which is looked up again as long as the view runs. A ring that goes or fails
stays in sight with the reason, and is tried again. No ring is changed, and no role taken.

Keys: arrows select a ring, Enter shows its page (history, refusals, who has which role), / filters
by name; n s i o u a r sort by name, state, rate in, rate out, used part, age of the oldest item and
refusals, R reverses; Esc goes back, q ends. NO_COLOR in the environment turns colours off.

An age with > in front is the least one: the item was there before the view.

Examples:
  blockring top
  blockring top --interval 0.5 'unix:/run/blockring/*.out' ring.img
  blockring top --once ring.img
  blockring top --json 'unix:/run/blockring/*.out' | jq 'select(.state == \"no consumer\")'")]
pub struct Top {
    /// The rings
    #[arg(value_name = "RING", default_value = "unix:/run/blockring/*.out", value_parser = OsStringValueParser::new().try_map(|text: OsString| RingSource::new(&text)))]
    rings: Vec<RingSource>,
    /// Sector size in bytes of rings in files, if they were not made with 512
    #[arg(long, value_name = "N", value_parser = sector_size)]
    sector_size: Option<SectorSize>,
    /// Time between two looks at each ring, in seconds
    #[arg(long, value_name = "S", default_value = "1", value_parser = positive_seconds, allow_negative_numbers = true)]
    interval: Duration,
    /// Print one frame as text, after two looks, and end
    #[arg(long)]
    once: bool,
    /// Print a JSON line for each ring and look, until a signal; with --once after two looks
    #[arg(long)]
    json: bool,
}

/// The rings that are watched: their patterns, the looks at them, and the results.
struct Watch {
    sources: Vec<RingSource>,
    sampler: Sampler,
    model: Model,
}

impl Watch {
    /// Looks up the patterns, and has all rings looked at, and one of them more closely.
    fn look(&mut self, closely: Option<&PathBuf>) {
        let mut there = BTreeSet::new();
        for source in &self.sources {
            let Some(pattern) = source.pattern() else {
                there.insert(source.address.clone());
                continue;
            };
            there.extend(matches(&pattern));
        }
        self.model.forget(&there, SystemTime::now());
        for address in there {
            self.model.add(address);
        }
        for address in self.model.addresses() {
            self.sampler.look(address, Some(address) == closely);
        }
    }

    /// Takes the results of looks, and returns whether there were any. A ring that is standard
    /// output is an error: reports would be written into it.
    fn take(&mut self) -> Result<bool, Failure> {
        let seen = self.sampler.take();
        let any = !seen.is_empty();
        for look in seen {
            if let Err(failure @ Failure::OutputIsRing(_)) = look.result {
                return Err(failure);
            }
            self.model.note(&look.address, look.result, SystemTime::now());
        }
        Ok(any)
    }

    /// Waits until all looks under way were taken. Returns false if the program is to end.
    fn finish(&mut self, stop: &Stop) -> Result<bool, Failure> {
        while self.sampler.is_busy() {
            let waited = wait_readable(&[stop.fd(), self.sampler.ready()], None);
            if waited.map_err(Failure::io("cannot wait"))? == Some(0) {
                return Ok(false);
            }
            self.take()?;
        }
        Ok(true)
    }
}

impl Top {
    pub fn run(self, stop: &Stop) -> Outcome {
        require_output()?;
        for source in self.rings.iter().filter(|source| source.pattern().is_none()) {
            refuse_driven(&Address::new(source.address.clone(), None))?;
        }
        let sampler = Sampler::start(self.sector_size, PATIENCE)
            .map_err(Failure::io("cannot start a thread"))?;
        let watch = Watch { sources: self.rings, sampler, model: Model::default() };
        if self.once || self.json {
            return reports(watch, stop, self.interval, self.once, self.json);
        }
        live::run(watch, stop, self.interval)
    }
}

/// Prints frames or JSON lines.
fn reports(mut watch: Watch, stop: &Stop, interval: Duration, once: bool, json: bool) -> Outcome {
    let mut next = Instant::now();
    for turn in 0_u64.. {
        let left = next.saturating_duration_since(Instant::now());
        let waited = wait_readable(&[stop.fd()], Some(left));
        if waited.map_err(Failure::io("cannot wait"))?.is_some() {
            return Ok(());
        }
        next = (next + interval).max(Instant::now());
        watch.look(None);
        if !watch.finish(stop)? {
            return Ok(());
        }
        // Rates are known from the second look on.
        if once && turn == 0 {
            continue;
        }
        let text = if json {
            report::lines(&watch.model)
        } else {
            report::frame(&watch.model, report::width())
        };
        if !text.is_empty() {
            print(text.trim_end(), Some(stop))?;
        }
        if once {
            break;
        }
    }
    Ok(())
}
