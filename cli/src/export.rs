//! `blockring export`.

use super::failure::{Failure, Outcome};
use super::forward::rings::{Found, Remedies, RingSpec, find};
use super::forward::settings::RingSource;
use super::observed::{Observed, PATIENCE, listen};
use super::output::print;
use clap::builder::{OsStringValueParser, TypedValueParser};
use log::Level;
use ring_metrics::catalogue::BUILD;
use ring_metrics::{Address, Format, Program, Scrape, Server, Source};
use ring_program::{Stop, descriptors};
use shared_block_ring::wait::wait_readable;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

/// The remedies of a command that has no configuration.
const RENAME: Remedies = Remedies {
    unusable: "name a symbolic link to it that has another name",
    twin: "name a symbolic link to one of them that has another name",
};

/// The time after which patterns are looked up again.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Descriptors that are kept for clients of the metrics, and for this program itself.
const OTHERS: u64 = 32;

const EXAMPLES: &str = "\
Each RING is an address as blockring --help has it, but none of vhost-user: and pci:. A path can be
a pattern (unix:/run/blockring/*.out, quoted). The name of a ring is its socket's or file's without
the extension. No ring is changed, and no role taken.

Examples:
  blockring export ring.img                            print the metrics once
  blockring export 'unix:/run/blockring/*.out' --metrics 127.0.0.1:9102
  curl --unix-socket /run/rings.metrics http://localhost/metrics";

/// Offer metrics of rings, for Prometheus
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Export {
    /// The rings
    #[arg(value_name = "RING", required = true, value_parser = OsStringValueParser::new().try_map(|text: OsString| RingSource::new(&text)))]
    rings: Vec<RingSource>,
    /// Answer GET /metrics here until a signal, unix:PATH or 127.0.0.1:PORT; repeat it for more.
    /// Without it the metrics are printed once
    #[arg(long, value_name = "ADDRESS")]
    metrics: Vec<Address>,
}

/// The rings of a command line.
struct Exporter {
    sources: Vec<RingSource>,
    specs: BTreeMap<String, RingSpec>,
    /// Warnings about rings that are left out, as they were logged last.
    left_out: Vec<String>,
    next_look_up: Instant,
    observed: Observed,
    /// Descriptors for the rings.
    files: u64,
}

impl Export {
    pub fn run(self, stop: &Stop) -> Outcome {
        let Found { refused, rings, odd, .. } = find(&self.rings, RENAME);
        if let Some(words) = refused.first() {
            return Err(Failure::Refused(words.clone()));
        }
        if let Some(driven) = rings.values().find(|spec| spec.is_driven()) {
            let words = "only one process can use it: ask its producer or consumer for metrics";
            return Err(Failure::Refused(format!("{}: {words}", driven.shown())));
        }
        let files = descriptors::raise();
        let files = files.map_err(Failure::io("cannot read the limit of open files"))?;
        let mut exporter = Exporter {
            sources: self.rings,
            specs: rings,
            left_out: Vec::new(),
            next_look_up: Instant::now() + LOOK_UP,
            observed: Observed::new(Level::Warn),
            files: files.saturating_sub(OTHERS),
        };
        exporter.leave_out(odd);
        if self.metrics.is_empty() {
            for spec in exporter.specs.values() {
                // Silent backends take their time, one after another.
                if stop.requested() {
                    stop.end_process();
                }
                spec.address().refuse_as_output(PATIENCE)?;
            }
            let mut scrape = Scrape::default();
            exporter.scrape(&mut scrape);
            let text = scrape.encode(Format::Prometheus).map_err(std::io::Error::other);
            let text = text.map_err(Failure::io("cannot write the metrics"))?;
            return print(text.trim_end(), Some(stop));
        }
        let server = Server::start(listen(&self.metrics)?, exporter);
        let server = server.map_err(Failure::io("cannot start a thread"))?;
        let asked = || wait_readable(&[stop.fd()], None);
        while asked().map_err(Failure::io("cannot wait for a signal"))?.is_none() {}
        drop(server);
        Ok(())
    }
}

impl Exporter {
    /// Logs which rings are left out, each once as long as that lasts.
    fn leave_out(&mut self, odd: Vec<String>) {
        for words in odd.iter().filter(|words| !self.left_out.contains(words)) {
            log::warn!("a ring is left out: {words}");
        }
        self.left_out = odd;
    }
}

impl Source for Exporter {
    fn scrape(&mut self, scrape: &mut Scrape) {
        scrape.whole(&BUILD, &[Program::Export.name(), env!("CARGO_PKG_VERSION")], 1);
        let now = Instant::now();
        if now >= self.next_look_up {
            let Found { refused, rings, odd, .. } = find(&self.sources, RENAME);
            self.specs = rings;
            self.leave_out(refused.into_iter().chain(odd).collect());
            self.next_look_up = now + LOOK_UP;
        }
        self.observed.report(&self.specs, self.files, scrape);
    }

    fn health(&mut self) -> Result<String, String> {
        Ok("ok".to_owned())
    }
}
