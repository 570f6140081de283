//! `blockring forward`: the items of many rings into one sink.
//!
//! The engine owns the rings, on one thread. A sink reports what has arrived, and only that is
//! freed.

mod engine;
mod folders;
mod foreign;
mod memory;
mod opener;
mod retry;
mod ring;
pub mod rings;
pub mod settings;
pub mod sink;
mod status;
mod values;

use super::address::{positive_seconds, seconds};
use super::failure::{Failure, Outcome};
use super::framing::{Framing, OnSeparator};
use super::observed::listen;
use super::output::{print, require_messages};
use clap::builder::{OsStringValueParser, TypedValueParser};
use engine::{Drain, Engine, Report};
use ring_metrics::{Address, Server};
use ring_program::{ServiceManager, Stop, parse_size};
use settings::{Destination, RingSource, Settings, SinkOptions};
use sink::exec::ExecOptions;
use sink::file::FileOptions;
use sink::journald::JournaldOptions;
use sink::nats::options::NatsOptions;
use status::Forwarder;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Each RING is an address as blockring --help has it. A path can be a pattern
(unix:/run/blockring/*.out, quoted): rings that appear are taken up, and those that go are forwarded
to their end. The name of a ring is its socket's or file's without the extension. Each ring keeps
its order, and none waits for another. A ring that fails is tried again by itself.

Items are freed when they have arrived for good. What has no room in --max-memory stays in the ring,
and so the guest waits.

--to file:PATH appends to a file, which {ring} in PATH makes one for each ring, and records the
position in PATH.positions: after any crash each item is there once.
--to exec:COMMAND gives items to the standard input of sh -c COMMAND, one for each ring, with
BLOCKRING_RING in its environment. In front of each item stands a position, which COMMAND prints in
a line of its own once it has dealt with the item and all before it. Items without that come again.
--to journald:DIRECTORY has a journal file for each ring, which the host's systemd-journal-remote
writes: after any crash of processes each item is there once. --to journald: sends items to the
journal of this host, by its socket: at least once. Items that are journal export entries keep their
fields.
--to nats://HOST publishes to a JetStream stream of a NATS server of version 2.12 or newer: each
item is there once. --stream and --subject are needed; docs/jetstream.md has the rest.

SIGHUP reads --config again and looks up patterns; a configuration with an error changes nothing. A
service manager is told of start, reload, life and end (NOTIFY_SOCKET, WATCHDOG_USEC).
SIGTERM and SIGINT end forward, after what is in flight has arrived or --grace has passed, with exit
code 0. A --drain that --drain-timeout ends has exit code 3. With --json the last line of standard
error is one JSON object, however forward ends.

Examples:
  blockring forward 'unix:/run/blockring/*.out' --to 'file:/var/log/guests/{ring}.log' \\
      --rotate-size 100M --keep 10 --compress zstd
  blockring forward --drain ring.img --to file:items   append what is in the ring, and end
  blockring forward ring.img --to 'exec:t=$(printf \"\\t\"); while IFS= read -r line; do
      store \"${line#*\"$t\"}\" && echo \"${line%%\"$t\"*}\" || exit 1; done'
  blockring forward 'unix:/run/blockring/*.out' --to nats://localhost --stream VMS \\
      --subject 'vm.{ring}.log' --create-stream
  blockring forward 'unix:/run/blockring/*.out' --to journald:/var/log/journal/guests
  blockring forward --config /etc/blockring/forward.toml
  blockring forward --check-config --config forward.toml";

/// Forward the items of rings into files, programs, a journal or a JetStream stream
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Forward {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    items: ItemOptions,
    #[command(flatten)]
    file: FileOptions,
    #[command(flatten)]
    exec: ExecOptions,
    #[command(flatten)]
    journald: JournaldOptions,
    #[command(flatten)]
    nats: NatsOptions,
    /// Take rings, sink and options from this TOML file
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["Given", "ItemOptions", "FileOptions", "ExecOptions", "JournaldOptions", "NatsOptions"],
    )]
    config: Option<PathBuf>,
    /// Check the options or the configuration, say which rings there are now, and end
    #[arg(long)]
    check_config: bool,
    /// End when all items of all rings have arrived, or with the first error
    #[arg(long)]
    drain: bool,
    /// End --drain after S seconds with exit code 3, if not everything has arrived by then
    #[arg(long, value_name = "S", requires = "drain", value_parser = seconds, allow_negative_numbers = true)]
    drain_timeout: Option<Duration>,
    /// Report counts, exit code and error as one JSON object in the last line of standard error
    #[arg(long)]
    pub json: bool,
}

/// Rings, sink and limits.
#[derive(clap::Args)]
struct Given {
    /// The rings to forward
    #[arg(value_name = "RING", required_unless_present = "config", value_parser = OsStringValueParser::new().try_map(|text: OsString| RingSource::new(&text)))]
    rings: Vec<RingSource>,
    /// Where to: `nats://HOST[:PORT]`, `tls://HOST[:PORT]`, `file:PATH`, `exec:COMMAND`,
    /// `journald:DIRECTORY` or `journald:`
    #[arg(long, value_name = "SINK", required_unless_present = "config", value_parser = Destination::parse)]
    to: Option<Destination>,
    /// Memory for items that were read and have not arrived, over all rings
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = |text: &str| parse_size(text).and_then(settings::memory))]
    max_memory: u64,
    /// The longest time in seconds to wait for what is in flight, when asked to end
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds, allow_negative_numbers = true)]
    grace: Duration,
    /// Do not flush the rings: faster; after a crash of the machine or a power loss, items that
    /// have arrived may come again
    #[arg(long)]
    no_flush: bool,
    /// Warn, and then once a minute, of a ring whose items have had no acknowledgement for S
    /// seconds
    #[arg(long, value_name = "S", default_value = "30", value_parser = positive_seconds, allow_negative_numbers = true)]
    warn_after: Duration,
    /// Offer metrics (GET /metrics) here, unix:PATH or 127.0.0.1:PORT; repeat it for more. They are
    /// also offered on sockets named `metrics` that a service manager passes
    #[arg(long, value_name = "ADDRESS")]
    metrics: Vec<Address>,
}

/// Options of how items are written.
#[derive(clap::Args)]
struct ItemOptions {
    /// How items are separated in files, and for commands [default: lines]
    #[arg(long, value_enum)]
    framing: Option<Framing>,
    /// What to do about an item that contains the byte that ends items: fail leaves its ring alone
    /// [default: fail]
    #[arg(long, value_enum)]
    on_separator: Option<OnSeparator>,
}

impl Forward {
    pub fn run(self, stop: &Stop, report: &mut Report) -> Outcome {
        let outcome = self.carry_out(stop, report).map_err(|failure| match failure {
            // The words are about a file then, not about the use of this program.
            Failure::Usage(words) if self.config.is_some() => Failure::Refused(words),
            other => other,
        });
        if let Err(failure) = &outcome
            && !self.check_config
        {
            ServiceManager::connect().status(&failure.words());
        }
        outcome
    }

    fn carry_out(&self, stop: &Stop, report: &mut Report) -> Outcome {
        require_messages(self.json)?;
        let hangup = Stop::on([libc::SIGHUP]);
        let hangup = hangup.map_err(Failure::io("cannot set up signals"))?;
        let settings = self.settings()?;
        let found = rings::find(&settings.rings, rings::CONFIGURE);
        if let Some(words) = found.refused.first() {
            return Err(Failure::Refused(words.clone()));
        }
        if self.check_config {
            sink::make(&settings.to, &settings.sinks)?;
            let names = found.rings.keys().map(String::as_str).collect();
            let faults = sink::faults(&settings.to, &settings.sinks, &names);
            if !faults.is_empty() {
                return Err(Failure::Refused(faults.join("; ")));
            }
            let mut lines: Vec<_> = found
                .rings
                .iter()
                .map(|(name, ring)| format!("{name}: {}", ring.shown()))
                .collect();
            lines.extend(found.odd.iter().map(|words| format!("left out: {words}")));
            lines.push(format!("the configuration is sound; rings now: {}", found.rings.len()));
            return print(&lines.join("\n"), Some(stop));
        }
        let files = ring_program::descriptors::raise();
        let files = files.map_err(Failure::io("cannot read the limit of open files"))?;
        std::thread::scope(|scope| {
            let drain = self.drain.then(|| Drain::new(self.drain_timeout, settings.warn_after));
            let metrics = settings.metrics.clone();
            let manager = ServiceManager::connect();
            let mut engine = Engine::new(settings, drain, files, scope, stop, &hangup, manager)?;
            let bound = listen(&metrics)?;
            let server = if bound.is_empty() {
                None
            } else {
                let server = Server::start(bound, Forwarder::new(engine.board()));
                Some(server.map_err(Failure::io("cannot start a thread"))?)
            };
            let outcome = engine.run(&|| self.settings());
            drop(server);
            *report = engine.end();
            outcome
        })
    }

    /// Returns the settings of the file, or else of the command line.
    fn settings(&self) -> Result<Settings, Failure> {
        if let Some(config) = &self.config {
            let settings = settings::read(config)?;
            let refused = rings::find(&settings.rings, rings::CONFIGURE).refused;
            return match refused.first() {
                Some(words) => Err(Failure::Refused(words.clone())),
                None => Ok(settings),
            };
        }
        let Given { rings, to, max_memory, grace, no_flush, warn_after, metrics } = &self.given;
        let to = to.clone().ok_or_else(|| Failure::Usage("--to is missing".to_owned()))?;
        let sinks = SinkOptions {
            framing: self.items.framing,
            on_separator: self.items.on_separator,
            file: self.file.clone(),
            exec: self.exec.clone(),
            journald: self.journald.clone(),
            nats: self.nats.clone(),
        };
        if let Some(foreign) = foreign::find(&to, &sinks) {
            return Err(Failure::Usage(foreign.of_command_line()));
        }
        Ok(Settings {
            to,
            sinks,
            rings: rings.clone(),
            max_memory: *max_memory,
            grace: *grace,
            no_flush: *no_flush,
            warn_after: *warn_after,
            metrics: metrics.clone(),
        })
    }
}
