//! The loop from standard input into the journal.

use super::super::failure::{Failure, Outcome};
use super::super::framing::Framing;
use super::super::input::{CHUNK, Input, reading};
use super::super::oversize::{Counting, OnTooLarge, TooLarge, refusal};
use super::super::splitter::{Piece, Size, Splitter, Step};
use super::aside::{Appending, AsideFile};
use super::{LOOK, LOOK_AT_FILE, ended};
use ring_program::Stop;
use shared_block_ring::wait::wait_readable;
use shared_block_ring::{Error, Journal as Log, JournalError};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Why the loop has ended.
pub enum End {
    Input,
    Stop,
}

/// What happens to an item that is larger than the journal.
#[derive(Clone, Copy)]
pub enum Oversize<'a> {
    /// The item is appended to this file.
    Aside(&'a AsideFile),
    Other(OnTooLarge),
}

/// The options of the loop, and the journal.
pub struct Feed<'a> {
    pub journal: &'a Log<Vec<u8>>,
    /// Name of the journal, for errors.
    pub name: &'a str,
    pub stop: &'a Stop,
    pub framing: Framing,
    /// Largest size of an item, in bytes.
    pub max: usize,
    pub oversize: Oversize<'a>,
    /// Longest wait for room.
    pub timeout: Option<Duration>,
}

/// Counts of the items of the input.
#[derive(Default)]
pub struct Counts {
    /// Items of the input that are in the journal, set aside, or dropped.
    records: u64,
    /// Whether the first parts of the next item are.
    within: bool,
    /// Items that were made durable in the journal.
    pub accepted: u64,
    /// Items that were set aside because they are too large.
    pub aside: u64,
    pub too_large: TooLarge,
    counting: Counting,
}

impl<'a> Feed<'a> {
    /// Pushes all input. An error names the first item that was not accepted.
    pub fn run(&self, input: &Input, counts: &mut Counts) -> Result<End, Failure> {
        self.pump(input, counts).map_err(|failure| {
            let rest = if counts.within { "the rest of item" } else { "item" };
            let number = counts.records + 1;
            let place =
                format!("not accepted: {rest} {number} of the input and everything behind it");
            match failure {
                Failure::Ended { .. } => failure,
                Failure::TimedOut { seconds, what } => {
                    Failure::TimedOut { seconds, what: format!("{what}; {place}") }
                }
                other => Failure::Refused(format!("{other}; {place}")),
            }
        })
    }

    fn pump(&self, input: &Input, counts: &mut Counts) -> Result<End, Failure> {
        let split = matches!(self.oversize, Oversize::Other(OnTooLarge::Split));
        let mut splitter = Splitter::new(self.framing, self.max, split);
        let mut chunk = vec![0; CHUNK];
        let mut appending = None;
        loop {
            if self.push_all(&mut splitter, &mut appending, counts)? {
                return Ok(End::Input);
            }
            if let Some(size) = splitter.too_large() {
                // The input may pause within this item.
                self.count(size, counts)?;
            }
            let waited = wait_readable(&[self.stop.fd(), input.as_fd()], Some(LOOK_AT_FILE));
            match waited.map_err(reading())? {
                Some(0) => return self.stopped(&splitter),
                Some(_) => {}
                // A signal, or the end of that time.
                None => {
                    self.journal.check_presence().map_err(|e| ended(self.name, e))?;
                    continue;
                }
            }
            match input.read(&mut chunk)? {
                Some(0) => splitter.end(),
                Some(count) => splitter.feed(&chunk[..count]),
                None => {}
            }
        }
    }

    fn stopped(&self, splitter: &Splitter) -> Result<End, Failure> {
        if splitter.is_between_records() {
            return Ok(End::Stop);
        }
        Err(match (splitter.too_large(), self.oversize) {
            (Some(size), Oversize::Other(OnTooLarge::Fail)) => refusal("journal", size, self.max),
            _ => Failure::Refused("asked to stop within an item".to_owned()),
        })
    }

    /// Pushes every item that was read whole, and returns whether the input is used up.
    fn push_all(
        &self,
        splitter: &mut Splitter,
        appending: &mut Option<Appending<'a>>,
        counts: &mut Counts,
    ) -> Result<bool, Failure> {
        loop {
            let (piece, size) = match splitter.next() {
                Step::Item(piece) => (piece, None),
                Step::TooLarge(piece, size) => (piece, Some(size)),
                Step::Truncated => {
                    return Err(Failure::Refused("the input ends within an item".to_owned()));
                }
                step => return Ok(step == Step::End),
            };
            let bytes = splitter.bytes(&piece);
            match (size, self.oversize) {
                (None, _) => {
                    self.push(&bytes.to_vec())?;
                    counts.accepted += 1;
                    counts.within = !piece.last;
                    counts.too_large.note(&piece);
                }
                (Some(size), Oversize::Aside(file)) => {
                    self.set_aside(file, &piece, bytes, size, appending)
                        .map_err(Failure::io("cannot set aside an item that is too large"))?;
                    counts.aside += u64::from(piece.last);
                }
                (Some(size), Oversize::Other(_)) => {
                    self.count(size, counts)?;
                    counts.too_large.dropped += u64::from(piece.last);
                }
            }
            counts.records += u64::from(piece.last);
        }
    }

    /// Refuses an item that is too large, once its size is known as far as the error names it.
    fn count(&self, size: Size, counts: &mut Counts) -> Outcome {
        let refused = matches!(self.oversize, Oversize::Other(OnTooLarge::Fail))
            && counts.counting.is_over(size, self.timeout);
        if refused { Err(refusal("journal", size, self.max)) } else { Ok(()) }
    }

    /// Pushes an item. Waits for room, and while the journal is suspended.
    fn push(&self, item: &Vec<u8>) -> Outcome {
        let start = Instant::now();
        loop {
            let why = match self.journal.push(item) {
                Ok(_) => return Ok(()),
                Err(JournalError::Full) => "full",
                Err(JournalError::Ring(Error::Suspended)) => "suspended",
                Err(e) => return Err(ended(self.name, e)),
            };
            let stopped = wait_readable(&[self.stop.fd()], Some(LOOK));
            if stopped.map_err(Failure::io("cannot wait"))?.is_some() {
                return Err(Failure::Refused(format!("asked to stop while the journal was {why}")));
            }
            if let Some(timeout) = self.timeout.filter(|timeout| start.elapsed() >= *timeout) {
                let seconds = timeout.as_secs_f64();
                return Err(Failure::TimedOut {
                    seconds,
                    what: format!("the journal stayed {why}"),
                });
            }
        }
    }

    /// Appends the next piece of an item that is too large to the file.
    fn set_aside(
        &self,
        file: &'a AsideFile,
        piece: &Piece,
        bytes: &[u8],
        size: Size,
        appending: &mut Option<Appending<'a>>,
    ) -> io::Result<()> {
        let (Size::Exactly(length) | Size::AtLeast(length)) = size;
        let begin = || file.begin_item(length, self.stop);
        let mut current = appending.take().map_or_else(begin, Ok)?;
        current.put(bytes, self.stop)?;
        if piece.last {
            return current.finish(self.stop);
        }
        *appending = Some(current);
        Ok(())
    }
}
