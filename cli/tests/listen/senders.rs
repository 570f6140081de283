//! A producer that listens, and the processes that send to it.

use crate::common::scene::{Scene, rest, wait_for_words};
use nix::sys::signal::Signal;
use ring_test_support::process::{Guarded, PATIENCE, signal, status_of};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::time::Instant;

/// A running `produce --listen` for the ring `ring`, in a scene.
pub struct Listening {
    pub child: Guarded,
    pub errors: BufReader<ChildStderr>,
}

impl Listening {
    /// Starts it, and waits until it listens at all of its sockets.
    pub fn start(scene: &Scene, arguments: &[&str]) -> Self {
        let all = [&["produce", "ring"], arguments].concat();
        let last = arguments.iter().rfind(|text| text.starts_with("unix")).unwrap();
        Self::start_command(&mut scene.command(&all), last)
    }

    /// Starts a command, and waits until it listens at this socket.
    pub fn start_command(command: &mut Command, last: &str) -> Self {
        let mut child = Guarded::start(command.stdin(Stdio::null()));
        let words = format!("takes items at {last}");
        let errors = wait_for_words(child.stderr.take().unwrap(), &words);
        Self { child, errors }
    }

    /// Asks it to end, and returns how it has ended and what it said.
    pub fn stop(self) -> (ExitStatus, String) {
        signal(&self.child, Signal::SIGTERM);
        self.ended()
    }

    /// Waits for its end, and returns how it has ended and what it said.
    pub fn ended(mut self) -> (ExitStatus, String) {
        let words = rest(self.errors);
        (status_of(&mut self.child, "produce"), words)
    }

    /// Asks it to end, which it must with 0, and returns its report.
    pub fn report(self) -> serde_json::Value {
        let (status, words) = self.stop();
        assert!(status.success(), "{status}: {words}");
        serde_json::from_str(words.lines().last().unwrap()).unwrap()
    }
}

/// Connects to a socket of the scene. Nothing waits for ever.
pub fn connect(scene: &Scene, name: &str) -> UnixStream {
    let stream = UnixStream::connect(scene.path(name)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads acknowledgements until `count` records are acknowledged.
pub fn wait_for_acknowledgement(stream: &UnixStream, count: u64) {
    let mut lines = BufReader::with_capacity(1, stream);
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "no acknowledgement of {count}");
        let number: u64 = line.trim_end().parse().unwrap();
        assert!(number <= count, "{number} records were not sent");
        if number == count {
            return;
        }
    }
}

/// Sends bytes, and reads the acknowledgement of all `count` records so far.
pub fn send(mut stream: &UnixStream, bytes: &[u8], count: u64) {
    stream.write_all(bytes).unwrap();
    wait_for_acknowledgement(stream, count);
}

/// Ends the records of a connection, and returns the acknowledgements that are left.
pub fn last_words(stream: &UnixStream) -> Vec<String> {
    stream.shutdown(Shutdown::Write).unwrap();
    BufReader::new(stream).lines().map_while(Result::ok).collect()
}

/// Waits until `is_so` returns true, while `progress` grows at least every now and then.
pub fn while_moving(progress: impl Fn() -> u64, is_so: impl Fn(u64) -> bool) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = progress();
        if is_so(now) {
            return;
        }
        if now > last {
            (last, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "nothing moves at {now}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
