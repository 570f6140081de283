//! A client of Varlink (varlink.org), as far as one call on a connection needs it: each message is
//! a JSON object and a byte that is 0.

use memchr::memchr;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of the longest answer that is taken: thousands of rings with all their counters.
pub const MOST_BYTES: usize = 16 << 20;

/// Bytes of one read.
const CHUNK: usize = 64 * 1024;

/// The parameters of a call or of an answer.
pub type Parameters = Map<String, Value>;

/// What a call has come to.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// The method was carried out.
    Done(Parameters),
    /// The method has failed.
    Failed {
        /// The name of the error, with its interface in front.
        error: String,
        parameters: Parameters,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The limit has passed.
    #[error("no answer")]
    Late,
    /// The process was asked to stop.
    #[error("asked to stop before there was an answer")]
    Stopped,
    /// The other side has closed the connection.
    #[error("the connection was closed")]
    Closed {
        /// Whether a part of an answer was there.
        within_answer: bool,
    },
    /// The answer does not end within [`MOST_BYTES`].
    #[error("the answer is longer than {} MiB", MOST_BYTES >> 20)]
    TooLong,
    /// The answer is not one of Varlink, in words.
    #[error("{0}")]
    Foreign(String),
    /// The operating system's.
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Serialize)]
struct Call<'a> {
    method: &'a str,
    parameters: &'a Parameters,
}

#[derive(Deserialize)]
struct Reply {
    error: Option<String>,
    parameters: Option<Parameters>,
}

/// Returns the bytes of a call, the last one included.
pub fn encode(method: &str, parameters: &Parameters) -> Vec<u8> {
    // Serialization fails only for map keys that are no text, and there are none. A 0 within text
    // is written as an escape.
    let mut bytes = serde_json::to_vec(&Call { method, parameters }).unwrap_or_default();
    bytes.push(0);
    bytes
}

/// Returns the answer that the bytes in front of a 0 are.
///
/// # Errors
/// [`Trouble::Foreign`].
pub fn decode(message: &[u8]) -> Result<Answer, Trouble> {
    let reply: Reply = serde_json::from_slice(message)
        .map_err(|e| Trouble::Foreign(format!("its answer is not one of Varlink: {e}")))?;
    let parameters = reply.parameters.unwrap_or_default();
    Ok(match reply.error {
        Some(error) => Answer::Failed { error, parameters },
        None => Answer::Done(parameters),
    })
}

/// The bytes of an answer that have arrived.
#[derive(Debug, Default)]
struct Inbox(Vec<u8>);

impl Inbox {
    /// Adds bytes, and returns whether the answer is complete.
    fn take(&mut self, bytes: &[u8]) -> Result<bool, Trouble> {
        let end = memchr(0, bytes);
        self.0.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
        if self.0.len() > MOST_BYTES {
            return Err(Trouble::TooLong);
        }
        // A program that speaks first, or in lines, may never send a 0.
        match self.0.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') | None => Ok(end.is_some()),
            Some(_) => Err(Trouble::Foreign("what it sends is no JSON object".to_owned())),
        }
    }
}

/// The end of the wait for an answer.
pub struct Patience<'a> {
    pub limit: Option<Duration>,
    /// Readable when the process is asked to stop.
    pub stop: BorrowedFd<'a>,
}

/// A call as it is sent: its bytes, and the descriptors that go with them.
pub struct Message<'a> {
    pub bytes: &'a [u8],
    pub descriptors: &'a [OwnedFd],
}

/// Makes one call on a connection that does not block, and returns the bytes of the answer.
///
/// # Errors
/// All of [`Trouble`].
pub fn call(
    connection: &OwnedFd,
    message: &Message<'_>,
    patience: &Patience<'_>,
) -> Result<Vec<u8>, Trouble> {
    let deadline = patience.limit.and_then(|limit| Instant::now().checked_add(limit));
    let wait = |events| wait(connection, events, patience.stop, deadline);
    let mut rest = message.bytes;
    let mut descriptors: Vec<_> = message.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    while !rest.is_empty() {
        wait(PollFlags::POLLOUT)?;
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        let bytes = [IoSlice::new(rest)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(connection.as_raw_fd(), &bytes, control, flags, None) {
            Ok(count) => {
                rest = &rest[count..];
                // They have gone with the first bytes.
                descriptors.clear();
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // The other side may have answered before it closed the connection.
            Err(Errno::EPIPE | Errno::ECONNRESET) => break,
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
    let mut inbox = Inbox::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        wait(PollFlags::POLLIN)?;
        match recv(connection.as_raw_fd(), &mut chunk, MsgFlags::empty()) {
            Ok(0) | Err(Errno::ECONNRESET) => {
                return Err(Trouble::Closed { within_answer: !inbox.0.is_empty() });
            }
            Ok(count) if inbox.take(&chunk[..count])? => return Ok(inbox.0),
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
}

/// Waits until the connection is ready or closed.
fn wait(
    connection: &OwnedFd,
    events: PollFlags,
    stop: BorrowedFd<'_>,
    deadline: Option<Instant>,
) -> Result<(), Trouble> {
    loop {
        let mut polled =
            [PollFd::new(stop, PollFlags::POLLIN), PollFd::new(connection.as_fd(), events)];
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match ppoll(&mut polled, left.map(TimeSpec::from), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
        let [asked, ready] = polled.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        if asked {
            return Err(Trouble::Stopped);
        }
        // Whoever sends without an end is late, too.
        if left.is_some_and(|left| left.is_zero()) {
            return Err(Trouble::Late);
        }
        if ready {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn parameters(value: &Value) -> Parameters {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn call_is_an_object_and_a_zero() {
        let message = encode("io.blockring.Rings.List", &Parameters::new());
        assert_eq!(message, b"{\"method\":\"io.blockring.Rings.List\",\"parameters\":{}}\0");
        let message = encode("a.B", &parameters(&json!({ "name": "a\0\"b\n" })));
        assert_eq!(
            message,
            b"{\"method\":\"a.B\",\"parameters\":{\"name\":\"a\\u0000\\\"b\\n\"}}\0"
        );
    }

    #[test]
    fn answer_is_parameters_or_an_error() {
        for (message, expected) in [
            ("{}", Answer::Done(Parameters::new())),
            (r#"{"parameters": null}"#, Answer::Done(Parameters::new())),
            (
                r#"{"parameters": {"a": [1]}, "continues": false}"#,
                Answer::Done(parameters(&json!({ "a": [1] }))),
            ),
            (
                r#" {"error": "a.B", "parameters": {"reason": "c"}}"#,
                Answer::Failed {
                    error: "a.B".to_owned(),
                    parameters: parameters(&json!({ "reason": "c" })),
                },
            ),
            (
                r#"{"error": "a.B"}"#,
                Answer::Failed { error: "a.B".to_owned(), parameters: Parameters::new() },
            ),
        ] {
            assert_eq!(decode(message.as_bytes()).unwrap(), expected, "{message}");
        }
        for wrong in [&b""[..], b"{", b"[]", b"{\"parameters\": [1]}", b"{\"error\": 1}", b"{\xff}"]
        {
            let trouble = decode(wrong).unwrap_err();
            assert!(matches!(trouble, Trouble::Foreign(_)), "{trouble:?}");
        }
    }

    #[test]
    fn answer_ends_with_the_first_zero_however_it_is_divided() {
        let mut inbox = Inbox::default();
        assert!(!inbox.take(b" ").unwrap());
        assert!(!inbox.take(b"{\"a").unwrap());
        assert!(!inbox.take(b"\"").unwrap());
        assert!(inbox.take(b":1}\0{\"more\":").unwrap());
        assert_eq!(inbox.0, b" {\"a\":1}");
    }

    #[test]
    fn what_is_no_object_is_refused_before_its_end() {
        for wrong in [&b"220 smtp"[..], b"\n[", b"\xff"] {
            let trouble = Inbox::default().take(wrong).unwrap_err();
            assert!(matches!(trouble, Trouble::Foreign(_)), "{trouble:?}");
        }
    }

    #[test]
    fn answer_has_a_greatest_length() {
        let mut inbox = Inbox::default();
        let mut piece = vec![b' '; MOST_BYTES - 1];
        piece[0] = b'{';
        assert!(!inbox.take(&piece).unwrap());
        assert!(!inbox.take(b"}").unwrap());
        assert!(inbox.take(b"\0").unwrap());
        assert!(matches!(inbox.take(b" "), Err(Trouble::TooLong)));
    }
}
