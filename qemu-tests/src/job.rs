//! Commands in the guest, as the guest's `/init` and `/bin/job` run them.

use std::io::Write as _;
use std::ops::Range;
use std::process::ChildStdin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::console::{Console, NotFound};
use crate::error::{Error, Result};

/// Outcome of a command in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 128 + N if signal N ended it.
    pub status: i32,
    /// Its standard output. Bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A bound on a wait, and the words of its error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wait<'a> {
    what: &'a str,
    timeout: Duration,
    pub(crate) deadline: Instant,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(what: &'a str, timeout: Duration) -> Self {
        Self { what, timeout, deadline: Instant::now() + timeout }
    }

    pub(crate) fn error(&self, reason: NotFound, console: &Console) -> Error {
        let (what, log) = (self.what.to_owned(), console.tail());
        match reason {
            NotFound::TimedOut => Error::Timeout { what, after: self.timeout, log },
            NotFound::Ended => Error::Died { what, log },
        }
    }
}

/// Both directions of the serial console.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) console: Arc<Console>,
    input: Mutex<ChildStdin>,
    /// Marks the guest's words for the host; nothing else prints it.
    nonce: String,
    jobs: AtomicU32,
}

impl Link {
    /// Makes a link to a guest that has been given this many jobs.
    pub(crate) fn new(console: Arc<Console>, input: ChildStdin, nonce: String, jobs: u32) -> Self {
        Self { console, input: Mutex::new(input), nonce, jobs: AtomicU32::new(jobs) }
    }

    /// Returns what another link to the same guest has to know.
    pub(crate) fn state(&self) -> (String, u32) {
        (self.nonce.clone(), self.jobs.load(Ordering::Relaxed))
    }

    /// Returns a word for the host, as `/init` writes it.
    pub(crate) fn mark(&self, word: &str) -> String {
        format!("<<{} {word}", self.nonce)
    }

    /// Waits for `word` on the console at or after `from`, and answers where it is.
    pub(crate) fn wait_for(&self, word: &str, from: usize, wait: Wait<'_>) -> Result<Range<usize>> {
        let found = self.console.wait_for(word, from, wait.deadline);
        found.map_err(|reason| wait.error(reason, &self.console))
    }

    /// Waits for `mark`, an exit status and `>>`, and answers where that begins, and the status.
    pub(crate) fn wait_for_exit(
        &self,
        mark: &str,
        from: usize,
        wait: Wait<'_>,
    ) -> Result<(usize, i32)> {
        let mark = self.wait_for(mark, from, wait)?;
        let end = self.wait_for(">>", mark.end, wait)?;
        let answer = self.console.text(mark.end..end.start);
        match answer.parse() {
            Ok(status) => Ok((mark.start, status)),
            Err(_) => Err(Error::Answer { what: wait.what.to_owned(), answer }),
        }
    }

    pub(crate) fn start(self: &Arc<Self>, command: &str) -> Result<Job> {
        let id = format!("{}.{}", self.nonce, self.jobs.fetch_add(1, Ordering::Relaxed));
        let from = self.console.len();
        let lines = format!("run {id}\n{command}\nend {id}\n");
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input
            .write_all(lines.as_bytes())
            .map_err(Error::io(format!("sending the guest: {command}")))?;
        drop(input);
        Ok(Job { id, command: command.to_owned(), from, link: Arc::clone(self) })
    }
}

/// A command in the guest.
///
/// Dropping it leaves it running.
#[derive(Debug)]
pub struct Job {
    id: String,
    command: String,
    /// Offset in the console's output from which its report can begin.
    from: usize,
    link: Arc<Link>,
}

impl Job {
    /// Returns the same job in a guest that was saved since, and restored: `link` is that guest's.
    pub(crate) fn through(&self, link: &Arc<Link>) -> Self {
        let (id, command) = (self.id.clone(), self.command.clone());
        Self { id, command, from: 0, link: Arc::clone(link) }
    }

    /// Waits for the end of the command.
    ///
    /// After a timeout the command goes on, and can be waited for again.
    pub fn wait(&self, timeout: Duration) -> Result<Output> {
        let wait = Wait::new(&self.command, timeout);
        let mark = |word: &str| format!("<<{} {word}", self.id);
        let stdout = self.link.wait_for(&mark("stdout>>\n"), self.from, wait)?;
        let stderr = self.link.wait_for(&mark("stderr>>\n"), stdout.end, wait)?;
        let (exit, status) = self.link.wait_for_exit(&mark("exit "), stderr.end, wait)?;
        let text = |range| self.link.console.text(range);
        Ok(Output {
            status,
            stdout: text(stdout.end..stderr.start),
            stderr: text(stderr.end..exit),
        })
    }

    /// Sends a signal (`KILL`, `STOP`) to the command and all it started.
    pub fn signal(&self, name: &str) -> Result<()> {
        const TIMEOUT: Duration = Duration::from_secs(30);
        // The process id is there as soon as the guest has taken the command in.
        let file = format!("/tmp/jobs/{}.pid", self.id);
        let command =
            format!("until [ -s {file} ]; do usleep 5000; done; kill -{name} -$(cat {file})");
        let output = self.link.start(&command)?.wait(TIMEOUT)?;
        if output.status == 0 {
            return Ok(());
        }
        Err(Error::Answer { what: command, answer: output.stderr })
    }
}
