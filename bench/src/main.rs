//! `ring-bench`: how fast the backend is, against its peer and the machine's limits, on this machine, now.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are rounded in any case"
)]

mod backend;
mod error;
mod front;
mod machine;
mod requests;
mod rows;
mod table;

use clap::Parser;
use error::{Error, Result, doing};
use machine::{Processors, pin};
use requests::{Bench, Outcome, Plan};
use rows::{ROWS, Row};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Rows are named by size, direction, requests at once, and how the front end waits (polling unless it says
sleeping); \"default\" is our daemon without --daemon-args. scripts/bench.sh prepares everything.

Examples:
  ring-bench                                        every row
  ring-bench --daemon-args \"--poll always\"          with a backend that never sleeps
  ring-bench --rows 512-write,64K                   what has one of these in its name
  ring-bench --compare-guard --json figures.json    with a daemon without a guard beside it";

/// Measure requests through vhost-user against qemu-storage-daemon and the machine's limits
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
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
    /// Write all figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ring-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let chosen = |row: &&Row| {
        let name = row.name();
        arguments.rows.is_empty() || arguments.rows.iter().any(|part| name.contains(part))
    };
    let rows: Vec<Row> = ROWS.iter().filter(chosen).copied().collect();
    if rows.is_empty() {
        return Err(Error::Usage("no row has such a name (--list names them)".to_owned()));
    }
    if arguments.list {
        for row in rows {
            println!("{}", row.name());
        }
        return Ok(());
    }
    let outcomes = requests(arguments, &rows)?;
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&outcomes).unwrap_or_default();
        std::fs::write(path, text).map_err(doing(format!("writing {}", path.display())))?;
    }
    Ok(())
}

fn requests(arguments: &Arguments, rows: &[Row]) -> Result<Vec<Outcome>> {
    let dir = tempfile::Builder::new().prefix("ring-bench-").tempdir_in(&arguments.dir);
    let dir = dir.map_err(doing(format!("making a folder in {}", arguments.dir.display())))?;
    let (rounds, round_ms) =
        if arguments.quick { (1, 20) } else { (arguments.rounds, arguments.round_ms) };
    let plan = Plan {
        program: arguments.daemon.clone().map_or_else(beside, Ok)?,
        arguments: arguments.daemon_args.split_whitespace().map(str::to_owned).collect(),
        compare_guard: arguments.compare_guard,
        rounds,
        time: Duration::from_millis(round_ms),
        processors: arguments.cpus,
    };
    pin(plan.processors.front)?;
    let bench = Bench::new(plan, rows, dir.path())?;
    print!("{}", table::legend(bench.clock()));
    println!("\n{}", table::head(arguments.compare_guard));
    let mut outcomes = Vec::new();
    for &row in rows {
        let outcome = bench.run(row)?;
        println!("{}", table::line(&outcome));
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Cargo puts them beside each other.
fn beside() -> Result<PathBuf> {
    let program = std::env::current_exe().map_err(doing("finding this program"))?;
    Ok(program.parent().unwrap_or(Path::new(".")).join("vhost-device-blockring"))
}

fn processors(text: &str) -> std::result::Result<Processors, String> {
    let wrong = || "must be two numbers of processors, such as 0,1".to_owned();
    let (front, back) = text.split_once(',').ok_or_else(wrong)?;
    let number = |text: &str| text.parse().map_err(|_| wrong());
    Ok(Processors { front: number(front)?, back: number(back)? })
}
