//! QEMU's control socket, as far as tests need it.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// QEMU answers within milliseconds, unless a vhost-user back end keeps its main loop waiting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs one command: connects, negotiates, asks, and lets go.
///
/// A connection for each command costs nothing here, and leaves no state to be wrong after a reset.
pub(crate) fn execute(socket: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let doing = || format!("QMP {command} on {}", socket.display());
    let mut stream = UnixStream::connect(socket).map_err(Error::io(doing()))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(Error::io(doing()))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(Error::io(doing()))?;
    let mut answers = BufReader::new(stream.try_clone().map_err(Error::io(doing()))?);
    let mut ask = |request: &Value| -> Result<Value> {
        writeln!(stream, "{request}").map_err(Error::io(doing()))?;
        loop {
            let mut line = String::new();
            answers.read_line(&mut line).map_err(Error::io(doing()))?;
            let answer: Value = serde_json::from_str(&line)
                .map_err(|_| Error::Answer { what: doing(), answer: line.clone() })?;
            // The greeting and events come between, and are not answers.
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if answer.get("error").is_some() {
                return Err(Error::Answer { what: doing(), answer: line });
            }
        }
    };
    ask(&json!({ "execute": "qmp_capabilities" }))?;
    ask(&json!({ "execute": command, "arguments": arguments }))
}
