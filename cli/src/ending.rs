//! How a command ends: with its error in words on standard error, its exit code, and with `--json`
//! one JSON object that has both.

use super::failure::{Failure, Outcome};
use super::output::{message, print, say};
use super::signals::{stop_except_on_hangup, stop_on_signal};
use ring_program::{Stop, set_up_signals};
use serde::Serialize;
use shared_block_ring::wait::wait_readable;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Where a command writes its JSON object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, in the place of the report for people.
    Output,
    /// Standard error, as the last line: standard output has the items, or nothing.
    Error,
}

/// The JSON object: what the command has to report, and how it has ended.
#[derive(Serialize)]
struct Object<'a, T> {
    #[serde(flatten)]
    facts: &'a T,
    exit_code: u8,
    /// The error in words; null if there is none.
    error: Option<String>,
}

impl<T: Serialize> Object<'_, T> {
    fn text(&self) -> String {
        // Serialization fails only for map keys that are no text, and there are none.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Set before the JSON object is written, by the end of the command or by a signal, whichever comes
/// first.
static IS_WRITTEN: AtomicBool = AtomicBool::new(false);

/// Runs a command without `--json`, and returns its exit code.
pub fn plain(run: impl FnOnce() -> Outcome) -> u8 {
    let outcome = signals_set_up().and_then(|()| run());
    end(outcome, None::<(Stream, &())>, None)
}

/// Runs a command that winds down when it is asked to stop, and returns its exit code.
pub fn stoppable<T: Default + Serialize>(
    json: Option<Stream>,
    run: impl FnOnce(&Stop, &mut T) -> Outcome,
) -> u8 {
    stoppable_by(stop_on_signal, json, run)
}

/// Does the same for a command that SIGHUP does not end.
pub fn stoppable_except_on_hangup<T: Default + Serialize>(
    json: Option<Stream>,
    run: impl FnOnce(&Stop, &mut T) -> Outcome,
) -> u8 {
    stoppable_by(stop_except_on_hangup, json, run)
}

fn stoppable_by<T: Default + Serialize>(
    signals: impl FnOnce() -> Result<Stop, Failure>,
    json: Option<Stream>,
    run: impl FnOnce(&Stop, &mut T) -> Outcome,
) -> u8 {
    let mut facts = T::default();
    let (outcome, stop) = match signals_set_up().and_then(|()| signals()) {
        Ok(stop) => (run(&stop, &mut facts), Some(stop)),
        Err(failure) => (Err(failure), None),
    };
    end(outcome, json.map(|stream| (stream, &facts)), stop.as_ref())
}

/// Runs a command that a signal ends at once, since it has nothing to settle, and returns its exit
/// code. Its report goes to standard output.
pub fn interruptible<T: Default + Serialize>(
    json: bool,
    run: impl FnOnce(&mut T) -> Outcome,
) -> u8 {
    let mut facts = T::default();
    let ready = signals_set_up().and_then(|()| if json { report_signals() } else { Ok(()) });
    let outcome = ready.and_then(|()| run(&mut facts));
    end(outcome, json.then_some((Stream::Output, &facts)), None)
}

fn signals_set_up() -> Outcome {
    set_up_signals().map_err(Failure::io("cannot set up signals"))
}

/// Starts a thread that writes the JSON object when a signal comes, and then ends the process by
/// that signal.
fn report_signals() -> Outcome {
    let stop = Stop::on_signal().map_err(Failure::io("cannot set up signals"))?;
    let watch = move || {
        while !matches!(wait_readable(&[stop.fd()], None), Ok(Some(_))) {}
        // If the command is at its own end and writes the object, the signal ends that write.
        if !IS_WRITTEN.swap(true, Ordering::Relaxed) {
            let (signal, facts) = (stop.signal(), &());
            let exit_code = u8::try_from(128 + signal).unwrap_or(u8::MAX);
            let error = Some(format!("ended by signal {signal}"));
            // The process ends in any case, and has no other way to report a failed write.
            let _ = print(&Object { facts, exit_code, error }.text(), Some(&stop));
        }
        stop.end_process()
    };
    let thread = "cannot start a thread (a limit on processes or on memory?)";
    let started = thread::Builder::new().name("signals".to_owned()).spawn(watch);
    started.map(drop).map_err(Failure::io(thread))
}

/// Reports the outcome of a command, and returns its exit code.
fn end<T: Serialize>(outcome: Outcome, json: Option<(Stream, &T)>, stop: Option<&Stop>) -> u8 {
    // The object would be written over the ring.
    let json = json.filter(|_| !matches!(outcome, Err(Failure::OutputIsRing(_))));
    if json.is_some() && IS_WRITTEN.swap(true, Ordering::Relaxed) {
        // The thread of `report_signals` writes the object, and ends the process.
        loop {
            thread::park();
        }
    }
    let object = json.map(|(stream, facts)| {
        let error = outcome.as_ref().err().map(Failure::words);
        (stream, Object { facts, exit_code: code(&outcome), error }.text())
    });
    let outcome = match &object {
        Some((Stream::Output, text)) => {
            let printed = print(text, stop);
            // The exit code stands for the first error, whether the report was accepted or not.
            outcome.and(printed)
        }
        _ => outcome,
    };
    if let Err(failure) = &outcome {
        say(failure.words());
    }
    if let Some((Stream::Error, text)) = &object {
        // Behind the error, so that the object is the last line of standard error.
        message(&format!("{text}\n"));
    }
    code(&outcome)
}

fn code(outcome: &Outcome) -> u8 {
    outcome.as_ref().err().map_or(0, Failure::code)
}
