//! SIGTERM, SIGINT and SIGHUP as a readable descriptor, so that every wait ends with them and every
//! batch is finished first; a limit of file sizes as an error, not the end of the process; and the
//! end of what this process has started with it.

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::Pid;
use ring_os::wait_readable;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Pause between two interruptions of a system call that goes on after the process was asked to
/// stop.
const INTERRUPTION_PAUSE: Duration = Duration::from_millis(20);

/// A descriptor that is readable once the process was asked to stop.
#[derive(Debug)]
pub struct Stop {
    reader: UnixStream,
    /// Each byte is a request; signals write to duplicates.
    writer: UnixStream,
    /// The number of the signal that came last; 0 before the first one.
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// Makes SIGTERM, SIGINT and SIGHUP (a terminal that is closed) requests to stop: they no
    /// longer end the process, but make this readable. A SIGHUP that is ignored stays so, which is
    /// what `nohup` asks for.
    ///
    /// # Errors
    /// The operating system's, where there can be no handler or no socket pair.
    pub fn on_signal() -> io::Result<Self> {
        let hangup = (!is_ignored(libc::SIGHUP)?).then_some(libc::SIGHUP);
        Self::on([libc::SIGTERM, libc::SIGINT].into_iter().chain(hangup))
    }

    /// Makes SIGTERM and SIGINT requests to stop, for a program to which SIGHUP means something
    /// else.
    ///
    /// # Errors
    /// As [`on_signal`](Self::on_signal).
    pub fn except_on_hangup() -> io::Result<Self> {
        Self::on([libc::SIGTERM, libc::SIGINT])
    }

    /// Makes `signals` readable here. Where the requests are not to stop, [`take`](Self::take)
    /// takes them.
    ///
    /// # Errors
    /// As [`on_signal`](Self::on_signal).
    pub fn on(signals: impl IntoIterator<Item = libc::c_int>) -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        let stop = Self { reader, writer, signal: Arc::default() };
        signals.into_iter().try_for_each(|signal| stop.add(signal))?;
        Ok(stop)
    }

    /// Makes one more signal readable here, as those of [`on`](Self::on) are.
    ///
    /// # Errors
    /// As [`on_signal`](Self::on_signal).
    pub fn add(&self, signal: libc::c_int) -> io::Result<()> {
        let number = usize::try_from(signal).map_err(io::Error::other)?;
        // Before the byte: whoever reads that finds the number.
        signal_hook::flag::register_usize(signal, Arc::clone(&self.signal), number)?;
        let writer = self.writer.try_clone()?;
        signal_hook::low_level::pipe::register(signal, writer)?;
        Ok(())
    }

    /// Starts a thread that interrupts the main thread's system calls once the process was asked to
    /// stop, again and again until the process ends: a call that blocks, such as a write to a pipe
    /// that nobody reads, then answers `EINTR` or with what it has done so far. Before a call that
    /// can block, the main thread looks at [`requested`](Self::requested).
    ///
    /// # Errors
    /// The operating system's, where there can be no thread or no handler.
    pub fn interrupt_calls(&self) -> io::Result<()> {
        extern "C" fn nothing(_: libc::c_int) {}
        // Without SA_RESTART: a call that was interrupted is not begun again.
        let action =
            SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, which is safe wherever the signal arrives. Rust's
        // runtime does not use this signal.
        unsafe { sigaction(Signal::SIGURG, &action) }?;
        let asked = self.reader.try_clone()?;
        thread::Builder::new().name("stop".to_owned()).spawn(move || {
            while !matches!(wait_readable(&[asked.as_fd()], None), Ok(Some(_))) {}
            // An interruption could arrive between the look and the call, and be lost: so another
            // one always follows.
            while kill(Pid::this(), Signal::SIGURG).is_ok() {
                thread::sleep(INTERRUPTION_PAUSE);
            }
        })?;
        Ok(())
    }

    /// Returns whether the process was asked to stop. Stays true, so that a later wait ends at
    /// once.
    pub fn requested(&self) -> bool {
        matches!(wait_readable(&[self.fd()], Some(Duration::ZERO)), Ok(Some(_)))
    }

    /// Returns how often the process was asked to stop, up to 64 times.
    pub fn requests(&self) -> usize {
        let mut signals = [0; 64];
        // One byte for each request. Without any the read fails at once.
        recv(self.reader.as_raw_fd(), &mut signals, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)
            .unwrap_or(0)
    }

    /// Takes the requests so far, and returns whether there were any.
    pub fn take(&self) -> bool {
        let mut signals = [0; 64];
        let mut any = false;
        while recv(self.reader.as_raw_fd(), &mut signals, MsgFlags::MSG_DONTWAIT)
            .is_ok_and(|count| count > 0)
        {
            any = true;
        }
        any
    }

    /// Returns the number of the signal that came last; 0 if there was none.
    pub fn signal(&self) -> usize {
        self.signal.load(Ordering::Relaxed)
    }

    /// Ends the process by the signal that came last, as if there were no handler for it: with exit
    /// code 143 for SIGTERM in a shell.
    pub fn end_process(&self) -> ! {
        let signal = libc::c_int::try_from(self.signal()).unwrap_or(libc::SIGTERM);
        // It does not return for a signal whose default action is to end the process, as each of
        // them is.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
        std::process::exit(128 + signal)
    }

    /// Returns the descriptor to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Returns a function that asks the process to stop, as a signal does: for a thread without
    /// which the process is of no use.
    ///
    /// # Errors
    /// The operating system's, where there are no more descriptors.
    pub fn asker(&self) -> io::Result<impl Fn() + Send + use<>> {
        let writer = self.writer.try_clone()?;
        Ok(move || {
            // A socket that takes no more bytes is readable at its other end.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = send(writer.as_raw_fd(), &[0], flags);
        })
    }
}

/// Returns whether the process ignores `signal`.
fn is_ignored(signal: libc::c_int) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no new action is given, so that nothing changes; the present one is written to memory
    // of its type.
    if unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded, and has then filled in all of it.
    let action = unsafe { action.assume_init() };
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

/// Sets up signals as this crate needs them, whatever the process inherited. Programs call it
/// first.
///
/// A write beyond the limit of file sizes (`ulimit -f`) fails with `EFBIG`; without this a signal
/// ends the process in the middle of it. SIGTERM, SIGINT, SIGHUP and SIGURG arrive: a parent that
/// blocks them, as a supervisor may, hands that down to what it starts.
///
/// # Errors
/// The operating system's, where there can be no handler or no change of the mask.
pub fn set_up_signals() -> io::Result<()> {
    // A handler, not SIG_IGN, which a started command would inherit.
    signal_hook::flag::register(libc::SIGXFSZ, Arc::default())?;
    // Started commands inherit the mask, too.
    let stops = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGURG];
    SigSet::from_iter(stops).thread_unblock()?;
    Ok(())
}

/// Has SIGTERM, SIGINT and SIGHUP do nothing: for a process that another one ends by other means,
/// while a service manager or a terminal sends them to both.
///
/// # Errors
/// The operating system's, where there can be no handler.
pub fn leave_stops_to_parent() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // A handler, not SIG_IGN, which a started command would inherit.
        signal_hook::flag::register(signal, Arc::default())?;
    }
    Ok(())
}

/// Has the process of `command` killed when the thread that starts it ends, with this process or
/// before, and does what [`restore_limits`] does. What that process starts itself is not killed.
pub fn tie_to_parent(command: &mut Command) {
    prepare(command, Some(Signal::SIGKILL));
}

/// Gives the process of `command` the limit of open descriptors that this process was started with
/// ([`descriptors::raise`](crate::descriptors::raise)), and takes away what a service manager has
/// told this process alone.
pub fn restore_limits(command: &mut Command) {
    prepare(command, None);
}

fn prepare(command: &mut Command, at_parents_end: Option<Signal>) {
    let (parent, limits) = (Pid::this(), crate::descriptors::original());
    for name in crate::service::VARIABLES {
        command.env_remove(name);
    }
    let prepare = move || {
        if let Some(signal) = at_parents_end {
            set_pdeathsig(signal)?;
            // The parent has ended before that call: nobody would send the signal.
            if Pid::parent() != parent {
                return Err(io::Error::from(Errno::ECANCELED));
            }
        }
        if let Some((soft, hard)) = limits {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the child makes three system calls and nothing else; what they
    // get is in the closure by value, and an error of a number allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn asker_asks_as_a_signal_does_and_never_waits() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let stop = Stop { reader, writer, signal: Arc::default() };
        let ask = stop.asker().unwrap();
        assert!(!stop.requested());
        ask();
        assert!(stop.requested() && stop.requests() == 1);
        // More than the socket takes.
        for _ in 0..10_000 {
            ask();
        }
        assert!(stop.requested() && stop.requests() > 1);
        assert!(stop.take() && !stop.requested() && !stop.take());
    }
}
