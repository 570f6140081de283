//! Standard error, which may be a pipe without a reader: lines wait in a queue of bounded size for
//! a thread that does nothing but write them. When the queue is full, lines are dropped and
//! counted; no other thread ever waits for a reader.
//!
//! Non-blocking writes are no substitute: the flag belongs to the open file description, which
//! other processes share.

use crate::{format, text};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Largest number of queued bytes; a single longer block is accepted when nothing else waits.
const MAX_WAITING: usize = 256 << 10;

/// Largest number of bytes of a message.
const MAX_LINE: usize = 4000;

/// Bytes of the writing thread's stack: it calls little, and a memory limit counts all of it.
const STACK: usize = 64 << 10;

/// The queue, and the state of its thread.
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Number of lines lost since the last one that was written.
    dropped: u64,
    /// Whether a line was taken from the queue and is not written yet.
    writing: bool,
    writer: Writer,
}

/// State of the writing thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// Not started before the first line.
    None,
    /// Not started before [`release`].
    Held,
    /// The thread runs.
    Running,
    /// The thread cannot be started: lines are written where that does not wait, and dropped
    /// otherwise.
    Impossible,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    waiting: VecDeque::new(),
    bytes: 0,
    dropped: 0,
    writing: false,
    writer: Writer::None,
});

/// Signalled when a line is queued, and when one has been written.
static CHANGED: Condvar = Condvar::new();

/// Writes a message in one line: control characters in it are escaped, and a long one is cut.
pub fn message(words: fmt::Arguments<'_>) {
    let words = text::one_line(words, MAX_LINE);
    push(with_name(&words).into_bytes());
}

/// Returns a message of the program as a line.
fn with_name(words: &str) -> String {
    let mut line = format::object("notice", None, words)
        .unwrap_or_else(|| format!("{}: {words}", crate::name()));
    line.push('\n');
    line
}

/// Writes the program's own text as it is: several lines, or terminal control.
pub fn block(text: &str) {
    push(text.as_bytes().to_vec());
}

/// Keeps lines in the queue, without a thread, until [`release`]: a process that confines itself
/// must have one thread then.
pub fn hold() {
    let mut queue = lock();
    if queue.writer == Writer::None {
        queue.writer = Writer::Held;
    }
}

/// Starts the writing thread, with the rights, the processors and the signal mask of this one.
pub fn release() {
    let mut queue = lock();
    if queue.writer == Writer::Held {
        queue.writer = Writer::None;
    }
    start(&mut queue);
}

/// Waits until everything has been written, for `time` at most.
pub fn finish(patience: Duration) {
    let deadline = Instant::now() + patience;
    let mut queue = lock();
    if queue.waiting.is_empty() && !queue.writing {
        return;
    }
    if queue.writer == Writer::Held {
        queue.writer = Writer::None;
    }
    start(&mut queue);
    while !queue.waiting.is_empty() || queue.writing {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let waited = CHANGED.wait_timeout(queue, left);
        queue = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Queues the text, or drops it.
pub(crate) fn push(line: Vec<u8>) {
    let mut queue = lock();
    if queue.bytes > 0 && queue.bytes + line.len() > MAX_WAITING {
        queue.dropped += 1;
        return;
    }
    if queue.dropped > 0 && !queue.waiting.is_empty() {
        // The count of lost lines has its place among the lines.
        let lost = lost(std::mem::take(&mut queue.dropped));
        queue.add(lost);
    }
    queue.add(line);
    start(&mut queue);
    CHANGED.notify_all();
}

/// Writes to standard error at once what it takes without a wait, just before the end of the
/// process. Allocates nothing.
pub fn write_now(text: &[u8]) {
    let error = std::io::stderr();
    let mut polled = [PollFd::new(error.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready == 1) {
        // An error cannot be reported any more.
        let _ = nix::unistd::write(&error, text);
    }
}

impl Queue {
    fn add(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.waiting.push_back(line);
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let line = self.waiting.pop_front()?;
        self.bytes -= line.len();
        Some(line)
    }
}

fn lock() -> MutexGuard<'static, Queue> {
    // No code panics with the lock held.
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost(lines: u64) -> Vec<u8> {
    with_name(&format!("{lines} lines of this log are lost: nobody read it")).into_bytes()
}

fn start(queue: &mut Queue) {
    if queue.writer == Writer::None {
        let started = std::thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK)
            .spawn(write_all_that_comes);
        queue.writer = if started.is_ok() { Writer::Running } else { Writer::Impossible };
    }
    if queue.writer == Writer::Impossible {
        while let Some(line) = queue.take() {
            write_now(&line);
        }
    }
}

/// Runs the writing thread, which ends with the process.
fn write_all_that_comes() {
    let mut queue = lock();
    // Whether the last attempt has failed: a count of lost lines would be lost, too.
    let mut broken = false;
    loop {
        let mut text = match queue.take() {
            Some(line) => line,
            None if queue.dropped > 0 && !broken => Vec::new(),
            None => {
                queue = CHANGED.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
        };
        let dropped = if queue.waiting.is_empty() { std::mem::take(&mut queue.dropped) } else { 0 };
        let own = u64::from(!text.is_empty());
        if dropped > 0 {
            let lost = lost(dropped);
            // After a failure the lines were lost before this one, otherwise in a full queue behind
            // it.
            if broken {
                text.splice(..0, lost)
            } else {
                text.splice(text.len().., lost)
            };
        }
        queue.writing = true;
        drop(queue);
        broken = write_whole(&text).is_err();
        queue = lock();
        if broken {
            queue.dropped += dropped + own;
        }
        queue.writing = false;
        CHANGED.notify_all();
    }
}

/// Writes a block, and waits for the reader without a bound.
fn write_whole(mut text: &[u8]) -> Result<(), Errno> {
    let error = std::io::stderr();
    while !text.is_empty() {
        match nix::unistd::write(&error, text) {
            Ok(0) => return Err(Errno::EIO),
            Ok(written) => text = &text[written..],
            Err(Errno::EINTR) => {}
            // Another process has made the pipe non-blocking.
            Err(Errno::EAGAIN) => {
                let mut polled = [PollFd::new(error.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut polled, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(e) => return Err(e),
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
