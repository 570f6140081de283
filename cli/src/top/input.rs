//! Keys and sizes from the terminal, read on a thread of their own: the reader blocks in the middle
//! of a key's sequence, and never returns if the terminal goes away there.

use crossterm::event::{self, Event};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// Events from the terminal. The thread that reads them ends with the process.
pub struct Input {
    terminal: BorrowedFd<'static>,
    events: Receiver<io::Result<Event>>,
    ready: Arc<EventFd>,
}

impl Input {
    /// Begins to read the terminal, which is standard input.
    pub fn start(terminal: BorrowedFd<'static>) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ready = Arc::new(EventFd::from_flags(flags)?);
        let (sender, events) = channel();
        let signal = Arc::clone(&ready);
        let read = move || {
            if let Err(e) = read(terminal, &sender, &signal) {
                // The view has ended.
                let _ = sender.send(Err(e));
            }
            let _ = signal.write(1);
        };
        thread::Builder::new().name("input".to_owned()).spawn(read)?;
        Ok(Self { terminal, events, ready })
    }

    /// Returns the descriptor that is readable when there are events.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Returns the events since the last call.
    pub fn take(&self) -> impl Iterator<Item = io::Result<Event>> {
        // It fails if there is none.
        let _ = self.ready.read();
        self.events.try_iter()
    }

    /// Returns whether the terminal is gone.
    pub fn is_gone(&self) -> bool {
        look(self.terminal, PollTimeout::ZERO).is_ok_and(|seen| seen.contains(PollFlags::POLLHUP))
    }
}

/// Waits until the terminal is readable or gone.
fn look(terminal: BorrowedFd<'_>, timeout: PollTimeout) -> nix::Result<PollFlags> {
    let mut fds = [PollFd::new(terminal, PollFlags::POLLIN)];
    poll(&mut fds, timeout)?;
    Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
}

/// Reads until the terminal is gone or the view has ended.
fn read(
    terminal: BorrowedFd<'_>,
    sender: &Sender<io::Result<Event>>,
    ready: &EventFd,
) -> io::Result<()> {
    loop {
        let seen = match look(terminal, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            seen => seen?,
        };
        if seen.contains(PollFlags::POLLHUP) {
            return Ok(());
        }
        // One reading may bring several. Without any time it would not even look.
        while event::poll(Duration::from_millis(1))? {
            if sender.send(event::read()).is_err() {
                return Ok(());
            }
            ready.write(1)?;
        }
    }
}
