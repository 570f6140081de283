//! One front end's connection, from the call that accepts it to its end.

use crate::data_path::counters::Counters;
use crate::data_path::fault::Losses;
use crate::front_end::backend::Backend;
use crate::front_end::failure::{Failure, system};
use crate::front_end::handler::{Handler, Vrings};
use crate::front_end::tenant::Tenant;
use ring_program::Pace;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError};

/// What one front end after the other is served with.
pub struct Served {
    /// The device.
    pub backend: Arc<Backend>,
    /// The losses of memory.
    pub losses: Losses,
    /// The counters of connections.
    pub counters: Arc<Counters>,
    /// The number by which log lines name the ring, among many; 0 for the only one.
    pub scope: u64,
    /// The limit on log lines about connections, which can follow each other quickly.
    pub log: Mutex<ConnectionLog>,
}

/// What was logged about earlier connections.
#[derive(Debug, Default)]
pub struct ConnectionLog {
    come: Pace,
    failed: Pace,
    /// Why the last connection has failed, once that is logged.
    said: Option<String>,
}

/// A connection, as the thread that serves it shares it with the one that watches over it.
pub struct Connection {
    accepted: OnceLock<Accepted>,
    /// Messages that were answered.
    answered: AtomicU64,
    /// We have ended it.
    ended: AtomicBool,
    /// The front end is being forgotten: what would end it would end the next one.
    departs: Mutex<bool>,
    /// The thread that serves it is about to end.
    over: AtomicBool,
    /// Readable when the front end was accepted, and when the connection is over.
    news: Arc<OwnedFd>,
}

/// A front end that was accepted.
pub struct Accepted {
    /// The front end.
    pub tenant: Arc<Tenant>,
    /// When that was.
    pub at: Instant,
}

/// Tells of the end of a connection when it is dropped, also by a panic.
struct OverOnDrop<'a>(&'a Connection);

impl Drop for OverOnDrop<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
        self.0.tell();
    }
}

/// Forgets the front end when it is dropped, also by a panic.
struct Departure<'a>(&'a Connection, &'a Served);

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        *self.0.departs() = true;
        if let Some(Accepted { tenant, .. }) = self.0.accepted() {
            if tenant.has_lost_memory() {
                log::error!("the front end has taken back memory that it shared: it is let go");
            }
            // Not under the lock: memory may be unmapped, and its files closed, which can take long.
            tenant.depart();
        }
        self.1.counters.departures.count();
    }
}

impl Connection {
    /// Makes a connection with nobody, which tells of itself by `news`.
    pub fn new(news: Arc<OwnedFd>) -> Self {
        let (accepted, answered) = (OnceLock::new(), AtomicU64::new(0));
        let (ended, over) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { accepted, answered, ended, departs: Mutex::new(false), over, news }
    }

    fn departs(&self) -> MutexGuard<'_, bool> {
        self.departs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        // An event that is emptied when it is read takes a one.
        let _ = nix::unistd::write(&self.news, &1u64.to_ne_bytes());
    }

    /// Whether the thread that serves it is about to end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// The number of messages that were answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// The front end, if it was accepted.
    pub fn accepted(&self) -> Option<&Accepted> {
        self.accepted.get()
    }

    /// Ends the connection: nothing is answered any more. Returns false if it is about to be over
    /// anyway.
    pub fn end(&self) -> bool {
        let departs = self.departs();
        if *departs {
            return false;
        }
        self.ended.store(true, Ordering::Release);
        if let Some(Accepted { tenant, .. }) = self.accepted() {
            tenant.close();
            // Nothing to shut down if the front end has done so.
            let _ = tenant.stream().shutdown(Shutdown::Both);
        }
        true
    }

    /// Serves the front end that waits on `listening`, if one still does, until its connection and
    /// its memory are gone. Returns whether one was accepted.
    ///
    /// Another process that shares the socket may have accepted it first, and may have changed
    /// whether the call that accepts waits: then this serves the next front end.
    ///
    /// # Errors
    ///
    /// Why the connection has failed.
    pub fn serve(&self, served: &Served, listening: OwnedFd) -> Result<bool, Failure> {
        let _over = OverOnDrop(self);
        let stream = match UnixListener::from(listening).accept() {
            Ok((stream, _)) => stream,
            Err(e) if is_nobody(&e) => return Ok(false),
            Err(e) => return Err(system("accept a front end")(e)),
        };
        served.counters.connections.count();
        let told = served.log().comes();
        let reads = served.counters.reads.get();
        let outcome = self.converse(served, stream);
        served.log().leaves(outcome.as_ref().err(), told, served.counters.reads.get() > reads);
        outcome.map(|()| true)
    }

    fn converse(&self, served: &Served, stream: UnixStream) -> Result<(), Failure> {
        let backend = &served.backend;
        let _departure = Departure(self, served);
        let own = stream.try_clone().map_err(system("duplicate a descriptor"))?;
        let vrings = Vrings::new(backend);
        let vrings = vrings.map_err(|e| system("make a queue")(io::Error::other(e)))?;
        let tenant = Arc::new(Tenant::new(Arc::clone(backend), own, vrings.queues()));
        let handler = Handler::new(Arc::clone(&tenant), vrings);
        self.accepted.get_or_init(|| Accepted { tenant: Arc::clone(&tenant), at: Instant::now() });
        self.tell();
        let mut messages = BackendReqHandler::from_stream(stream, Arc::new(Mutex::new(handler)));
        let over = loop {
            if self.ended.load(Ordering::Acquire) {
                break VhostUserError::Disconnected;
            }
            if let Err(e) = messages.handle_request() {
                break e;
            }
            self.answered.fetch_add(1, Ordering::Relaxed);
        };
        match over {
            // The usual end of a connection, and the one that we have brought about.
            VhostUserError::Disconnected
            | VhostUserError::PartialMessage
            | VhostUserError::SocketBroken(_) => Ok(()),
            _ if self.ended.load(Ordering::Acquire) || tenant.is_closed() => Ok(()),
            e => Err(tenant.misfit(&e).map_or_else(|| e.into(), Failure::Misfit)),
        }
    }
}

/// Whether the front end that waited was accepted by another process, or has left.
fn is_nobody(error: &io::Error) -> bool {
    let kind = error.kind();
    kind == io::ErrorKind::WouldBlock
        || kind == io::ErrorKind::ConnectionAborted
        || kind == io::ErrorKind::Interrupted
}

impl Served {
    /// Locks what was logged.
    pub fn log(&self) -> MutexGuard<'_, ConnectionLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionLog {
    /// Logs that a front end has come, unless many have. Returns whether it was logged.
    fn comes(&mut self) -> bool {
        let told = self.said.is_none() && self.come.due();
        if told {
            log::info!("a front end has come");
        }
        told
    }

    /// Logs why a front end has left. `told` is what [`comes`](Self::comes) has returned; `worked`
    /// says whether the disk was read meanwhile.
    pub fn leaves(&mut self, failure: Option<&Failure>, told: bool, worked: bool) {
        let Some(failure) = failure else {
            if told {
                log::info!("the front end has left");
            }
            if worked {
                self.said = None;
            }
            return;
        };
        let words = failure.to_string();
        if self.said.as_ref() != Some(&words) && self.failed.due() {
            log::warn!("the front end was let go: {words} (said once)");
            self.said = Some(words);
        }
    }
}
