//! `blockring journal`.

use super::address::{Address, seconds};
use super::failure::{Failure, Outcome};
use super::framing::{Framing, Missing};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Serialize;
use shared_block_ring::wait::wait_readable;
use shared_block_ring::{
    Aside, BlockDevice, Error, Journal as Log, JournalError, JournalOptions, Stop, SyncError,
    Ticket, WhenFull, make_file, parse_size, sync_name,
};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a wait for the journal looks whether we were asked to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Read at a time.
const CHUNK: usize = 64 * 1024;

const EXAMPLES: &str = "\
Every item of the input is made durable, then handed to CMD (by sh -c, on its standard input),
in order and at least once: what a crash or a stop leaves over comes first at the next start.
CMD must bear to see an item again. When it fails (an exit status that is not 0, or a signal) it
is run again, with growing pauses; with --limit an item that keeps failing is appended to a file
instead. At the end of the input the command waits until everything is performed.

SIGTERM and SIGINT end it with exit code 0 as soon as a CMD that is running has ended: that is
never interrupted, and runs in a process group of its own, so that Ctrl-C does not reach it.
(With systemd, KillMode=mixed keeps a stop away from it.) Only where this command itself is
killed does a CMD go on alone; its item comes again at the next start, perhaps beside it.

Examples:
  tail -f orders | blockring journal --size 8M --exec 'curl -fsS -d @- $URL' orders.journal
  blockring journal --exec ./apply --limit 5 --aside failed orders.journal < more
  blockring journal --exec ./apply orders.journal < /dev/null      only what was left over
  blockring journal --json --exec ./apply orders.journal < more
      {\"accepted\":7,\"performed\":9,\"failures\":1,\"aside\":0} on standard error at the end:
      performed counts what was left over too, failures each run of CMD that failed";

/// Perform each item of standard input with a command, at least once, whatever dies in between
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Journal {
    #[command(flatten)]
    address: Address,
    /// What performs an item
    #[arg(long, value_name = "CMD")]
    exec: String,
    /// Make the file if it is not there (K, M and G are powers of 1024)
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// How items are told apart in the input
    #[arg(long, value_enum, default_value = "lines")]
    framing: Framing,
    /// The pause before a failed item is tried again; it doubles, up to a minute
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    retry: Duration,
    /// Set an item aside after as many failures
    #[arg(long, value_name = "N", requires = "aside")]
    limit: Option<NonZeroU32>,
    /// Where items are appended that are set aside, framed like the input
    #[arg(long, value_name = "FILE", requires = "limit")]
    aside: Option<PathBuf>,
    /// At the end of the input, begin nothing more after this long, and end with exit code 3
    #[arg(long, value_name = "S", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Report counts as a line of JSON on standard error at the end
    #[arg(long)]
    json: bool,
}

#[derive(Default)]
struct Counters {
    performed: AtomicU64,
    failures: AtomicU64,
    aside: AtomicU64,
    /// The command runs.
    running: AtomicBool,
}

#[derive(Serialize)]
struct Report {
    accepted: u64,
    performed: u64,
    failures: u64,
    aside: u64,
}

/// Why the input is not read on.
enum End {
    Input,
    Stop,
}

impl Journal {
    pub fn run(self) -> Outcome {
        if self.address.is_served() {
            let text = "a journal is in a file or on a block device: a backend's ring has its other end in the guest";
            return Err(Failure::Refused(text.to_owned()));
        }
        let stop = Stop::on_signal().map_err(Failure::io("cannot set up signals"))?;
        if let Some(bytes) = self.size
            && let Some(path) = self.address.path().filter(|path| !path.exists())
        {
            make_file(path, bytes)
                .map_err(Failure::io(format!("cannot make {}", path.display())))?;
        }
        let device = self.address.open_file()?;
        let max = device.geometry().capacity().max_item();
        let counters = Arc::new(Counters::default());
        let journal = Log::start(device, self.options(&counters), self.perform(&counters))
            .map_err(|e| self.failure(e))?;
        let mut accepted = 0;
        let outcome = self.feed(&journal, &stop, max, &mut accepted);
        let outcome = match outcome {
            Ok(End::Input) => self.finish(&journal.everything(), &stop),
            Ok(End::Stop) => Ok(()),
            Err(e) => Err(e),
        };
        if counters.running.load(Ordering::Relaxed) {
            eprintln!("blockring: waiting for the command that is running");
        }
        journal.shutdown();
        if self.json {
            let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let (performed, failures) = (of(&counters.performed), of(&counters.failures));
            let report = Report { accepted, performed, failures, aside: of(&counters.aside) };
            eprintln!("{}", serde_json::to_string(&report).unwrap_or_default());
        }
        outcome
    }

    fn failure(&self, error: JournalError) -> Failure {
        match error {
            JournalError::Ring(source) => self.during(source.into()),
            JournalError::Failed(source) => self.during(source),
            other => Failure::Refused(format!("{}: {other}", self.address.name())),
        }
    }

    fn during(&self, source: Arc<Error>) -> Failure {
        Failure::Ended { what: self.address.name().to_owned(), source }
    }

    fn options(&self, counters: &Arc<Counters>) -> JournalOptions {
        let (path, framing, counters) = (self.aside.clone(), self.framing, Arc::clone(counters));
        let mut options = JournalOptions::new(move |entry: &Aside| {
            let Some(path) = &path else { return Err(io::Error::other("no --aside was given")) };
            append(path, framing, &entry.bytes)?;
            counters.aside.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        options.flush_interval = Duration::ZERO;
        options.retry_interval = self.retry;
        options.limit = self.limit;
        // A command is run for one item at a time, and so it is one that fails.
        options.batch = 1;
        // A push that waits would not see a signal.
        options.when_full = WhenFull::Answer;
        options
    }

    fn perform(
        &self,
        counters: &Arc<Counters>,
    ) -> impl FnMut(&[Vec<u8>]) -> Result<(), io::Error> + Send + 'static {
        let (command, counters) = (self.exec.clone(), Arc::clone(counters));
        move |items| {
            for item in items {
                counters.running.store(true, Ordering::Relaxed);
                let ended = run(&command, item);
                counters.running.store(false, Ordering::Relaxed);
                ended.inspect_err(|e| {
                    eprintln!("blockring: {e}");
                    counters.failures.fetch_add(1, Ordering::Relaxed);
                })?;
                counters.performed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    }

    /// Pushes all input.
    fn feed(
        &self,
        journal: &Log<Vec<u8>>,
        stop: &Stop,
        max: usize,
        accepted: &mut u64,
    ) -> Result<End, Failure> {
        let mut input = io::stdin();
        let (mut pending, mut chunk, mut ended) = (Vec::new(), vec![0; CHUNK], false);
        loop {
            let mut at = 0;
            loop {
                let (item, used) = match self.framing.split(&pending[at..], ended, max) {
                    Ok(Some(split)) => split,
                    Ok(None) => return Ok(End::Input),
                    Err(Missing::More) => break,
                    Err(Missing::Truncated) => return Err(within("the input ends", *accepted)),
                    Err(Missing::TooLong(length)) => {
                        let text = format!(
                            "item {} of the input has {length} bytes or more, the journal holds {max} at most",
                            *accepted + 1
                        );
                        return Err(Failure::Refused(text));
                    }
                };
                if !self.push(journal, &item.to_vec(), stop)? {
                    return Err(Failure::Refused(format!(
                        "asked to stop while the journal was full or suspended; not accepted: item {} of the input and everything behind it",
                        *accepted + 1
                    )));
                }
                *accepted += 1;
                at += used;
                if self.framing == Framing::Whole {
                    return Ok(End::Input);
                }
            }
            pending.drain(..at);
            let reading = || Failure::io("cannot read standard input");
            match wait_readable(&[stop.fd(), input.as_fd()], None).map_err(reading())? {
                Some(0) if pending.is_empty() => return Ok(End::Stop),
                Some(0) => return Err(within("asked to stop", *accepted)),
                Some(_) => {}
                // By a signal.
                None => continue,
            }
            match input.read(&mut chunk) {
                Ok(0) => ended = true,
                Ok(n) => pending.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(reading()(e)),
            }
        }
    }

    /// Waits for room, and while the journal is suspended; false when we are asked to stop meanwhile.
    fn push(&self, journal: &Log<Vec<u8>>, item: &Vec<u8>, stop: &Stop) -> Result<bool, Failure> {
        loop {
            match journal.push(item) {
                Ok(_) => return Ok(true),
                Err(JournalError::Full | JournalError::Ring(Error::Suspended)) => {
                    let stopped = wait_readable(&[stop.fd()], Some(LOOK));
                    if stopped.map_err(Failure::io("cannot wait"))?.is_some() {
                        return Ok(false);
                    }
                }
                Err(e) => return Err(self.failure(e)),
            }
        }
    }

    /// Waits until the last item has left the journal.
    fn finish(&self, last: &Ticket, stop: &Stop) -> Outcome {
        let start = Instant::now();
        loop {
            match last.sync(Some(LOOK)) {
                Ok(_) => return Ok(()),
                Err(SyncError::TimedOut) if stop.requested() => return Ok(()),
                Err(SyncError::TimedOut) => {}
                Err(SyncError::Failed(source)) => return Err(self.during(source)),
                Err(e) => return Err(Failure::Refused(e.to_string())),
            }
            if let Some(timeout) = self.timeout.filter(|timeout| start.elapsed() >= *timeout) {
                let what =
                    "not everything was performed; the rest is, at the next start".to_owned();
                return Err(Failure::TimedOut { seconds: timeout.as_secs_f64(), what });
            }
        }
    }
}

fn within(what: &str, accepted: u64) -> Failure {
    Failure::Refused(format!(
        "{what} within an item; not accepted: item {} of the input",
        accepted + 1
    ))
}

/// Runs the command with an item on its standard input.
fn run(command: &str, item: &[u8]) -> io::Result<()> {
    // All of it is there before the command begins: were it written into a pipe, our death could make the command perform a half.
    let mut input = File::from(memfd_create("item", MFdFlags::MFD_CLOEXEC)?);
    input.write_all(item)?;
    input.rewind()?;
    let mut shell = Command::new("sh");
    // A group of its own: what a terminal sends to ours on Ctrl-C is for us, and we wait for the command.
    let status = shell.args(["-c", command]).stdin(input).process_group(0).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command}: {status}"))) }
}

/// Whole or not at all, and durable.
fn append(path: &Path, framing: Framing, item: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(item.len() + 4);
    framing.join(item, &mut bytes)?;
    let mut file = File::options().append(true).create(true).mode(0o600).open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        // A terminal or a pipe: nothing can be taken back there, nor made durable.
        return file.write_all(&bytes);
    }
    file.write_all(&bytes).and_then(|()| file.sync_data()).inspect_err(|_| {
        // The item stays in the journal and is appended again: half of it must not stay in front.
        let _ = file.set_len(before.len());
    })?;
    if before.len() == 0 { sync_name(path) } else { Ok(()) }
}
