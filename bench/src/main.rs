//! `ring-bench`: how fast the backend is, against its peer and the machine's limits, on this
//! machine, now.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are rounded in any case"
)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod backend;
mod bars;
mod durable;
mod ends;
mod error;
mod figures;
mod fleet;
mod forward;
mod front;
mod guest;
mod items;
mod languages;
mod machine;
mod plot;
mod processes;
mod reference;
mod report;
mod requests;
mod rings;
mod rounds;
mod rows;
mod scrape;
mod size;
mod table;

use clap::Parser;
use error::{Error, Result, doing, print};
use figures::Ring;
use machine::{Processors, pin};
use requests::{Bench, Outcome, Plan};
use rounds::Rounds;
use rows::{REFERENCE_ROWS, ROWS, Row};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Rows of requests are named by size, direction, requests at once, and how the front end waits (polling unless it says
sleeping); \"default\" is our daemon without --daemon-args. scripts/bench.sh prepares everything.

Examples:
  ring-bench                                        every row
  ring-bench --daemon-args \"--poll always\"          with a backend that never sleeps
  ring-bench --rows 512-write,64K                   what has one of these in its name
  ring-bench --compare-guard --json figures.json    with a daemon without a guard beside it
  ring-bench --measure items,durable                rings from end to end
  ring-bench --measure forward                      rings into JetStream
  ring-bench --reference --daemon-args \"--poll always\"
                                                    beside a bare loop, which shows what the machine can do
  ring-bench --measure scrape                       what scrapes of metrics cost
  ring-bench --measure rings                        a daemon of a thousand rings
  ring-bench --measure fleet --hosts 10000          a model of many hosts and a JetStream cluster
  ring-bench --measure languages --language C:0.95=./items
                                                    items by a program in C; scripts/bench.sh brings its programs
  ring-bench --measure all --report docs            everything, into docs/performance.md, with plots";

/// Measure requests through vhost-user against qemu-storage-daemon and the machine's limits
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// What to measure
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        value_delimiter = ',',
        default_value = "requests"
    )]
    measure: Vec<What>,
    /// Measure requests beside a bare loop, and nothing else: a backend without a ring, a guard or
    /// counters
    #[arg(long)]
    reference: bool,
    /// Few and short rounds: whether it works, not how fast
    #[arg(long)]
    quick: bool,
    /// Only rows with one of these in their names
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    rows: Vec<String>,
    /// Name the rows, and end
    #[arg(long)]
    list: bool,
    /// Rounds of a row
    #[arg(long, value_name = "N", default_value = "7", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of a round, in milliseconds
    #[arg(long, value_name = "MS", default_value = "300", value_parser = clap::value_parser!(u64).range(1..))]
    round_ms: u64,
    /// Arguments that make our daemon fast
    #[arg(long, value_name = "ARGS", default_value = "", allow_hyphen_values = true)]
    daemon_args: String,
    /// Our daemon (without it the one beside this program)
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Measure a daemon with --guard off beside it
    #[arg(long)]
    compare_guard: bool,
    /// Processors of front end and backend
    #[arg(long, value_name = "FRONT,BACK", default_value = "0,1", value_parser = processors)]
    cpus: Processors,
    /// Where the rings are made
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    dir: PathBuf,
    /// Where durable rings, and disks of a guest, are made: on a disk
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    disk_dir: PathBuf,
    /// Rings of the daemon of --measure rings; each takes 17 descriptors of one process (ulimit -Hn)
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u16).range(1..))]
    rings: u16,
    /// How often --measure rings kills the daemon's data process. More than four kills have 15 s
    /// between them, since the daemon gives up after five in a minute
    #[arg(long, value_name = "N", default_value = "3")]
    kills: u32,
    /// Write tables into performance.md (that of --measure fleet into scaling.md) in this folder,
    /// between its markers, and plots beside it
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// A program in another language for --measure languages: NAME=COMMAND, or NAME:PART=COMMAND where
    /// it is to reach that part of Rust's rate
    #[arg(long, value_name = "LANGUAGE", value_parser = languages::parse)]
    language: Vec<languages::Language>,
    /// Be the consumer of a measurement: the other process
    #[arg(long, value_name = "SOCKET", hide = true)]
    consume: Option<PathBuf>,
    /// Write all figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    fleet: fleet::Plan,
}

/// Parts of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Requests through vhost-user, against qemu-storage-daemon
    Requests,
    /// Items from a producer to a consumer
    Items,
    /// Durable items, against pwrite and fdatasync
    Durable,
    /// One item's cost by the ring's size, and by what is in it
    Size,
    /// Messages out of a guest, against virtio-serial and a plain disk; our daemon runs without
    /// --daemon-args
    Guest,
    /// All of this
    All,
    /// `blockring forward` into JetStream, against a program without rings; needs
    /// scripts/fetch-nats.sh. Not one of all
    Forward,
    /// Requests and items beside 100 scrapes of metrics a second. Not one of all
    Scrape,
    /// A daemon of many rings (--rings), and what it gets through. Not one of all
    Rings,
    /// A model of many hosts that forward into one JetStream cluster, with costs that were measured
    /// elsewhere. Not one of all
    Fleet,
    /// Items by programs in other languages (--language), against Rust. Not one of all
    Languages,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whether anybody can be told or not, the exit code says it.
            let _ = writeln!(std::io::stderr(), "ring-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let chosen = |row: &&Row| {
        let name = row.name();
        arguments.rows.is_empty() || arguments.rows.iter().any(|part| name.contains(part))
    };
    let all = if arguments.reference { REFERENCE_ROWS } else { ROWS };
    let rows: Vec<Row> = all.iter().filter(chosen).copied().collect();
    if rows.is_empty() {
        return Err(Error::Usage("no row has such a name (--list names them)".to_owned()));
    }
    if arguments.list {
        for row in rows {
            print(&format!("{}\n", row.name()))?;
        }
        return Ok(());
    }
    if let Some(socket) = &arguments.consume {
        return processes::consume(socket, arguments.cpus);
    }
    // First: QEMU is not to run on one processor only.
    let carried = if arguments.wants(What::Guest) {
        let (program, disk_dir) = (arguments.program()?, &arguments.disk_dir);
        guest::all(&program, disk_dir, arguments.cpus, arguments.rounds())?
    } else {
        Vec::new()
    };
    if arguments.wants(What::Forward) {
        let program = arguments.program()?.with_file_name("blockring");
        let rounds = if arguments.quick { 1 } else { arguments.rounds };
        forward::all(&program, &arguments.dir, rounds, arguments.quick)?;
    }
    let fleet = arguments.wants(What::Fleet).then(|| fleet::all(&arguments.fleet)).transpose()?;
    pin(arguments.cpus.front)?;
    let dir = tempfile::Builder::new().prefix("ring-bench-").tempdir_in(&arguments.dir);
    let dir = dir.map_err(doing(format!("making a folder in {}", arguments.dir.display())))?;
    if arguments.wants(What::Scrape) {
        scrape::all(&arguments.plan()?, dir.path())?;
    }
    if arguments.wants(What::Languages) {
        languages::all(&arguments.language, dir.path(), arguments.rounds())?;
    }
    let outcomes = if arguments.wants(What::Requests) {
        requests(arguments, &rows, dir.path())?
    } else {
        Vec::new()
    };
    let mut ring = Ring { guest: carried, fleet, ..ring(arguments, dir.path())? };
    if arguments.reference {
        let program = beside("reference-loop")?;
        ring.reference = reference::all(&arguments.plan()?, &program, &rows, dir.path())?;
    }
    print(&report::text(&ring))?;
    if let Some(path) = &arguments.json {
        let figures = serde_json::json!({ "requests": outcomes, "ring": ring });
        let text = serde_json::to_string_pretty(&figures).unwrap_or_default();
        std::fs::write(path, text).map_err(doing(format!("writing {}", path.display())))?;
    }
    match &arguments.report {
        Some(folder) => report::write(folder, &outcomes, &ring),
        None => Ok(()),
    }
}

impl Arguments {
    fn wants(&self, what: What) -> bool {
        if self.reference {
            return false;
        }
        let all = What::All;
        let of_all = !matches!(
            what,
            What::Forward | What::Scrape | What::Languages | What::Rings | What::Fleet
        );
        let is_so = |wanted: &What| *wanted == what || *wanted == all && of_all;
        self.measure.iter().any(is_so)
    }

    fn plan(&self) -> Result<Plan> {
        Ok(Plan {
            program: self.program()?,
            arguments: self.daemon_args.split_whitespace().map(str::to_owned).collect(),
            compare_guard: self.compare_guard,
            rounds: self.rounds(),
            processors: self.cpus,
        })
    }

    fn rings_wanted(&self) -> rings::Wanted {
        rings::Wanted { rings: self.rings.into(), kills: self.kills, quick: self.quick }
    }

    fn rounds(&self) -> Rounds {
        if self.quick {
            Rounds { count: 1, time: Duration::from_millis(20) }
        } else {
            Rounds { count: self.rounds, time: Duration::from_millis(self.round_ms) }
        }
    }

    /// Cargo puts the daemon beside this program.
    fn program(&self) -> Result<PathBuf> {
        if let Some(path) = &self.daemon {
            return Ok(path.clone());
        }
        beside("vhost-device-blockring")
    }
}

/// Returns the path of another program in this program's folder.
fn beside(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe().map_err(doing("finding this program"))?.with_file_name(name))
}

/// Rings from end to end, as far as that is wanted.
fn ring(arguments: &Arguments, dir: &Path) -> Result<Ring> {
    let rounds = arguments.rounds();
    let mut ring = Ring::default();
    if arguments.wants(What::Items) {
        ring.items = items::all(&arguments.plan()?, dir)?;
    }
    if arguments.wants(What::Durable) {
        ring.durable = durable::all(&arguments.disk_dir, rounds)?;
    }
    if arguments.wants(What::Size) {
        let largest = if arguments.quick { 16 << 20 } else { u64::MAX };
        ring.costs = size::all(dir, largest, rounds)?;
    }
    if arguments.wants(What::Rings) {
        ring.rings = Some(rings::all(&arguments.plan()?, dir, &arguments.rings_wanted())?);
    }
    Ok(ring)
}

fn requests(arguments: &Arguments, rows: &[Row], dir: &Path) -> Result<Vec<Outcome>> {
    let bench = Bench::new(arguments.plan()?, rows, dir)?;
    print(&table::legend(bench.clock()))?;
    print(&format!("\n{}\n", table::head(arguments.compare_guard)))?;
    let mut outcomes = Vec::new();
    for &row in rows {
        let outcome = bench.run(row)?;
        print(&format!("{}\n", table::line(&outcome)))?;
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

fn processors(text: &str) -> std::result::Result<Processors, String> {
    let wrong = || "must be two numbers of processors, such as 0,1".to_owned();
    let (front, back) = text.split_once(',').ok_or_else(wrong)?;
    let number = |text: &str| text.parse().map_err(|_| wrong());
    Ok(Processors { front: number(front)?, back: number(back)? })
}
