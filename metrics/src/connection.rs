//! One client of the server: its request, then the answer. No call here blocks.

use crate::answers::{Answers, TEXT};
use crate::http::{self, MAX_HEAD, Refused};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The longest time from the connection, or from the next request's first byte, to the end of the
/// answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest time between an answer and the next request: collectors come every minute or more
/// often.
const IDLE: Duration = Duration::from_secs(150);

/// A client's connection.
pub struct Connection {
    socket: OwnedFd,
    /// Time at which it is closed, even in the middle of the request or the answer.
    pub deadline: Instant,
    state: State,
}

enum State {
    /// The last request was answered, and of the next one there is nothing yet.
    Idle,
    /// Bytes of the request so far.
    Asking(Vec<u8>),
    Answering(Answer),
}

struct Answer {
    bytes: Vec<u8>,
    /// How many of them were sent.
    sent: usize,
    /// Whether the connection stays open behind them.
    persistent: bool,
}

impl Connection {
    pub fn new(socket: OwnedFd) -> Self {
        let state = State::Asking(Vec::new());
        Self { socket, deadline: Instant::now() + PATIENCE, state }
    }

    /// Whether the client is between two requests.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Returns the descriptor to wait on, and the events to wait for.
    pub fn awaits(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = match self.state {
            State::Idle | State::Asking(_) => PollFlags::POLLIN,
            State::Answering(_) => PollFlags::POLLOUT,
        };
        (self.socket.as_fd(), flags)
    }

    /// Receives and sends what is possible now. Returns whether more remains to be done.
    pub fn go_on(&mut self, answers: &mut Answers) -> bool {
        // A client that goes away meanwhile wants no answer: any error is the end.
        self.ask(answers).and_then(|()| self.send()).unwrap_or(false)
    }

    /// Receives the request and prepares the answer to it.
    fn ask(&mut self, answers: &mut Answers) -> nix::Result<()> {
        if self.is_idle() {
            self.deadline = Instant::now() + PATIENCE;
            self.state = State::Asking(Vec::new());
        }
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
            Ok(Some(request)) => {
                let bytes = answers.answer(request, Instant::now());
                Answer { bytes, sent: 0, persistent: request.persistent }
            }
            Err(Refused(status, words)) => {
                let bytes = http::answer(status, TEXT, &format!("{words}\n"), false, false);
                Answer { bytes, sent: 0, persistent: false }
            }
        };
        self.state = State::Answering(answer);
        Ok(())
    }

    fn send(&mut self) -> nix::Result<bool> {
        let State::Answering(answer) = &mut self.state else { return Ok(true) };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.socket.as_raw_fd(), &answer.bytes[answer.sent..], flags) {
            Ok(count) => answer.sent += count,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
        if answer.sent < answer.bytes.len() {
            return Ok(true);
        }
        if answer.persistent {
            self.deadline = Instant::now() + IDLE;
            self.state = State::Idle;
            return Ok(true);
        }
        shutdown(self.socket.as_raw_fd(), Shutdown::Write)?;
        Ok(false)
    }
}
