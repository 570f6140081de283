//! One client of the server: its request, then the answer. No call here blocks.

use crate::http::{self, Asked, MAX_HEAD, Refused, Request};
use crate::scrape::Scrape;
use crate::server::Source;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The longest time from the connection to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The type of a line of text.
const TEXT: &str = "text/plain; charset=utf-8";

/// A client's connection.
pub struct Connection {
    socket: OwnedFd,
    /// Time at which it is closed, even in the middle of the request or the answer.
    pub deadline: Instant,
    state: State,
}

enum State {
    /// Bytes of the request so far.
    Asking(Vec<u8>),
    /// The answer, and the number of its bytes that were sent.
    Answering(Vec<u8>, usize),
}

impl Connection {
    pub fn new(socket: OwnedFd) -> Self {
        let state = State::Asking(Vec::new());
        Self { socket, deadline: Instant::now() + PATIENCE, state }
    }

    /// Returns the descriptor to wait on, and the events to wait for.
    pub fn awaits(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = match self.state {
            State::Asking(_) => PollFlags::POLLIN,
            State::Answering(..) => PollFlags::POLLOUT,
        };
        (self.socket.as_fd(), flags)
    }

    /// Receives and sends what is possible now. Returns whether more remains to be done.
    pub fn go_on(&mut self, source: &mut dyn Source) -> bool {
        // A client that goes away meanwhile wants no answer: any error is the end.
        self.ask(source).and_then(|()| self.send()).unwrap_or(false)
    }

    /// Receives the request and prepares the answer to it.
    fn ask(&mut self, source: &mut dyn Source) -> nix::Result<()> {
        let State::Asking(bytes) = &mut self.state else { return Ok(()) };
        let mut chunk = [0; 2048];
        let room = chunk.len().min(MAX_HEAD - bytes.len());
        match recv(self.socket.as_raw_fd(), &mut chunk[..room], MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(Errno::ECONNRESET),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(e) => return Err(e),
        }
        let answer = match http::parse(bytes) {
            Ok(None) => return Ok(()),
            Ok(Some(request)) => answer(&request, source),
            Err(Refused(status, words)) => http::answer(status, TEXT, &format!("{words}\n"), false),
        };
        self.state = State::Answering(answer, 0);
        Ok(())
    }

    fn send(&mut self) -> nix::Result<bool> {
        let State::Answering(answer, sent) = &mut self.state else { return Ok(true) };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.socket.as_raw_fd(), &answer[*sent..], flags) {
            Ok(count) => *sent += count,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
        if *sent == answer.len() {
            shutdown(self.socket.as_raw_fd(), Shutdown::Write)?;
            return Ok(false);
        }
        Ok(true)
    }
}

fn answer(request: &Request, source: &mut dyn Source) -> Vec<u8> {
    let Request { asked, head_only } = request;
    match asked {
        Asked::Metrics(format) => {
            let mut scrape = Scrape::default();
            source.scrape(&mut scrape);
            match scrape.encode(*format) {
                Ok(text) => http::answer("200 OK", format.content_type(), &text, *head_only),
                Err(e) => {
                    log::error!("cannot encode the metrics: {e}");
                    http::answer("500 Internal Server Error", TEXT, "a defect\n", *head_only)
                }
            }
        }
        Asked::Health => {
            let (status, words) = match source.health() {
                Ok(words) => ("200 OK", words),
                Err(words) => ("503 Service Unavailable", words),
            };
            http::answer(status, TEXT, &format!("{words}\n"), *head_only)
        }
    }
}
