//! Opening rings, each on a thread of its own: a disk that is slow to give space is no other
//! ring's.

use crate::daemon::failure::{Failure, system};
use crate::daemon::prepared::{Prepared, Sockets};
use crate::daemon::rings::messages::Number;
use crate::daemon::rings::reexec::KeptSockets;
use crate::daemon::settings::Settings;
use crate::daemon::sockets::Inherited;
use nix::unistd::Uid;
use shared_block_ring::Error;
use shared_block_ring::device::bell::new_event;
use shared_block_ring::wait::Limits;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long a ring of the folder is waited for that a process holds at the start: the data process
/// of a daemon that was killed needs a moment to end.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The pause before such a ring is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Rings that are prepared at a time.
const MOST: usize = 32;

/// A ring that was prepared, or could not be.
type Outcome = (Number, Result<Prepared, Failure>);

/// The rings that are being prepared, or wait for that.
pub struct Preparations {
    waiting: VecDeque<(Number, Settings, Duration)>,
    under_way: usize,
    outcomes: (Sender<Outcome>, Receiver<Outcome>),
    /// Readable when there is an outcome.
    event: OwnedFd,
    /// Who the data process runs as.
    user: Uid,
    sockets: KeptSockets,
}

impl Preparations {
    /// Prepares rings for a data process of this user, with sockets that they need not make.
    ///
    /// # Errors
    ///
    /// No event can be made.
    pub fn new(user: Uid, sockets: KeptSockets) -> io::Result<Self> {
        let (waiting, outcomes, event) = (VecDeque::new(), channel(), new_event()?);
        Ok(Self { waiting, under_way: 0, outcomes, event, user, sockets })
    }

    /// Readable when [`take`](Self::take) has something to return.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Has a ring prepared. One that another process holds is waited for with `patience`.
    pub fn begin(&mut self, number: Number, settings: Settings, patience: Duration) {
        self.waiting.push_back((number, settings, patience));
    }

    /// Returns the rings that were prepared, and begins with those that wait.
    pub fn take(&mut self) -> Vec<Outcome> {
        // An event that is not readable tells of nothing.
        let _ = nix::unistd::read(&self.event, &mut [0; 8]);
        let mut taken: Vec<_> = self.outcomes.1.try_iter().collect();
        self.under_way -= taken.len();
        while self.under_way < MOST
            && let Some((number, settings, patience)) = self.waiting.pop_front()
        {
            match self.prepare(number, settings, patience) {
                Ok(()) => self.under_way += 1,
                Err(e) => taken.push((number, Err(system("start a thread")(e)))),
            }
        }
        taken
    }

    fn prepare(&self, number: Number, settings: Settings, patience: Duration) -> io::Result<()> {
        let (sender, user, sockets) = (self.outcomes.0.clone(), self.user, self.sockets.clone());
        let event = self.event.try_clone()?;
        let prepare = move || {
            let outcome = prepare(&settings, user, &sockets, patience);
            // Nobody waits any more at the end of the process.
            let _ = sender.send((number, outcome));
            let _ = nix::unistd::write(&event, &1u64.to_ne_bytes());
        };
        thread::Builder::new().name("prepare".to_owned()).spawn(prepare).map(drop)
    }
}

/// Opens everything that a ring needs.
fn prepare(
    settings: &Settings,
    user: Uid,
    sockets: &KeptSockets,
    patience: Duration,
) -> Result<Prepared, Failure> {
    let none = |inherited: Inherited| {
        Err(io::Error::other(format!("{inherited}: a ring of many makes its sockets itself")))
    };
    let kept = |path: &Path| sockets.take(path);
    let sockets = Sockets { inherited: &none, kept: &kept };
    let prepared = patiently(patience, || Prepared::new(settings, sockets, &Limits::default()))?;
    // The limits, which are none, end nothing.
    let stopped = || system("open the ring")(io::ErrorKind::Interrupted.into());
    let prepared = prepared.ok_or_else(stopped)?;
    prepared.try_reopen(settings, user)?;
    Ok(prepared)
}

/// Takes something, which is waited for with `patience` where another process holds it.
///
/// # Errors
///
/// Those of `take`.
pub fn patiently<T>(
    patience: Duration,
    mut take: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let start = Instant::now();
    loop {
        match take() {
            Err(e) if is_held(&e) && start.elapsed() < patience => thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

/// Whether another process has the ring, or listens at one of its sockets.
fn is_held(failure: &Failure) -> bool {
    match failure {
        Failure::Ring { source, .. } => matches!(source, Error::RoleTaken { .. }),
        Failure::Socket { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
        _ => false,
    }
}
