//! The terminal: taken over as a whole, and given back as it was, however the program ends.

use super::super::failure::Failure;
use super::super::output::Sink;
use crossterm::Command;
use crossterm::cursor::{Hide, Show};
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

/// The longest wait for a terminal that takes no output, when it is given back.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The terminal that is taken over, and its modes before.
struct Taken {
    input: OwnedFd,
    output: OwnedFd,
    modes: Termios,
}

/// Here, and not in a value: a panic on any thread gives the terminal back before it is reported.
static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);

fn taken() -> MutexGuard<'static, Option<Taken>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A terminal that is taken over until this is dropped.
pub struct Terminal(());

#[expect(clippy::unused_self, reason = "only who has taken the terminal may ask")]
impl Terminal {
    /// Takes over the terminal whose keys come from `input` and which shows `output`.
    pub fn take(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                report(panic);
            }));
        });
        let modes = tcgetattr(&input)?;
        // From here on it is given back, whatever fails.
        *taken() = Some(Taken { input, output, modes });
        let terminal = Self(());
        terminal.take_again()?;
        Ok(terminal)
    }

    /// Returns whether a shell has the terminal, and this process runs in the background. There it
    /// would be stopped if it set the terminal's modes.
    pub fn is_in_background(&self) -> bool {
        taken().as_ref().is_some_and(is_in_background)
    }

    /// Takes over the terminal once more: a shell has had it while this process was stopped.
    pub fn take_again(&self) -> io::Result<()> {
        if let Some(taken) = &*taken() {
            let mut raw = taken.modes.clone();
            cfmakeraw(&mut raw);
            tcsetattr(&taken.input, SetArg::TCSANOW, &raw)?;
            write(&taken.output, &(ansi(&EnterAlternateScreen) + &ansi(&Hide)))?;
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back as it was. A shell that has it meanwhile is left alone.
fn give_back() {
    let taken = taken().take();
    if let Some(taken) = taken.filter(|taken| !is_in_background(taken)) {
        // The terminal may be gone; there is nothing else to be done about it.
        let _ = write(&taken.output, &(ansi(&Show) + &ansi(&LeaveAlternateScreen)));
        let _ = tcsetattr(&taken.input, SetArg::TCSANOW, &taken.modes);
    }
}

/// Returns whether another process group of this session has the terminal.
fn is_in_background(taken: &Taken) -> bool {
    tcgetpgrp(&taken.input).is_ok_and(|group| group != getpgrp())
}

fn ansi(command: &impl Command) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = command.write_ansi(&mut text);
    text
}

fn write(output: &OwnedFd, text: &str) -> io::Result<()> {
    let mut sink = Sink::new(output.as_fd())?;
    let (_, outcome) = sink.write(text.as_bytes(), &|at| at, None, Some(LAST_WORDS));
    outcome.map_err(super::super::output::Halt::into_error)
}

/// Frames on their way to the terminal. A terminal that takes nothing is not waited for once the
/// program is to end.
pub struct Frames<'a> {
    sink: Sink<std::os::fd::BorrowedFd<'a>>,
    stop: std::os::fd::BorrowedFd<'a>,
    frame: Vec<u8>,
    /// A frame could not be written. What the library writes when it ends would fail, too, and it
    /// complains of that on standard error, which may be the same terminal.
    failed: bool,
}

impl<'a> Frames<'a> {
    pub fn new(
        output: std::os::fd::BorrowedFd<'a>,
        stop: std::os::fd::BorrowedFd<'a>,
    ) -> Result<Self, Failure> {
        let sink = Sink::new(output).map_err(Failure::io("standard output cannot be used"))?;
        Ok(Self { sink, stop, frame: Vec::new(), failed: false })
    }
}

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.frame.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let frame = std::mem::take(&mut self.frame);
        if self.failed {
            return Ok(());
        }
        let (_, outcome) = self.sink.write(&frame, &|at| at, Some(self.stop), None);
        self.failed = outcome.is_err();
        outcome.map_err(super::super::output::Halt::into_error)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::pty::openpty;
    use std::fs::File;
    use std::io::Read;

    /// Reads what the terminal was sent up to a sequence.
    fn read_up_to(master: &mut File, wanted: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(wanted.as_bytes()) {
            let mut byte = [0];
            master.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn terminal_is_given_back_by_a_panic_and_at_the_end() {
        let pty = openpty(None, None).unwrap();
        let mut master = File::from(pty.master);
        let before = tcgetattr(&pty.slave).unwrap();
        let take = || {
            let [input, output] = [0, 1].map(|_| pty.slave.try_clone().unwrap());
            Terminal::take(input, output).unwrap()
        };
        let enters = ansi(&EnterAlternateScreen) + &ansi(&Hide);
        let leaves = ansi(&Show) + &ansi(&LeaveAlternateScreen);
        let taken = take();
        assert_ne!(tcgetattr(&pty.slave).unwrap(), before);
        assert_eq!(read_up_to(&mut master, &enters), enters);
        // On another thread, as a look at a ring would be.
        assert!(std::thread::spawn(|| panic!("on purpose")).join().is_err());
        assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
        assert_eq!(read_up_to(&mut master, &leaves), leaves);
        drop(taken);
        let taken = take();
        read_up_to(&mut master, &enters);
        assert_ne!(tcgetattr(&pty.slave).unwrap(), before);
        drop(taken);
        assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
        assert_eq!(read_up_to(&mut master, &leaves), leaves);
    }
}
