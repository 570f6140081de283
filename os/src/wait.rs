//! Waits for other processes that end: by a deadline, or by a descriptor that becomes readable.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// The first pause: shorter than a process needs to be scheduled, so that a busy peer costs no
/// latency.
const FIRST: Duration = Duration::from_micros(50);

/// The longest pause: an item waits at most this long for an idle peer to look, and looking costs a
/// fraction of a percent of a core.
pub const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// How long the answer of a backend is waited for where the caller names no limit: a backend
/// answers within milliseconds.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Limits of a wait for an answer of another process, or of work that takes long. The default has
/// none.
///
/// ```
/// use ring_os::Limits;
/// use std::io::{ErrorKind, Write};
/// use std::os::fd::AsFd;
/// use std::os::unix::net::UnixStream;
/// use std::time::Duration;
///
/// let (asked, mut stop) = UnixStream::pair()?;
/// let interrupts = [asked.as_fd()];
/// let limits = Limits::within(Duration::from_secs(60)).or_on(&interrupts);
/// limits.check_now()?; // go on
/// stop.write_all(b"!")?; // as a handler of SIGTERM does
/// assert_eq!(limits.check_now().unwrap_err().kind(), ErrorKind::Interrupted);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[must_use = "limits end what is given them"]
pub struct Limits<'a> {
    deadline: Option<(Instant, Duration)>,
    interrupts: &'a [BorrowedFd<'a>],
}

impl<'a> Limits<'a> {
    /// Makes the limits of a wait that ends `timeout` from now. The default ends by its interrupts
    /// alone.
    pub fn within(timeout: Duration) -> Self {
        let deadline = Instant::now().checked_add(timeout).map(|at| (at, timeout));
        Self { deadline, interrupts: &[] }
    }

    /// Has the wait end also when one of `interrupts` is readable.
    pub fn or_on(self, interrupts: &'a [BorrowedFd<'a>]) -> Self {
        Self { interrupts, ..self }
    }

    /// Looks, without waiting.
    ///
    /// # Errors
    /// [`Interrupted`](io::ErrorKind::Interrupted) when an interrupt is readable,
    /// [`TimedOut`](io::ErrorKind::TimedOut) when the deadline has passed.
    pub fn check_now(&self) -> io::Result<()> {
        self.pause(Duration::ZERO)
    }

    /// Waits for `fd` to be readable, and returns whether it is; false means to call again.
    ///
    /// # Errors
    /// [`Interrupted`](io::ErrorKind::Interrupted) when an interrupt is readable,
    /// [`TimedOut`](io::ErrorKind::TimedOut) when the deadline has passed.
    pub fn check(&self, fd: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        self.look(fd, None)
    }

    /// Waits for so long.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn pause(&self, pause: Duration) -> io::Result<()> {
        self.look(None, Some(pause)).map(drop)
    }

    fn look(&self, fd: Option<BorrowedFd<'_>>, pause: Option<Duration>) -> io::Result<bool> {
        let left = self.deadline.map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let timeout = left.into_iter().chain(pause).min();
        let waited: Vec<_> = self.interrupts.iter().copied().chain(fd).collect();
        match wait_readable(&waited, timeout)? {
            Some(index) if index < self.interrupts.len() => {
                let text = "asked to stop before it was done";
                Err(io::Error::new(io::ErrorKind::Interrupted, text))
            }
            Some(_) => Ok(true),
            None => match self.deadline {
                Some((at, timeout)) if at <= Instant::now() => {
                    let seconds = timeout.as_secs_f64();
                    let text = format!("no answer within {seconds} s (is its process stopped?)");
                    Err(io::Error::new(io::ErrorKind::TimedOut, text))
                }
                _ => Ok(false),
            },
        }
    }
}

/// The pauses between looks at something that tells nobody when it changes: short ones first, up
/// to [`LONGEST_PAUSE`].
///
/// ```
/// use ring_os::Pauses;
/// use std::sync::atomic::{AtomicBool, Ordering};
/// # let ready = AtomicBool::new(true);
/// let mut pauses = Pauses::default();
/// while !ready.load(Ordering::Acquire) {
///     std::thread::sleep(pauses.next_pause());
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pauses {
    /// Returns the next pause, and does not wait.
    #[must_use = "this does not wait"]
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    /// Returns the next pause, or what is `left` if that is shorter.
    #[must_use = "this does not wait"]
    pub fn next_pause_within(&mut self, left: Option<Duration>) -> Duration {
        let pause = self.next_pause();
        left.map_or(pause, |left| left.min(pause))
    }
}

/// Returns the index of the first of `fds` that is readable or closed, or `None` after `timeout`
/// (or a signal).
///
/// # Errors
/// The operating system's.
pub fn wait_readable(
    fds: &[BorrowedFd<'_>],
    timeout: Option<Duration>,
) -> io::Result<Option<usize>> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match ppoll(&mut polled, timeout.map(TimeSpec::from), None) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    Ok(polled.iter().position(|fd| fd.revents().is_some_and(|events| !events.is_empty())))
}
