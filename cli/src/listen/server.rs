//! The loop over all sockets and connections.

use super::Counts;
use super::connection::{Connection, Division, Fault, Received};
use super::door::{ACCEPT_PAUSE, Door};
use super::endpoint::Datagrams;
use super::group::Group;
use super::sender::Sender;
use crate::failure::{Failure, Outcome};
use crate::fate::Fate;
use crate::input::CHUNK;
use crate::oversize::OnTooLarge;
use crate::pusher::{LOOK, Pusher};
use crate::splitter::Size;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_program::Stop;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Bytes of items after which no further connection is read in a turn.
const ENOUGH: usize = 1 << 20;

/// Datagrams that are received from one socket in a turn.
const DATAGRAMS: usize = 64;

/// Datagrams that are received at the end from a socket that stays: more than the kernel holds
/// (`net.unix.max_dgram_qlen`, 512 under systemd), and a bound where senders go on.
const LAST_DATAGRAMS: usize = 1024;

/// Time between two looks at whether the sockets still have their names.
const NAMES: Duration = Duration::from_secs(1);

/// How long the end waits for senders that do not read their last acknowledgement.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub struct Server<'p, 'a> {
    pusher: &'p mut Pusher<'a>,
    stop: &'p Stop,
    division: Division,
    door: Door,
    datagrams: Vec<Datagrams>,
    connections: Vec<Connection>,
    /// The connection that is read first in the next turn.
    first: usize,
    group: Group,
    /// Bytes of one read, or of a datagram.
    buffer: Vec<u8>,
    /// Whether anything was pushed and not published.
    pending: bool,
    counts: Counts,
    /// The time of the last look at the sockets' names.
    looked: Instant,
    /// Whether the process was asked to stop: each socket is read to its end.
    is_last: bool,
}

/// What can go on, in the order of the server's lists.
struct Ready {
    streams: Vec<bool>,
    datagrams: Vec<bool>,
    connections: Vec<bool>,
}

impl<'p, 'a> Server<'p, 'a> {
    pub fn new(
        pusher: &'p mut Pusher<'a>,
        stop: &'p Stop,
        (door, datagrams): (Door, Vec<Datagrams>),
        division: Division,
    ) -> Self {
        let datagram = match division.on_too_large {
            OnTooLarge::Split => division.max_record,
            OnTooLarge::Fail | OnTooLarge::Drop => division.max_record.min(division.max_item),
        };
        let buffer = vec![0; if datagrams.is_empty() { CHUNK } else { datagram.max(CHUNK) }];
        Self {
            pusher,
            stop,
            division,
            door,
            datagrams,
            connections: Vec::new(),
            first: 0,
            group: Group::default(),
            buffer,
            pending: false,
            counts: Counts::default(),
            looked: Instant::now(),
            is_last: false,
        }
    }

    /// Tells the service manager of the end.
    pub fn stopping(&self) {
        self.pusher.stopping();
    }

    pub fn into_counts(self) -> Counts {
        Counts { groups: self.pusher.groups(), ..self.counts }
    }

    /// Takes items until the process is asked to stop, and then those that were sent by then.
    pub fn run(&mut self) -> Outcome {
        while !self.stop.requested() && self.pusher.look_now_and_then()? {
            self.turn(LOOK)?;
            if self.looked.elapsed() >= NAMES {
                let streams = self.door.streams.iter_mut().map(|socket| &mut socket.name);
                let datagrams = self.datagrams.iter_mut().map(|socket| &mut socket.name);
                for name in streams.chain(datagrams) {
                    name.look();
                }
                self.looked = Instant::now();
            }
        }
        self.close();
        // The kernel holds the bytes that were sent, and takes no more: the loop ends.
        while self.connections.iter().any(Connection::is_open) || !self.datagrams.is_empty() {
            self.turn(Duration::ZERO)?;
        }
        Ok(())
    }

    /// Ends the work that `outcome` has ended: see [`Pusher::finish`]. Senders then get their last
    /// acknowledgements.
    pub fn finish(
        &mut self,
        outcome: Outcome,
        explain: impl Fn(Fate, Failure) -> Failure,
    ) -> Outcome {
        self.pusher.finish(outcome, explain)?;
        let start = Instant::now();
        while let Some(left) = LAST_WORDS.checked_sub(start.elapsed()) {
            self.connections.retain(|connection| !connection.is_over());
            if self.connections.is_empty() {
                break;
            }
            // It fails only for lack of memory, which ends the process.
            let _ = self.wait(left);
            self.connections.iter_mut().for_each(Connection::acknowledge);
        }
        Ok(())
    }

    /// Takes no more connections and no more bytes than were sent by now. Later sends fail.
    fn close(&mut self) {
        self.is_last = true;
        // Connections that wait at a socket that stays are the next process's.
        self.door.streams.retain(|socket| !socket.name.is_passed());
        let everywhere = vec![true; self.door.streams.len()];
        while self.accept(&everywhere) {}
        self.door.streams.clear();
        self.connections.iter_mut().for_each(Connection::cut);
        for socket in &self.datagrams {
            // It cannot fail for an open socket; otherwise the senders notice the end of it.
            let _ = socket.close();
        }
    }

    /// Takes what there is within `timeout`, publishes it, and acknowledges it.
    fn turn(&mut self, timeout: Duration) -> Outcome {
        let ready = self.wait(timeout)?;
        self.receive_records(&ready)?;
        self.receive_datagrams(&ready)?;
        if self.pending {
            self.pusher.advance()?;
            self.pending = false;
            settle(&mut self.connections);
        }
        acknowledge(self.pusher, &mut self.connections)?;
        // Not before: the group names connections by their index.
        self.connections.retain(|connection| !connection.is_over());
        self.accept(&ready.streams);
        Ok(())
    }

    /// Waits until anything can go on.
    fn wait(&mut self, mut timeout: Duration) -> Result<Ready, Failure> {
        let accepts = self.door.is_open(self.connections.len());
        if self.door.is_pausing() {
            timeout = timeout.min(ACCEPT_PAUSE);
        }
        let input =
            |socket, wanted| (socket, if wanted { PollFlags::POLLIN } else { PollFlags::empty() });
        let streams = self.door.streams.iter().map(|one| input(one.as_fd(), accepts));
        let datagrams = self.datagrams.iter().map(|one| input(one.as_fd(), true));
        let connections = self.connections.iter().map(|one| (one.as_fd(), one.awaits()));
        let stop = [input(self.stop.fd(), !self.is_last)];
        let all = stop.into_iter().chain(streams).chain(datagrams).chain(connections);
        let mut all: Vec<_> = all.map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        // Rounded up: a part of a millisecond would be none.
        let timeout = timeout.as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut all, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(Failure::io("cannot wait for senders")(e.into())),
        }
        let mut ready = all.iter().skip(1).map(|fd| fd.any().unwrap_or(false));
        let mut next = |count| ready.by_ref().take(count).collect();
        Ok(Ready {
            streams: next(self.door.streams.len()),
            datagrams: next(self.datagrams.len()),
            connections: next(self.connections.len()),
        })
    }

    /// Accepts processes that connect, and returns whether there were any.
    fn accept(&mut self, ready: &[bool]) -> bool {
        let accepted = self.door.accept(ready, self.connections.len());
        let before = self.connections.len();
        for (stream, sender) in accepted {
            self.connections.push(Connection::new(stream, sender, &self.division));
            self.counts.connections += 1;
        }
        self.connections.len() > before
    }

    /// Reads each connection once, and pushes the records that are whole.
    fn receive_records(&mut self, ready: &Ready) -> Outcome {
        let count = self.connections.len();
        let enough = ENOUGH.min(self.division.max_item / 4);
        for turn in 0..count {
            let index = (self.first + turn) % count;
            let connection = &mut self.connections[index];
            if !ready.connections[index] || !connection.is_open() {
                continue;
            }
            let chunk = &mut self.buffer[..CHUNK];
            let received = connection.receive(chunk, &mut self.group, index);
            let (sender, safe) = (connection.sender, connection.acknowledgements.safe());
            match received {
                Ok(Received::Open | Received::End(None)) => {}
                Ok(Received::End(Some(Fault::Incomplete))) => {
                    self.counts.incomplete += 1;
                    log::warn!("{sender} has sent an incomplete record, which is dropped");
                }
                Ok(Received::End(Some(Fault::TooLarge(size)))) => {
                    self.pusher.counts.too_large.dropped += 1;
                    log::warn!(
                        "{sender} sends a record {}, which is too long: its connection is closed behind {safe} records or more",
                        sized(size)
                    );
                }
                Err(e) => log::warn!("cannot receive from {sender}: {e}"),
            }
            if self.group.size() >= enough {
                self.first = (index + 1) % count;
                return self.push();
            }
        }
        self.first = 0;
        self.push()
    }

    /// Pushes the datagrams that are there.
    fn receive_datagrams(&mut self, ready: &Ready) -> Outcome {
        let mut over = Vec::new();
        for index in 0..self.datagrams.len() {
            if !ready.datagrams.get(index).is_some_and(|ready| *ready) && !self.is_last {
                continue;
            }
            let is_passed = self.datagrams[index].name.is_passed();
            let most = if self.is_last && is_passed { LAST_DATAGRAMS } else { DATAGRAMS };
            let mut is_empty = false;
            for _ in 0..most {
                let socket = &self.datagrams[index];
                let failed = || format!("cannot receive at {}", socket.name);
                let Some(datagram) =
                    socket.receive(&mut self.buffer).map_err(|e| Failure::io(failed())(e))?
                else {
                    is_empty = true;
                    break;
                };
                self.counts.datagrams += 1;
                self.add_datagram(datagram.length, datagram.sender);
                // One by one: while the ring is full, the others stay in the kernel, and their
                // senders wait.
                self.push()?;
            }
            if is_empty || is_passed {
                over.push(index);
            }
        }
        if self.is_last {
            over.into_iter().rev().for_each(|index| drop(self.datagrams.remove(index)));
        }
        Ok(())
    }

    /// Adds the datagram in the buffer to the group, if it can be an item.
    fn add_datagram(&mut self, length: usize, sender: Option<Sender>) {
        let Division { credentials, max_item, max_record, on_too_large, .. } = self.division;
        let who = sender.map_or_else(|| "a process".to_owned(), |sender| sender.to_string());
        let prefix = match sender {
            Some(sender) if credentials => sender.prefix(),
            None if credentials => {
                self.counts.unnamed += 1;
                log::warn!(
                    "a datagram of {length} bytes is dropped: its sender is not known, since it has sent descriptors along"
                );
                return;
            }
            _ => String::new(),
        };
        let most = match on_too_large {
            OnTooLarge::Split => max_record,
            _ => max_record.min(max_item.saturating_sub(prefix.len())),
        };
        if length > most {
            self.pusher.counts.too_large.dropped += 1;
            log::warn!(
                "{who} has sent a datagram of {length} bytes, which is too long: it is dropped"
            );
            return;
        }
        self.group.add_datagram(&prefix, &self.buffer[..length], max_item);
    }

    /// Pushes the group. While it waits for room, what is published is acknowledged.
    fn push(&mut self) -> Outcome {
        if self.group.is_empty() {
            return Ok(());
        }
        let (group, connections) = (&self.group, &mut self.connections);
        let mut noted = 0;
        self.pending = true;
        self.pusher.push_batch(&group.items(), group.pieces(), |pusher, done| {
            group.ended(noted..done).for_each(|owner| connections[owner].acknowledgements.push());
            noted = done;
            settle(connections);
            acknowledge(pusher, connections)
        })?;
        let rest = noted..group.pieces().len();
        group.ended(rest).for_each(|owner| connections[owner].acknowledgements.push());
        self.group.clear(2 * ENOUGH);
        Ok(())
    }
}

/// Notes that everything that was pushed is published.
fn settle(connections: &mut [Connection]) {
    for connection in connections {
        connection.acknowledgements.settle();
    }
}

/// Sends the acknowledgements that are due.
fn acknowledge(pusher: &mut Pusher<'_>, connections: &mut [Connection]) -> Outcome {
    if connections.iter().any(|connection| connection.acknowledgements.is_due()) {
        // Records in a ring that no consumer finds are not accepted.
        pusher.confirm()?;
        connections.iter_mut().for_each(Connection::acknowledge);
    }
    Ok(())
}

/// Returns the size of a record in words.
fn sized(size: Size) -> String {
    match size {
        Size::Exactly(bytes) => format!("of {bytes} bytes"),
        Size::AtLeast(bytes) => format!("of {bytes} bytes or more"),
    }
}
