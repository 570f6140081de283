//! `blockring journal`.

mod aside;
pub mod command;
mod feed;

use super::address::{Address, KERNEL_ONLY, positive, seconds};
use super::failure::{Failure, Outcome};
use super::framing::Framing;
use super::input::Input;
use super::output::{require_messages, say};
use super::oversize::OnTooLarge;
use aside::AsideFile;
use feed::{Counts, End, Feed, Oversize};
use ring_program::{Stop, parse_size};
use serde::Serialize;
use shared_block_ring::device::shown;
use shared_block_ring::wait::wait_readable;
use shared_block_ring::{
    Aside, BlockDevice, Journal as Log, JournalError, JournalOptions, SyncError, WhenFull,
    make_file,
};
use std::io::{self, PipeReader};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time between two looks for a stop while the journal is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// The shortest pause between two runs of the command for one item: a command that fails at once is
/// not to take a processor, whatever was asked for.
const SHORTEST_RETRY: Duration = Duration::from_millis(10);

/// Time between two looks at whether the journal is still there.
const LOOK_AT_FILE: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
journal first makes each item durable in the journal file, then runs CMD for it: sh -c CMD, with the
item on standard input. Items are performed in order and at least once. Items that a crash or a stop
left in the journal are performed first at the next start, so CMD must give the right result if it
is run twice for one item. If CMD fails (its exit status is not 0, or a signal ends it) it is run
again after a pause, which doubles up to a minute. With --limit and --aside, an item that fails too
often is appended to a file instead. At the end of the input, journal waits until all items are
performed.

On SIGTERM or SIGINT, journal starts no further CMD, waits for the one that is running, and ends
with exit code 0. It never interrupts CMD, which runs in a process group of its own, so that Ctrl-C
does not reach it. (Under systemd, set KillMode=mixed, so that a stop does not signal CMD.) The wait
for CMD ends at a second signal, with exit code 1, or at --timeout, with exit code 3. In both cases,
and if journal itself is killed, CMD keeps running, and its item is performed again at the next
start, perhaps while the first CMD still runs.

With --json the last line of standard error is one JSON object, however journal ends:
  {\"accepted\":7,\"performed\":9,\"failures\":1,\"aside\":0,\"too_large_dropped\":0,
  \"too_large_split\":0,\"exit_code\":0,\"error\":null}
performed counts items of earlier runs, too; failures counts runs of CMD that failed.

Examples:
  tail -f orders | blockring journal --size 8M --exec 'curl -fsS -d @- $URL' orders.journal
  blockring journal --exec ./apply --limit 5 --aside failed orders.journal < more
  blockring journal --exec ./apply orders.journal < /dev/null   perform only the items left in it";

/// Run a command for each item of standard input, at least once, even after crashes
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, mut_arg("address", |address| address.help(KERNEL_ONLY)))]
pub struct Journal {
    #[command(flatten)]
    address: Address,
    /// Shell command that performs an item, which it reads from standard input
    #[arg(long, value_name = "CMD")]
    exec: String,
    /// Make a journal file of this size if there is none (K, M and G are powers of 1024)
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// How the input is divided into items
    #[arg(long, value_enum, default_value = "lines")]
    framing: Framing,
    /// First pause, in seconds, before CMD is run again for an item that failed; it doubles up to a
    /// minute. Less than 0.01 counts as 0.01
    #[arg(long, value_name = "S", default_value = "1", allow_negative_numbers = true)]
    #[arg(value_parser = seconds)]
    retry: Duration,
    /// Set an item aside once CMD has failed N times for it
    #[arg(long, value_name = "N", requires = "aside", value_parser = positive::<NonZeroU32>)]
    limit: Option<NonZeroU32>,
    /// File to which items that are set aside are appended, in the framing of the input
    #[arg(long, value_name = "FILE", requires = "limit")]
    aside: Option<PathBuf>,
    /// What to do about an item that is larger than the journal [default: append it to the --aside
    /// file if there is one, else fail]
    #[arg(long, value_enum)]
    on_too_large: Option<OnTooLarge>,
    /// Longest wait, in seconds, for free space in the journal; at the end of the input, for all
    /// items to be performed; and after that or after a signal, for the running CMD to end (exit
    /// code 3). Also the longest time to read an item that is too large, to name its size (exit
    /// code 1)
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    timeout: Option<Duration>,
    /// Report counts, exit code and error as one JSON object in the last line of standard error
    #[arg(long)]
    pub json: bool,
}

#[derive(Default)]
struct Counters {
    performed: AtomicU64,
    /// Runs of the command that failed.
    failures: AtomicU64,
    aside: AtomicU64,
    /// Process number of the command that runs, or 0.
    running: AtomicU32,
    /// Whether the last attempt to start the shell has failed.
    unable: AtomicBool,
}

/// Counts of the items.
#[derive(Default, Serialize)]
pub struct Report {
    accepted: u64,
    performed: u64,
    failures: u64,
    aside: u64,
    #[serde(flatten)]
    too_large: super::oversize::TooLarge,
}

impl Report {
    fn new(counts: &Counts, counters: &Counters) -> Self {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            accepted: counts.accepted,
            performed: of(&counters.performed),
            failures: of(&counters.failures),
            aside: of(&counters.aside) + counts.aside,
            too_large: counts.too_large,
        }
    }
}

impl Journal {
    pub fn run(self, stop: &Stop, report: &mut Report) -> Outcome {
        if self.address.is_served() {
            return Err(Failure::Refused(format!(
                "{}: a journal is in a file or on a block device; the ring of a backend has its other end in a guest",
                self.address.name()
            )));
        }
        let input = Input::open()?;
        require_messages(self.json)?;
        command::verify("--exec", &self.exec)?;
        let aside = self.aside_file()?;
        if let Some(bytes) = self.size
            && let Some(path) = self.address.path().filter(|path| !path.exists())
        {
            make_file(path, bytes).map_err(Failure::io(format!("cannot make {}", shown(path))))?;
        }
        let device = self.address.open_alone("--size 8M makes it")?;
        self.address.refuse_as_input(&device)?;
        if let Some(aside) = &aside {
            aside.refuse_ring(&self.address, &device)?;
        }
        let name = self.address.name();
        let max = device.geometry().capacity().max_item();
        let counters = Arc::new(Counters::default());
        let options = self.options(aside.clone(), &counters);
        let journal =
            Log::start(device, options, self.perform(&counters)).map_err(|e| ended(&name, e))?;
        let journal = Arc::new(journal);
        let mut counts = Counts::default();
        let feed = Feed {
            journal: &journal,
            name: &name,
            stop,
            framing: self.framing,
            max,
            oversize: match (self.on_too_large, &aside) {
                (None, Some(aside)) => Oversize::Aside(aside),
                (choice, _) => Oversize::Other(choice.unwrap_or(OnTooLarge::Fail)),
            },
            timeout: self.timeout,
        };
        let outcome = match feed.run(&input, &mut counts) {
            Ok(End::Input) => self.finish(&journal, &name, stop),
            Ok(End::Stop) => Ok(()),
            Err(e) => Err(e),
        };
        let there = || journal.check_presence().map_err(|e| ended(&name, e));
        let outcome = outcome.and_then(|()| there());
        let ended = self.wind_down(&journal, stop, &counters);
        *report = Report::new(&counts, &counters);
        if !self.json {
            counts.too_large.say();
        }
        if let (Err(_), Err(also)) = (&outcome, &ended) {
            say(also);
        }
        outcome.and(ended)
    }

    fn aside_file(&self) -> Result<Option<Arc<AsideFile>>, Failure> {
        let Some(path) = &self.aside else { return Ok(None) };
        let aside = AsideFile::new(path.clone(), self.framing);
        let what = || Failure::io(format!("cannot append to {}", shown(path)));
        Ok(Some(Arc::new(aside.map_err(what())?)))
    }

    fn options(&self, aside: Option<Arc<AsideFile>>, counters: &Arc<Counters>) -> JournalOptions {
        let counters = Arc::clone(counters);
        let mut options = JournalOptions::new(move |entry: &Aside| {
            let Some(aside) = &aside else { return Err(io::Error::other("no --aside was given")) };
            if counters.unable.load(Ordering::Relaxed) {
                return Err(io::Error::other("it was not tried"));
            }
            aside.append(&entry.bytes)?;
            counters.aside.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        options.flush_interval = Duration::ZERO;
        options.retry_interval = self.retry.max(SHORTEST_RETRY);
        options.max_failures = self.limit;
        // The command is run for one item at a time, so that a failure is that of one item.
        options.max_batch = 1;
        // A push that waits for room would not see a signal.
        options.when_full = WhenFull::Fail;
        options
    }

    fn perform(
        &self,
        counters: &Arc<Counters>,
    ) -> impl FnMut(&[Vec<u8>]) -> Result<(), io::Error> + Send + 'static {
        let (command, counters) = (self.exec.clone(), Arc::clone(counters));
        move |items| {
            for item in items {
                command::run(&command, item, &counters).inspect_err(|e| say(e))?;
                counters.performed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    }

    /// Waits until all items are performed.
    fn finish(&self, journal: &Log<Vec<u8>>, name: &str, stop: &Stop) -> Outcome {
        let (start, last) = (Instant::now(), journal.ticket_for_all());
        let mut looked = start;
        loop {
            if looked.elapsed() >= LOOK_AT_FILE {
                journal.check_presence().map_err(|e| ended(name, e))?;
                looked = Instant::now();
            }
            match last.sync(Some(LOOK)) {
                Ok(_) => return Ok(()),
                Err(SyncError::TimedOut) if stop.requested() => return Ok(()),
                Err(SyncError::TimedOut) => {}
                Err(SyncError::Failed(source)) => {
                    return Err(ended(name, JournalError::Failed(source)));
                }
                Err(e) => return Err(Failure::Refused(e.to_string())),
            }
            if let Some(timeout) = self.timeout.filter(|timeout| start.elapsed() >= *timeout) {
                let what =
                    "not everything was performed; the rest is, at the next start".to_owned();
                return Err(Failure::TimedOut { seconds: timeout.as_secs_f64(), what });
            }
        }
    }

    /// Shuts the journal down. It waits for the command that is running, until the timeout or until
    /// another signal.
    fn wind_down(&self, journal: &Arc<Log<Vec<u8>>>, stop: &Stop, counters: &Counters) -> Outcome {
        let (start, asked) = (Instant::now(), stop.requests());
        let over = shut_down(Arc::clone(journal)).map_err(Failure::io("cannot shut down"))?;
        let mut is_said = false;
        loop {
            let waited = wait_readable(&[over.as_fd()], Some(LOOK));
            if waited.map_err(Failure::io("cannot wait"))?.is_some() {
                return Ok(());
            }
            let running = counters.running.load(Ordering::Relaxed);
            let rest = match running {
                0 => "the journal was not shut down yet".to_owned(),
                pid => format!(
                    "the command that is running has not ended (process {pid}): it goes on alone, and its item comes again at the next start"
                ),
            };
            if stop.requests() > asked {
                return Err(Failure::Refused(format!("asked again to stop: {rest}")));
            }
            if let Some(timeout) = self.timeout.filter(|timeout| start.elapsed() >= *timeout) {
                return Err(Failure::TimedOut { seconds: timeout.as_secs_f64(), what: rest });
            }
            if running != 0 && !is_said {
                say(format_args!("waiting for the command that is running (process {running})"));
                is_said = true;
            }
        }
    }
}

/// Shuts the journal down on a thread of its own. The pipe that is returned becomes readable at the
/// end of that.
fn shut_down(journal: Arc<Log<Vec<u8>>>) -> io::Result<PipeReader> {
    let (over, done) = io::pipe()?;
    std::thread::Builder::new().name("shutdown".to_owned()).spawn(move || {
        journal.shutdown();
        // Before `journal` is dropped: the thread that waits at the pipe must not be the last
        // owner.
        drop(done);
    })?;
    Ok(over)
}

/// Returns the failure for an error of the journal.
fn ended(name: &str, error: JournalError) -> Failure {
    match error {
        JournalError::Ring(source) => {
            Failure::Ended { what: name.to_owned(), source: source.into() }
        }
        JournalError::Failed(source) => Failure::Ended { what: name.to_owned(), source },
        other => Failure::Refused(format!("{name}: {other}")),
    }
}
