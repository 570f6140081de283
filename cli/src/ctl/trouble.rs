//! What can be wrong with a conversation, in words and with a remedy.

use super::super::address::PATIENCE;
use super::super::failure::Failure;
use super::varlink::{Parameters, Trouble};
use super::words::clean;
use super::{INTERFACE, how_to_listen};
use serde_json::Value;
use shared_block_ring::device::shown;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

/// The interface of Varlink itself.
const SERVICE: &str = "org.varlink.service";

/// The remedy of an error for a user that may not use the socket.
const WHO_MAY: &str = "run it as root, or start the backend with --control-user or --control-group";

/// The socket that a command calls, and the action that it asks for.
pub struct Conversation<'a> {
    pub socket: &'a Path,
    /// The words behind "cannot".
    pub action: &'a str,
}

impl Conversation<'_> {
    fn cannot(&self, words: &str) -> String {
        format!("cannot {}: {words}", self.action)
    }

    /// The failure to connect.
    pub fn unreachable(&self, error: &io::Error) -> Failure {
        let socket = shown(self.socket);
        let remedy = match (error.kind(), error.raw_os_error()) {
            (ErrorKind::NotFound | ErrorKind::ConnectionRefused, _) => {
                let remedy = format!("no backend listens there: {}", how_to_listen(self.socket));
                let words = format!("cannot connect to {socket}: {error} ({remedy})");
                return Failure::Missing(words);
            }
            (ErrorKind::Interrupted, None) => return self.broken(&Trouble::Stopped, None),
            (ErrorKind::TimedOut, None) => {
                let seconds = PATIENCE.as_secs();
                let words = format!(
                    "cannot connect to {socket}: it accepts no connection within {seconds} s (is the backend stopped?)"
                );
                return Failure::Late(words);
            }
            (ErrorKind::PermissionDenied, _) => format!(" ({WHO_MAY})"),
            (_, Some(libc::EPROTOTYPE)) => {
                " (it is another kind of socket, such as one for consumers)".to_owned()
            }
            _ => String::new(),
        };
        Failure::Refused(format!("cannot connect to {socket}: {error}{remedy}"))
    }

    /// The failure to get an answer within `limit`.
    pub fn broken(&self, trouble: &Trouble, limit: Option<Duration>) -> Failure {
        let socket = shown(self.socket);
        match trouble {
            Trouble::Stopped => {
                Failure::Stopped(self.cannot("asked to stop before the backend has answered"))
            }
            Trouble::Late => {
                let seconds = limit.unwrap_or_default().as_secs_f64();
                let words = format!(
                    "no answer from {socket} within {seconds} s (is the backend stopped, or its socket another program's?)"
                );
                Failure::Late(self.cannot(&words))
            }
            Trouble::Closed { within_answer } => {
                let when = if *within_answer { "within its answer" } else { "without an answer" };
                let words = format!(
                    "{socket} has closed the connection {when} (has the backend ended, or is the socket another program's?)"
                );
                Failure::Refused(self.cannot(&words))
            }
            Trouble::TooLong => Failure::Refused(self.cannot(&format!("{socket}: {trouble}"))),
            Trouble::Foreign(words) => self.odd(words),
            Trouble::Io(error) => Failure::Refused(self.cannot(&format!("{socket}: {error}"))),
        }
    }

    /// The failure to understand an answer.
    pub fn odd(&self, words: &str) -> Failure {
        let (socket, words) = (shown(self.socket), clean(words));
        let remedy = "is it the control socket of a backend of this version?";
        Failure::Refused(self.cannot(&format!("{socket}: {words} ({remedy})")))
    }

    /// The failure that the backend has answered.
    pub fn refused(&self, error: &str, parameters: &Parameters) -> Failure {
        let text = |key: &str| parameters.get(key).and_then(Value::as_str).map(clean);
        let reason = || text("reason").unwrap_or_else(|| "it does not say why".to_owned());
        let method = error.rsplit_once('.');
        match method {
            Some((INTERFACE, "NoSuchRing")) => Failure::Missing(
                self.cannot("the backend has no such ring (blockring ctl list shows those it has)"),
            ),
            Some((INTERFACE, "Refused")) => Failure::Refused(self.cannot(&reason())),
            Some((INTERFACE, "NotPermitted")) => {
                Failure::Refused(self.cannot(&format!("{} ({WHO_MAY})", reason())))
            }
            Some((INTERFACE, "TimedOut")) => {
                Failure::Late(self.cannot(&format!("timed out: {}", reason())))
            }
            Some((SERVICE, "InterfaceNotFound" | "MethodNotFound" | "MethodNotImplemented")) => {
                self.odd("it does not know this request")
            }
            Some((SERVICE, "InvalidParameter")) => {
                let parameter = text("parameter").unwrap_or_else(|| "a parameter".to_owned());
                self.odd(&format!("it does not accept the parameter {parameter}"))
            }
            _ => {
                let details = if parameters.is_empty() {
                    String::new()
                } else {
                    format!(" {}", Value::from(parameters.clone()))
                };
                self.odd(&format!("it answers with the error {error}{details}"))
            }
        }
    }
}
