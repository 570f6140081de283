//! Accepting connections, as many at a time as there may be.

use super::endpoint::Streams;
use super::sender::Sender;
use nix::sys::socket::{getsockopt, sockopt};
use ring_program::Pace;
use ring_program::descriptors::REMEDY;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Connections that are accepted at one socket in a turn.
const ACCEPTS: usize = 16;

/// Pause after a failed accept: the limit of descriptors is reached, perhaps.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The sockets to which processes connect.
pub struct Door {
    pub streams: Vec<Streams>,
    /// The most connections at a time.
    most: usize,
    /// Whether it was said that there are as many.
    is_crowded: bool,
    /// No connection is accepted before this time.
    after: Option<Instant>,
    /// Pace of messages about failed accepts.
    failures: Pace,
}

impl Door {
    pub fn new(streams: Vec<Streams>, most: usize) -> Self {
        Self { streams, most, is_crowded: false, after: None, failures: Pace::default() }
    }

    /// Returns whether connections are accepted now, beside `count` that there are.
    pub fn is_open(&mut self, count: usize) -> bool {
        self.after = self.after.filter(|time| Instant::now() < *time);
        count < self.most && self.after.is_none()
    }

    /// Returns whether connections are accepted again after a pause.
    pub fn is_pausing(&self) -> bool {
        self.after.is_some()
    }

    /// Accepts connections at the sockets that are `ready`, beside `count` that there are.
    pub fn accept(&mut self, ready: &[bool], count: usize) -> Vec<(UnixStream, Sender)> {
        let mut accepted = Vec::new();
        for (socket, _) in self.streams.iter().zip(ready).filter(|(_, ready)| **ready) {
            for _ in 0..ACCEPTS.min(self.most.saturating_sub(count + accepted.len())) {
                match accept(socket) {
                    Ok(Some(connection)) => accepted.push(connection),
                    Ok(None) => break,
                    Err(e) => {
                        if self.failures.due() {
                            let name = &socket.name;
                            log::warn!("{name}: cannot accept a connection: {e} ({REMEDY})");
                        }
                        self.after = Some(Instant::now() + ACCEPT_PAUSE);
                        break;
                    }
                }
            }
        }
        let is_full = count + accepted.len() >= self.most;
        if is_full && !self.is_crowded {
            log::warn!(
                "there are as many connections as --max-connections allows ({}): more processes wait until one ends",
                self.most
            );
        }
        self.is_crowded = is_full;
        accepted
    }
}

fn accept(socket: &Streams) -> io::Result<Option<(UnixStream, Sender)>> {
    let Some(stream) = socket.accept()? else { return Ok(None) };
    let sender = getsockopt(&stream, sockopt::PeerCredentials)?.into();
    Ok(Some((stream, sender)))
}
