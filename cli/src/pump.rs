//! The loop of `produce`, from its input into a ring. Every byte that was read is pushed, or
//! named in the error.

use super::failure::{Failure, Outcome};
use super::fate::Fate;
use super::framing::Framing;
use super::input::{CHUNK, Source, reading};
use super::oversize::{Counting, OnTooLarge, refusal};
use super::pusher::{LOOK, Pusher};
use super::splitter::{Piece, Size, Splitter, Step};
use ring_program::Stop;
use shared_block_ring::wait::wait_readable;
use std::os::fd::AsFd;
use std::time::Duration;

/// How the input is divided.
#[derive(Clone, Copy)]
pub struct Division {
    pub framing: Framing,
    pub on_too_large: OnTooLarge,
    /// The longest time to read an item that is too large.
    pub timeout: Option<Duration>,
}

/// Items that are pushed together.
struct Gathered {
    batch: Vec<Piece>,
    /// Bytes of the input in each entry of the journal that was read before.
    reprinted: Vec<u64>,
    /// The step behind them, if that is no item.
    next: Option<Step>,
}

/// What the loop does after a look at the input.
enum Next {
    Read,
    Idle,
    Stop,
}

pub struct Pump<'p, 'a> {
    pusher: &'p mut Pusher<'a>,
    stop: &'p Stop,
    division: Division,
    max: usize,
    /// Bytes of the input in the record that is being dropped.
    dropping: u64,
    counting: Counting,
}

impl<'p, 'a> Pump<'p, 'a> {
    pub fn new(pusher: &'p mut Pusher<'a>, stop: &'p Stop, division: Division) -> Self {
        let max = pusher.max_item();
        Self { pusher, stop, division, max, dropping: 0, counting: Counting::default() }
    }

    /// Pushes all input. An error says which items are accepted, in doubt, and not accepted.
    pub fn run(&mut self, input: &mut dyn Source) -> Outcome {
        let outcome = self.pump(input);
        self.pusher.finish(outcome, Fate::explain)
    }

    fn pump(&mut self, input: &mut dyn Source) -> Outcome {
        let split = self.division.on_too_large == OnTooLarge::Split;
        let mut splitter = Splitter::new(self.division.framing, self.max, split);
        let mut chunk = vec![0; CHUNK];
        loop {
            if self.push_all(&mut splitter)? {
                return self.pusher.advance();
            }
            if let Some(size) = splitter.too_large() {
                // The input may pause within this item.
                self.count(size)?;
            }
            match self.look(input)? {
                Next::Read => {}
                Next::Idle => continue,
                Next::Stop => return self.stopped(&splitter),
            }
            match input.read(&mut chunk)? {
                Some(0) => splitter.end(),
                Some(count) => splitter.feed(&chunk[..count]),
                None => {}
            }
        }
    }

    fn stopped(&self, splitter: &Splitter) -> Outcome {
        if splitter.is_between_records() || self.pusher.reads_journal() {
            return Ok(());
        }
        Err(match splitter.too_large() {
            Some(size) if self.division.on_too_large == OnTooLarge::Fail => {
                refusal("ring", size, self.max)
            }
            _ => Failure::Refused("asked to stop within an item".to_owned()),
        })
    }

    /// More input at once joins the batch; a pause makes the batch visible.
    fn look(&mut self, input: &mut dyn Source) -> Result<Next, Failure> {
        if self.stop.requested() {
            return Ok(Next::Stop);
        }
        let poll = |fds: &[_], timeout| wait_readable(fds, Some(timeout)).map_err(reading());
        if !self.pusher.look_now_and_then()? {
            return Ok(Next::Stop);
        }
        if input.has_read_ahead() || poll(&[input.as_fd()], Duration::ZERO)?.is_some() {
            return Ok(Next::Read);
        }
        self.pusher.advance()?;
        match poll(&[self.stop.fd(), input.as_fd()], LOOK)? {
            Some(0) => Ok(Next::Stop),
            Some(_) => Ok(Next::Read),
            None => Ok(Next::Idle),
        }
    }

    /// Pushes every item that was read whole, and returns whether the input is used up.
    fn push_all(&mut self, splitter: &mut Splitter) -> Result<bool, Failure> {
        loop {
            let Gathered { batch, reprinted, next } = self.gather(splitter);
            let items: Vec<&[u8]> = batch.iter().map(|piece| splitter.bytes(piece)).collect();
            self.pusher.push_batch(&items, &batch, |_, _| Ok(()))?;
            for used in reprinted {
                self.pusher.pass(used);
            }
            match next {
                None => {}
                Some(Step::TooLarge(piece, size)) => self.pass(&piece, size)?,
                Some(Step::Truncated) => {
                    return Err(Failure::Refused("the input ends within an item".to_owned()));
                }
                Some(step) => return Ok(step == Step::End),
            }
        }
    }

    /// Returns the next items of the input, and the step behind them if that is no item.
    fn gather(&mut self, splitter: &mut Splitter) -> Gathered {
        let (mut batch, mut reprinted) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        // A batch becomes visible as a whole: one as large as the ring would wait until all of the
        // ring is free.
        let enough = CHUNK.min(self.max / 4) as u64;
        while bytes < enough || batch.is_empty() {
            match splitter.next() {
                Step::Item(piece) if self.pusher.is_reprint(splitter.bytes(&piece)) => {
                    reprinted.push(piece.used);
                }
                Step::Item(piece) => {
                    bytes += piece.used;
                    batch.push(piece);
                }
                other => return Gathered { batch, reprinted, next: Some(other) },
            }
        }
        Gathered { batch, reprinted, next: None }
    }

    /// Passes over a piece of a record that is too large and not split.
    fn pass(&mut self, piece: &Piece, size: Size) -> Outcome {
        if piece.first {
            // Items before this record do not wait for its end.
            self.pusher.advance()?;
        }
        if self.division.on_too_large == OnTooLarge::Fail {
            return self.count(size);
        }
        self.dropping += piece.used;
        if piece.last {
            self.pusher.counts.too_large.dropped += 1;
            self.pusher.pass(std::mem::take(&mut self.dropping));
        }
        Ok(())
    }

    /// Refuses an item that is too large, once its size is known as far as the error names it.
    fn count(&mut self, size: Size) -> Outcome {
        let refused = self.division.on_too_large == OnTooLarge::Fail
            && self.counting.is_over(size, self.division.timeout);
        if refused { Err(refusal("ring", size, self.max)) } else { Ok(()) }
    }
}
