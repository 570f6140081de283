//! Kills the ends of rings at random instants, and cuts the power, and checks from logs of its own
//! that every promise holds.

use std::ffi::OsString;
use std::process::{self, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io, thread};

use clap::Parser;
use qemu_tests::campaign::{Failure, Flushes, Kind, Plan, run};
use qemu_tests::program::failed;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

const EXAMPLES: &str = "\
Invariants, after any crash and re-attach: every item whose producer's `advance` returned is
delivered, in order and unchanged; nothing that was never pushed, or is torn, is delivered; nothing
whose consumer's `advance` returned is delivered again; a batch is visible whole or not at all;
attaching succeeds.

Without a number the full form runs: about 10 minutes on two processors, longer (an hour or so) on
very busy ones. The short form takes 2 to 4 minutes. Where a number is given, only what is named runs.
The programs and the guest's image are built first if need be; scripts/crash-campaign.sh prepares
everything. A failure leaves the logs that show it, and says where.

Examples:
  crash-campaign --short                      10 kills of each kind, 5 saved guests, 5 power cuts
  crash-campaign --json >campaign.json        the full form, a JSON object a campaign
  crash-campaign --producer 2000 --consumer 2000
  crash-campaign --cuts 20 --seed 12345       the random choices of the run that printed this seed";

/// Kills producers, consumers, backends and whole guests under load, cuts the power of others, and
/// judges by logs of its own whether the rings kept what they promise
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// 10 kills of each kind, 5 saved guests and 5 power cuts, instead of the full form
    #[arg(long)]
    short: bool,
    /// Kills of a producer on the host [full form: 500]
    #[arg(long, value_name = "N")]
    producer: Option<u32>,
    /// Kills of a consumer on the host [500]
    #[arg(long, value_name = "N")]
    consumer: Option<u32>,
    /// Kills of the backend under a guest that goes on writing [200]
    #[arg(long, value_name = "N")]
    backend: Option<u32>,
    /// Kills of QEMU with the guest in it [30]
    #[arg(long, value_name = "N")]
    qemu: Option<u32>,
    /// Kills of QEMU, backend and the process on the host at once [30]
    #[arg(long, value_name = "N")]
    all: Option<u32>,
    /// Guests that are saved with their memory under load and restored, each after a migration that
    /// is cancelled [300]
    #[arg(long, value_name = "N")]
    saved: Option<u32>,
    /// Power cuts of a guest that has both ends on a simulated disk [100]
    #[arg(long, value_name = "N")]
    cuts: Option<u32>,
    /// What all random choices follow from; printed, and random itself unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Streams at a time [default: the number of processors]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// A JSON object a campaign on standard output, instead of a line of text
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn plan(&self) -> Plan {
        let named = [
            (Kind::Producer, self.producer, 500),
            (Kind::Consumer, self.consumer, 500),
            (Kind::Backend, self.backend, 200),
            (Kind::Qemu, self.qemu, 30),
            (Kind::All, self.all, 30),
            (Kind::Saved, self.saved, 300),
            (Kind::Cuts, self.cuts, 100),
        ];
        let any = named.iter().any(|(_, number, _)| number.is_some());
        let default = |kind, full| match kind {
            _ if any => 0,
            Kind::Cuts | Kind::Saved if self.short => 5,
            _ if self.short => 10,
            _ => full,
        };
        let deaths =
            named.map(|(kind, number, full)| (kind, number.unwrap_or(default(kind, full))));
        let jobs =
            self.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(2, Into::into));
        Plan {
            deaths: deaths.into(),
            seed: self.seed.unwrap_or_else(seed),
            jobs: jobs.max(1),
            flushes: Flushes::Honest,
        }
    }
}

/// Another seed each time.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs() << 30
}

/// Returns a folder for all temporary files, which is removed at the end, also after a signal.
fn scratch() -> io::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("crashes-").tempdir()?;
    tempfile::env::override_temp_dir(folder.path())
        .map_err(|_| io::Error::other("there is another folder already"))?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let path = folder.path().to_owned();
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Processes in it are killed with this one, and may make more files until then.
            let _ = fs::remove_dir_all(&path);
            process::exit(128 + signal);
        }
    });
    Ok(folder)
}

pub fn main(words: Vec<OsString>) -> ExitCode {
    let arguments = Arguments::parse_from(words);
    let plan = arguments.plan();
    let folder = match scratch() {
        Ok(folder) => folder,
        Err(e) => {
            return failed("crash-campaign", format!("cannot make a temporary folder: {e}"));
        }
    };
    eprintln!("crash-campaign: seed {}", plan.seed);
    let start = Instant::now();
    let last = Mutex::new(start);
    let progress = |kind: Kind, done: u32, of: u32| {
        const EVERY: Duration = Duration::from_secs(5);
        if let Ok(mut last) = last.lock()
            && (last.elapsed() >= EVERY || done == of)
        {
            *last = Instant::now();
            eprintln!("crash-campaign: {kind}: {done} of {of}, {} s", start.elapsed().as_secs());
        }
    };
    let outcome = run(&plan, &progress, |report| {
        if arguments.json {
            println!("{}", serde_json::to_string(report).unwrap_or_default());
        } else {
            println!("{report}");
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err((kind, failure)) => {
            eprintln!("crash-campaign: {kind}: {failure}\ncrash-campaign: seed {}", plan.seed);
            if matches!(failure, Failure::Kept { .. }) {
                let _ = folder.keep();
            }
            if arguments.json {
                let failure = failure.to_string();
                println!(
                    "{}",
                    json!({"campaign": kind.to_string(), "seed": plan.seed, "failure": failure})
                );
            }
            ExitCode::FAILURE
        }
    }
}
