//! The thread of a lane: its child, what the child was given, and what it has acknowledged.

use super::super::super::super::framing::Framing;
use super::super::{Batch, Event, Item, Reporter, RingFacts, SinkError, SinkErrorKind};
use super::child::{Child, words};
use super::{Ack, Manner, Order};
use nix::sys::eventfd::EventFd;
use ring_program::text::items;
use shared_block_ring::Position;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

/// Bytes that wait for the child to take them, about: items are framed only when it takes more.
const INPUT: usize = 64 << 10;

/// The longest time between two looks at whether the child has ended: one whose output others hold
/// does not tell.
const LOOK: Duration = Duration::from_secs(1);

/// The wait of a child that was given everything and has answered everything.
const IDLE: Duration = Duration::from_secs(3600);

/// Why a worker's turn ends.
enum End {
    /// The lane was dropped.
    Dropped,
    Failed(SinkError),
}

pub struct Worker {
    manner: Arc<Manner>,
    ring: RingFacts,
    events: Reporter,
    orders: Receiver<Order>,
    wake: Arc<EventFd>,
    /// Batches that are not framed yet; of the first one, the items from `next_item` on.
    waiting: VecDeque<Batch>,
    next_item: usize,
    /// The positions behind the items that the child was given, or will be, in order.
    given: VecDeque<Position>,
    input: Vec<u8>,
    /// Why an item cannot be given: it fails once all before it have been dealt with.
    refused: Option<String>,
    /// Whether no item follows.
    is_finishing: bool,
    is_dropped: bool,
}

impl Worker {
    pub fn new(
        manner: Arc<Manner>,
        ring: RingFacts,
        events: Reporter,
        orders: Receiver<Order>,
        wake: Arc<EventFd>,
    ) -> Self {
        Self {
            manner,
            ring,
            events,
            orders,
            wake,
            waiting: VecDeque::new(),
            next_item: 0,
            given: VecDeque::new(),
            input: Vec::new(),
            refused: None,
            is_finishing: false,
            is_dropped: false,
        }
    }

    /// Runs children until the lane is dropped, or one of them fails.
    pub fn run(mut self) {
        let end = loop {
            // A child is started for something to do.
            if self.waiting.is_empty() {
                match self.orders.recv() {
                    Ok(order) => self.take(order),
                    Err(_) => return,
                }
                continue;
            }
            let mut child = match Child::start(
                &self.manner.command,
                &self.ring,
                self.manner.ack == Ack::Exit,
            ) {
                Ok(child) => child,
                Err(e) => break retry(format!("cannot run sh: {e}")),
            };
            let served = self.serve(&mut child);
            child.end(self.manner.deadline.get().copied());
            if let Err(end) = served {
                break end;
            }
        };
        if let End::Failed(error) = end {
            self.events.report(Event::Failed(error));
        }
    }

    /// Gives items to a child until it has ended well.
    fn serve(&mut self, child: &mut Child) -> Result<(), End> {
        let mut is_given = false;
        loop {
            self.take_orders();
            if self.is_dropped {
                return Err(End::Dropped);
            }
            if child.takes_input() && !is_given {
                is_given = self.fill() || (self.is_finishing && self.waiting.is_empty());
                if is_given && self.input.is_empty() {
                    child.end_input();
                }
            }
            if self.given.is_empty()
                && let Some(message) = self.refused.take()
            {
                return Err(End::Failed(SinkError { message, kind: SinkErrorKind::Stop }));
            }
            let is_idle = self.given.is_empty() && !self.manner.per_batch;
            let pause = if is_idle { IDLE } else { LOOK };
            let wants_input = !self.input.is_empty();
            let ready = child.wait(self.wake.as_fd(), wants_input, pause);
            let ready = ready.map_err(|e| retry(format!("cannot wait for the command: {e}")))?;
            if ready.wake {
                // Empty only after a spurious wake-up.
                let _ = self.wake.read();
            }
            if ready.input {
                let gave = child.give(&mut self.input);
                gave.map_err(|e| retry(format!("{}: {e}", self.manner.command)))?;
                if is_given && self.input.is_empty() {
                    child.end_input();
                }
            }
            if ready.output {
                self.hear(child)?;
            } else if (child.is_silent() || !is_idle)
                && let Some(outcome) = self.ended(child)
            {
                return outcome;
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Give(batch) => self.waiting.push_back(batch),
            Order::Finish => self.is_finishing = true,
        }
    }

    fn take_orders(&mut self) {
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.take(order),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.is_dropped = true;
                    return;
                }
            }
        }
    }

    /// Frames items for the child. Returns whether its input ends behind them.
    fn fill(&mut self) -> bool {
        while self.input.len() < INPUT && self.refused.is_none() {
            let Some(batch) = self.waiting.front() else { return false };
            let Some(item) = batch.items.get(self.next_item) else {
                self.waiting.pop_front();
                self.next_item = 0;
                if self.manner.per_batch {
                    return true;
                }
                continue;
            };
            match frame(&self.manner, batch, item, &mut self.input) {
                Ok(()) => {
                    self.given.push_back(item.next);
                    self.next_item += 1;
                }
                Err(message) => self.refused = Some(message),
            }
        }
        // What comes before a refused item is all that this child gets.
        self.manner.per_batch && self.refused.is_some()
    }

    /// Takes what the child acknowledges.
    fn hear(&mut self, child: &mut Child) -> Result<(), End> {
        let mut wrong = None;
        let mut arrived = None;
        let given = &mut self.given;
        let is_heard = self.manner.ack == Ack::Lines;
        let taken = child.take_lines(|line| {
            if !is_heard || wrong.is_some() {
                return;
            }
            match acknowledged(line, given) {
                Ok(position) => arrived = position.or(arrived),
                Err(message) => wrong = Some(message),
            }
        });
        if let Some(position) = arrived {
            self.events.report(Event::Acknowledged(position));
        }
        let command = &self.manner.command;
        taken.map_err(|e| retry(format!("{command}: {e}")))?;
        wrong.map_or(Ok(()), |message| Err(retry(format!("{command}: {message}"))))
    }

    /// Returns what it means that the child has ended, if it has.
    fn ended(&mut self, child: &mut Child) -> Option<Result<(), End>> {
        let command = &self.manner.command;
        let status = match child.ended() {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            Err(e) => return Some(Err(retry(format!("{command}: {e}")))),
        };
        // Its last words.
        while !child.is_silent() {
            match child.wait(self.wake.as_fd(), false, Duration::ZERO) {
                Ok(ready) if ready.output => {
                    if let Err(end) = self.hear(child) {
                        return Some(Err(end));
                    }
                }
                _ => break,
            }
        }
        let command = &self.manner.command;
        if self.manner.ack == Ack::Exit && status.success() {
            // The exit code acknowledges items that the command cannot have seen.
            if !self.input.is_empty() || child.has_unread() {
                return Some(Err(retry(format!(
                    "{command}: {status}, and it has not read all of its input: {} {} count as not dealt with (a command that needs no input reads it all the same: cat > /dev/null)",
                    self.given.len(),
                    items(self.given.len() as u64)
                ))));
            }
            if let Some(position) = self.given.pop_back() {
                self.given.clear();
                self.events.report(Event::Acknowledged(position));
            }
            return Some(Ok(()));
        }
        // It may end whenever it has dealt with everything.
        if status.success() && self.given.is_empty() {
            // It may have answered for items that it did not read.
            self.input.clear();
            return Some(Ok(()));
        }
        let left = self.given.len() as u64;
        Some(Err(retry(format!(
            "{}, and {left} {} not acknowledged",
            words(command, status),
            if left == 1 { "item was" } else { "items were" }
        ))))
    }
}

fn retry(message: String) -> End {
    End::Failed(SinkError { message, kind: SinkErrorKind::Retry })
}

/// Appends an item as the child gets it.
fn frame(manner: &Manner, batch: &Batch, item: &Item, input: &mut Vec<u8>) -> Result<(), String> {
    let begin = input.len();
    if manner.ack == Ack::Lines {
        match manner.framing {
            Framing::Length => input.extend_from_slice(&item.next.get().to_le_bytes()),
            Framing::Lines | Framing::Nul | Framing::Whole | Framing::Export => {
                input.extend_from_slice(format!("{}\t", item.next).as_bytes());
            }
        }
    }
    let bytes = batch.bytes.get(item.range.clone()).unwrap_or_default();
    manner.framing.join(bytes, manner.on_separator, input).map_err(|e| {
        input.truncate(begin);
        format!(
            "cannot give the item at position {} to the command: {e}; it is still in the ring ({})",
            item.position,
            e.remedy()
        )
    })
}

/// Returns the position that a line acknowledges; `None` if that was acknowledged before.
fn acknowledged(line: &[u8], given: &mut VecDeque<Position>) -> Result<Option<Position>, String> {
    let text = String::from_utf8_lossy(line);
    let shown: String =
        text.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect();
    let position: Position =
        text.trim().parse().map_err(|_| format!("it printed \"{shown}\", which is no position"))?;
    let at = given.partition_point(|end| *end < position);
    match given.get(at) {
        Some(end) if *end == position => {
            given.drain(..=at);
            Ok(Some(position))
        }
        // Said twice.
        _ if at == 0 => Ok(None),
        _ => Err(format!("it printed {position}, which stands before no item that it was given")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn line_acknowledges_an_item_and_all_before_it() {
        let position = |n| Position::new(n).unwrap();
        let mut given: VecDeque<_> = [8, 16, 24].map(position).into();
        assert_eq!(acknowledged(b"16", &mut given), Ok(Some(position(16))));
        assert_eq!(acknowledged(b"16", &mut given), Ok(None));
        assert_eq!(acknowledged(b" 8 ", &mut given), Ok(None));
        for wrong in [&b"28"[..], b"x", b"", b"25", b"-8"] {
            assert!(acknowledged(wrong, &mut given).is_err(), "{wrong:?}");
        }
        assert_eq!(given, [position(24)]);
    }
}
