//! One process that sends records over a connection, and is told which of them are in the ring.

use super::acknowledgements::Acknowledgements;
use super::endpoint::is_transient;
use super::group::Group;
use super::sender::Sender;
use crate::framing::Framing;
use crate::oversize::OnTooLarge;
use crate::splitter::{Size, Splitter, Step};
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, send};
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a sender that has ended its records may take to read the last acknowledgement.
const LINGER: Duration = Duration::from_secs(5);

/// How the records of a connection become items.
#[derive(Clone, Copy)]
pub struct Division {
    pub framing: Framing,
    pub on_too_large: OnTooLarge,
    /// Bytes of the largest item.
    pub max_item: usize,
    /// Bytes of the longest record, or of the longest part of one.
    pub max_record: usize,
    /// Whether each item begins with its sender.
    pub credentials: bool,
}

/// An error of a sender, which ends its connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// A record is longer than the longest one.
    TooLarge(Size),
    /// The connection has ended within a record.
    Incomplete,
}

/// What a read has brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes, or nothing now.
    Open,
    /// The end.
    End(Option<Fault>),
}

pub struct Connection {
    pub sender: Sender,
    pub acknowledgements: Acknowledgements,
    stream: UnixStream,
    splitter: Splitter,
    framing: Framing,
    prefix: String,
    /// Whether any byte was received.
    any: bool,
    /// Whether this process has ended the connection, in the middle of a record perhaps.
    is_cut: bool,
    /// The time of the end of the records.
    ended: Option<Instant>,
}

impl Connection {
    pub fn new(stream: UnixStream, sender: Sender, division: &Division) -> Self {
        let prefix = if division.credentials { sender.prefix() } else { String::new() };
        let most = division.max_item.saturating_sub(prefix.len()).max(1);
        let split = division.on_too_large == OnTooLarge::Split;
        Self {
            sender,
            acknowledgements: Acknowledgements::default(),
            stream,
            splitter: Splitter::new(division.framing, most.min(division.max_record), split),
            framing: division.framing,
            prefix,
            any: false,
            is_cut: false,
            ended: None,
        }
    }

    /// Returns what the connection waits for.
    pub fn awaits(&self) -> PollFlags {
        let input = if self.ended.is_none() { PollFlags::POLLIN } else { PollFlags::empty() };
        let room = self.acknowledgements.is_due();
        input | if room { PollFlags::POLLOUT } else { PollFlags::empty() }
    }

    /// Returns whether there is more to read.
    pub fn is_open(&self) -> bool {
        self.ended.is_none()
    }

    /// Returns whether the connection can be closed: it has ended, and its sender has what it is to
    /// know, or does not read it.
    pub fn is_over(&self) -> bool {
        self.ended.is_some_and(|at| !self.acknowledgements.is_due() || at.elapsed() >= LINGER)
    }

    /// Takes no more bytes than the sender has sent by now.
    pub fn cut(&mut self) {
        self.is_cut = true;
        // It fails only if the sender has ended the connection itself.
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Reads once, and adds the records that are whole to the group; `owner` is this connection's
    /// index.
    pub fn receive(
        &mut self,
        chunk: &mut [u8],
        group: &mut Group,
        owner: usize,
    ) -> io::Result<Received> {
        match (&self.stream).read(chunk) {
            Ok(0) => self.end(),
            Ok(count) => {
                self.any = true;
                self.splitter.feed(&chunk[..count]);
            }
            Err(e) if is_transient(&e) => return Ok(Received::Open),
            // The sender has closed the connection without reading all acknowledgements.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.end(),
            Err(e) => {
                self.ended = Some(Instant::now());
                return Err(e);
            }
        }
        let received = loop {
            match self.splitter.next() {
                Step::Item(piece) => {
                    let bytes = self.splitter.bytes(&piece);
                    group.add(&self.prefix, bytes, [piece.first, piece.last], Some(owner));
                }
                Step::TooLarge(_, size) => break Received::End(Some(Fault::TooLarge(size))),
                Step::Truncated => break Received::End(Some(Fault::Incomplete)),
                Step::End => break Received::End(None),
                Step::More if self.ended.is_some() => {
                    let is_whole = self.splitter.is_between_records();
                    break Received::End((!is_whole).then_some(Fault::Incomplete));
                }
                Step::More => return Ok(Received::Open),
            }
        };
        self.ended.get_or_insert_with(Instant::now);
        Ok(received)
    }

    /// Notes the end of the bytes.
    fn end(&mut self) {
        self.ended = Some(Instant::now());
        // What follows the last separator is a record, as on standard input. It is none if more
        // would have followed, and a connection without a byte has no record in any framing.
        if !self.is_cut && (self.any || self.framing != Framing::Whole) {
            self.splitter.end();
        }
    }

    /// Sends what is due of the acknowledgements, as far as the sender reads it.
    pub fn acknowledge(&mut self) {
        while self.acknowledgements.is_due() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.stream.as_raw_fd(), self.acknowledgements.next(), flags) {
                Ok(count) => self.acknowledgements.sent(count),
                Err(e) if is_transient(&e.into()) => return,
                // The sender does not read any more. Its records are still to be received.
                Err(_) => self.acknowledgements.refuse(),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    const LINES: Division = Division {
        framing: Framing::Lines,
        on_too_large: OnTooLarge::Fail,
        max_item: 100,
        max_record: 9,
        credentials: false,
    };

    fn connected(division: Division) -> (UnixStream, Connection) {
        let (sender, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let peer =
            nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials);
        (sender, Connection::new(stream, peer.unwrap().into(), &division))
    }

    /// Receives until the end, and returns the items and the fault.
    fn all(connection: &mut Connection) -> (Vec<String>, Option<Fault>) {
        let mut group = Group::default();
        loop {
            if let Received::End(fault) = connection.receive(&mut [0; 4], &mut group, 0).unwrap() {
                let text = |item: &&[u8]| String::from_utf8(item.to_vec()).unwrap();
                return (group.items().iter().map(text).collect(), fault);
            }
        }
    }

    #[test]
    fn connection_ends_with_a_record_as_standard_input_does() {
        let (mut sender, mut connection) = connected(LINES);
        sender.write_all(b"one\ntwo").unwrap();
        drop(sender);
        assert_eq!(all(&mut connection), (vec!["one".to_owned(), "two".to_owned()], None));
        assert!(connection.is_over());
        let (sender, mut connection) = connected(Division { framing: Framing::Whole, ..LINES });
        drop(sender);
        assert_eq!(all(&mut connection), (vec![], None), "nobody has sent anything");
    }

    #[test]
    fn incomplete_record_is_none() {
        let (mut sender, mut connection) =
            connected(Division { framing: Framing::Length, ..LINES });
        sender.write_all(b"\x01\0\0\0a\x02\0\0\0b").unwrap();
        drop(sender);
        assert_eq!(all(&mut connection), (vec!["a".to_owned()], Some(Fault::Incomplete)));
        // A line whose rest this process does not wait for.
        let (mut sender, mut connection) = connected(LINES);
        sender.write_all(b"one\ntw").unwrap();
        connection.cut();
        assert_eq!(all(&mut connection), (vec!["one".to_owned()], Some(Fault::Incomplete)));
        assert!(sender.write_all(b"o\n").is_err());
    }

    #[test]
    fn record_that_is_too_long_ends_its_connection_or_is_split() {
        let (mut sender, mut connection) = connected(LINES);
        sender.write_all(b"one\n0123456789").unwrap();
        let (items, fault) = all(&mut connection);
        assert_eq!(items, ["one"]);
        assert!(matches!(fault, Some(Fault::TooLarge(Size::AtLeast(10..)))), "{fault:?}");
        let split = Division { on_too_large: OnTooLarge::Split, credentials: true, ..LINES };
        let (mut sender, mut connection) = connected(split);
        sender.write_all(b"0123456789\n").unwrap();
        drop(sender);
        let prefix = connection.sender.prefix();
        let parts = vec![format!("{prefix}012345678"), format!("{prefix}9")];
        assert_eq!(all(&mut connection), (parts, None));
    }

    #[test]
    fn sender_that_does_not_read_is_sent_no_more_than_its_socket_takes() {
        let (sender, mut connection) = connected(LINES);
        for _ in 0..100_000 {
            connection.acknowledgements.push();
            connection.acknowledgements.settle();
            connection.acknowledge();
        }
        assert!(connection.awaits().contains(PollFlags::POLLOUT));
        sender.set_nonblocking(true).unwrap();
        let mut text = String::new();
        while !text.ends_with("100000\n") {
            let mut some = [0; 4096];
            match (&sender).read(&mut some) {
                Ok(count) => text.push_str(std::str::from_utf8(&some[..count]).unwrap()),
                Err(e) => {
                    assert!(is_transient(&e));
                    connection.acknowledge();
                }
            }
        }
        let numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers.len() < 100_000);
        assert!(!connection.acknowledgements.is_due());
    }
}
