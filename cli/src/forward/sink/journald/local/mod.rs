//! `journald:`: records in the journal of this host, by its socket, each item at least once.
//!
//! A record is one datagram; where it is too long for that, the datagram has no bytes and carries a
//! sealed file in memory (systemd's "Native Journal Protocol"). The journal answers nothing. So an
//! item is acknowledged when the socket has taken it.

use super::super::{Batch, Event, Item, Lane, Reporter, RingFacts, Sink, SinkError, SinkErrorKind};
use super::record::{self, Place};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg, setsockopt, sockopt};
use shared_block_ring::Position;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Buffer of the socket in bytes, where the system's limit allows it. systemd's own library takes
/// the same.
const SOCKET_BUFFER: usize = 8 << 20;

/// The longest payload that is tried as a datagram, in bytes: longer ones go as files at once.
const LONGEST_DATAGRAM: usize = 64 << 10;

/// The longest item in bytes: a field of the journal has less than 768 MiB.
const LONGEST_ITEM: usize = 767 << 20;

/// The longest wait for the journal before its lane is asked whether it is wanted still.
const LOOK: Duration = Duration::from_millis(100);

/// The time without any progress after which the log says so.
const SLOW: Duration = Duration::from_secs(10);

/// The sink `journald:`.
pub struct Local {
    jobs: Sender<Job>,
    is_ended: Arc<AtomicBool>,
}

enum Job {
    Open(Arc<Way>),
    Write(Arc<Way>, Batch),
}

/// A lane as the thread knows it.
struct Way {
    facts: RingFacts,
    events: Reporter,
    is_closed: AtomicBool,
}

struct LocalLane {
    way: Arc<Way>,
    jobs: Sender<Job>,
}

/// What only the thread uses, which is one for all rings: they share the journal's socket, too.
struct Writer {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    is_ended: Arc<AtomicBool>,
    record: Vec<u8>,
}

impl Local {
    /// Makes the sink, which writes to the socket at `path`.
    pub fn new(path: &Path) -> io::Result<Self> {
        let (jobs, receiver) = channel();
        let is_ended = Arc::new(AtomicBool::new(false));
        let writer = Writer::new(path, Arc::clone(&is_ended));
        let thread = std::thread::Builder::new().name("journald".to_owned());
        thread.spawn(move || writer.work(&receiver))?;
        Ok(Self { jobs, is_ended })
    }
}

impl Sink for Local {
    fn descriptors(&self) -> u64 {
        // All lanes share a socket.
        0
    }

    fn open(&mut self, ring: &RingFacts, events: Reporter) -> Box<dyn Lane> {
        let is_closed = AtomicBool::new(false);
        let way = Arc::new(Way { facts: ring.clone(), events, is_closed });
        // The thread ends with the sink.
        let _ = self.jobs.send(Job::Open(Arc::clone(&way)));
        Box::new(LocalLane { way, jobs: self.jobs.clone() })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Release);
    }
}

impl Lane for LocalLane {
    fn send(&mut self, batch: Batch) {
        // The thread ends with the sink.
        let _ = self.jobs.send(Job::Write(Arc::clone(&self.way), batch));
    }
}

impl Drop for LocalLane {
    fn drop(&mut self) {
        self.way.is_closed.store(true, Ordering::Release);
    }
}

impl Writer {
    fn new(path: &Path, is_ended: Arc<AtomicBool>) -> Self {
        Self { path: path.to_owned(), socket: None, is_ended, record: Vec::new() }
    }

    fn work(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let (way, done) = match job {
                Job::Open(way) => {
                    let opened =
                        self.connect().map(|()| way.events.report(Event::Ready { arrived: None }));
                    (way, opened)
                }
                Job::Write(way, batch) => {
                    let written = self.write(&way, &batch);
                    (way, written)
                }
            };
            let Err(error) = done else { continue };
            // Whatever the lane has sent is not written any more.
            if !way.is_closed.swap(true, Ordering::AcqRel) {
                way.events.report(Event::Failed(error));
            }
        }
    }

    fn connect(&mut self) -> Result<(), SinkError> {
        if self.socket.is_some() {
            return Ok(());
        }
        let socket = UnixDatagram::unbound().and_then(|socket| {
            socket.connect(&self.path)?;
            socket.set_write_timeout(Some(LOOK))?;
            Ok(socket)
        });
        let socket = socket.map_err(|e| self.failed(&e))?;
        // Without it, the thread waits more often.
        let _ = setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER);
        self.socket = Some(socket);
        Ok(())
    }

    fn failed(&self, e: &io::Error) -> SinkError {
        let path = self.path.display();
        let message = format!(
            "cannot write to the journal's socket {path}: {e} (does systemd-journald run?)"
        );
        SinkError { message, kind: SinkErrorKind::Retry }
    }

    /// Writes a batch, and reports what the socket has taken of it.
    fn write(&mut self, way: &Way, batch: &Batch) -> Result<(), SinkError> {
        let mut arrived: Option<Position> = None;
        let mut outcome = Ok(());
        for item in &batch.items {
            match self.put(way, item, &batch.bytes[item.range.clone()]) {
                Ok(true) => arrived = Some(item.next),
                Ok(false) => break,
                Err(e) => {
                    // The next connection reports that the journal's socket is gone.
                    self.socket = None;
                    outcome = Err(e);
                    break;
                }
            }
        }
        if let Some(end) = arrived {
            way.events.report(Event::Acknowledged(end));
        }
        outcome
    }

    /// Writes an item; returns `false` if nobody wants that any more.
    fn put(&mut self, way: &Way, item: &Item, payload: &[u8]) -> Result<bool, SinkError> {
        if payload.len() > LONGEST_ITEM {
            let (position, bytes) = (item.position, payload.len());
            let message = format!(
                "the item at position {position} has {bytes} bytes, and the journal takes {LONGEST_ITEM}"
            );
            return Err(SinkError { message, kind: SinkErrorKind::Stop });
        }
        self.connect()?;
        self.deliver(way, item, payload).map_err(|e| self.failed(&e))
    }

    /// Writes an item as a datagram or as a file.
    fn deliver(&mut self, way: &Way, item: &Item, payload: &[u8]) -> io::Result<bool> {
        if payload.len() <= LONGEST_DATAGRAM {
            self.record.clear();
            record::write(&mut self.record, &way.facts, item, payload, Place::Local)?;
            match self.until_taken(way, |socket| socket.send(&self.record).map(drop)) {
                // Too long for a datagram: with the fields of an entry, or by the system's limit.
                Err(e) if is_too_long(&e) => {}
                sent => return sent,
            }
        }
        let sealed = sealed(&way.facts, item, payload)?;
        self.until_taken(way, |socket| {
            let descriptors = [sealed.as_raw_fd()];
            let attached = [ControlMessage::ScmRights(&descriptors)];
            sendmsg::<UnixAddr>(socket.as_raw_fd(), &[], &attached, MsgFlags::empty(), None)?;
            Ok(())
        })
    }

    /// Sends until the journal has room; returns `false` if nobody wants that any more.
    fn until_taken(
        &self,
        way: &Way,
        mut send: impl FnMut(&UnixDatagram) -> io::Result<()>,
    ) -> io::Result<bool> {
        let Some(socket) = &self.socket else { return Err(Errno::ENOTCONN.into()) };
        let mut complaint = Some(Instant::now() + SLOW);
        while !self.is_ended.load(Ordering::Acquire) && !way.is_closed.load(Ordering::Acquire) {
            match send(socket) {
                Ok(()) => return Ok(true),
                // The socket's timeout has passed, or a signal has come.
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e),
            }
            if complaint.take_if(|time| *time <= Instant::now()).is_some() {
                let message = format!(
                    "{}: has taken nothing for {} s; the rings wait (is systemd-journald stopped?)",
                    self.path.display(),
                    SLOW.as_secs()
                );
                log::warn!("{message}");
                // The other lanes wait behind this one.
                way.events.report(Event::Trouble { message, is_said: true });
            }
        }
        Ok(false)
    }
}

/// Returns whether a record has to go as a file.
fn is_too_long(e: &io::Error) -> bool {
    // Linux says ENOBUFS where it cannot have that much memory in one piece.
    [libc::EMSGSIZE, libc::ENOBUFS].iter().any(|errno| e.raw_os_error() == Some(*errno))
}

/// Returns a record in a file that nobody can change any more: the journal may map it.
fn sealed(ring: &RingFacts, item: &Item, payload: &[u8]) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("record", flags)?);
    let mut out = BufWriter::new(&mut file);
    record::write(&mut out, ring, item, payload, Place::Local)?;
    out.flush()?;
    drop(out);
    let seals = [
        SealFlag::F_SEAL_SHRINK,
        SealFlag::F_SEAL_GROW,
        SealFlag::F_SEAL_WRITE,
        SealFlag::F_SEAL_SEAL,
    ];
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals.into_iter().collect()))?;
    Ok(file)
}

#[cfg(test)]
mod tests;
