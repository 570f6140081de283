//! A ring that is served: its parts, and what is left to do when they have ended.

use crate::daemon::condition::Condition;
use crate::daemon::failure::{Failure, system};
use crate::daemon::handover::{Estate, Reopening};
use crate::daemon::peer::Admission;
use crate::data_path::counters::Counters;
use crate::data_path::executor::{self, Executor, SERIAL_BYTES};
use crate::data_path::fault::Losses;
use crate::data_path::flush_pool::FlushPool;
use crate::data_path::flusher::Flusher;
use crate::data_path::guard::{Guard, GuestState};
use crate::data_path::polling::Polling;
use crate::data_path::queue_thread::SharedWorker;
use crate::data_path::rate::Rates;
use crate::data_path::region::Region;
use crate::data_path::worker::Worker;
use crate::front_end::backend::Backend;
use crate::front_end::connection::Served;
use crate::front_end::endpoint::Endpoint;
use serde::{Deserialize, Serialize};
use shared_block_ring::DebugInfo;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::device::event::Signaller;
use shared_block_ring::format::{Geometry, Side};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// What the rings of one process share.
#[derive(Clone)]
pub struct Shared {
    /// The way to interrupt guests, and to wake processes on the host.
    pub signaller: Arc<Signaller>,
    /// The threads that make rings durable.
    pub flushes: FlushPool,
}

/// How a ring is served.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Terms {
    /// The ring's path, for messages.
    pub path: PathBuf,
    /// The guest's role.
    pub guest: Side,
    /// The disk's serial number.
    pub serial: [u8; SERIAL_BYTES],
    /// Refuse every write of the guest.
    pub read_only: bool,
    /// Whether the guest's writes are judged.
    pub guarded: bool,
    /// Log the pages of guest memory that are written to, when the front end asks for that.
    pub migratable: bool,
    /// How long a read is held at most.
    pub hold: Duration,
    /// When to poll for requests.
    pub polling: Polling,
    /// Limits of what the guest has done per second.
    pub rates: Rates,
    /// The number by which log lines name the ring, among many; 0 for the only one.
    pub scope: u64,
}

/// A ring that is open.
pub struct Content {
    /// Its file.
    pub file: Arc<File>,
    /// Its mapping.
    pub region: Region,
    /// The ring's geometry.
    pub geometry: Geometry,
    /// The ring's UUID; `None` for a plain ring.
    pub uuid: Option<Uuid>,
    /// The guest's side.
    pub guest_state: GuestState,
}

/// Makes the page of both bells, by which the backend and a process on the host wake each other.
///
/// # Errors
///
/// The kernel gives no memory.
pub fn bell_page() -> Result<File, Failure> {
    new_page().map_err(system("make the bells"))
}

/// The parts of a ring that is served.
pub struct Service {
    /// What drives its queues.
    pub worker: Arc<SharedWorker>,
    /// The device that front ends see.
    pub backend: Arc<Backend>,
    /// The counters of the data path.
    pub counters: Arc<Counters>,
    /// Whether the ring is as it should be.
    pub condition: Arc<Condition>,
    /// The ring's file.
    pub file: Arc<File>,
    /// The ring's geometry.
    pub geometry: Geometry,
    /// How it is served.
    pub terms: Terms,
    losses: Losses,
    /// What a process on the host wakes and is woken by, until that is handed over.
    bells: Option<HostBell>,
}

/// The page of both bells, and their events.
struct HostBell {
    page: File,
    to_host: Arc<OwnedFd>,
    to_backend: Arc<OwnedFd>,
}

impl Service {
    /// Makes everything that serves the ring, with a [`bell_page`], and starts nothing.
    ///
    /// # Errors
    ///
    /// The kernel does not give what a ring needs.
    pub fn new(
        content: Content,
        terms: Terms,
        page: File,
        shared: &Shared,
    ) -> Result<Self, Failure> {
        let Content { file, region, geometry, uuid, guest_state } = content;
        let Terms { read_only, guarded, guest, serial, .. } = terms;
        let counters = Arc::new(Counters::default());
        let (bells, host_bell, backend_bell) =
            bells(page, &shared.signaller).map_err(system("make the bells"))?;
        let losses = region.losses().clone();
        let guard = Guard::new(geometry, guest, uuid);
        let counted = Arc::clone(&counters);
        let service = executor::Service { read_only, guarded, serial };
        let executor = Executor::new(region, guard, service, counted, host_bell, guest_state);
        let flusher = Flusher::start(&shared.flushes, Arc::clone(&file), Arc::clone(&counters));
        let flusher = flusher.map_err(system("make an event"))?;
        let counted = Arc::clone(&counters);
        let (hold, polling) = (terms.hold, terms.polling);
        let mut worker = Worker::new(executor, counted, flusher, backend_bell, hold, polling);
        worker.limit(terms.rates);
        let worker = Arc::new(SharedWorker::new(worker).map_err(system("make an event"))?);
        let (queue, signaller) = (Arc::clone(&worker), Arc::clone(&shared.signaller));
        let backend = Backend::new(queue, geometry, read_only, terms.migratable, signaller);
        let condition = Condition::new(Arc::clone(&file), geometry, &counters, &losses);
        let (backend, condition) = (Arc::new(backend), Arc::new(condition));
        let bells = Some(bells);
        Ok(Self { worker, backend, counters, condition, file, geometry, terms, losses, bells })
    }

    /// The ring's path, for messages.
    pub fn name(&self) -> String {
        self.terms.path.display().to_string()
    }

    /// What a service manager and operators are told while the ring is served.
    pub fn status(&self) -> String {
        let (name, bytes, guest) = (self.name(), self.geometry.total_bytes(), self.terms.guest);
        format!("serving {name}, {bytes} bytes, to a guest that is the {guest}")
    }

    /// Returns what the ring's control sectors say; `None` where they cannot be read.
    pub fn info(&self) -> Option<DebugInfo> {
        if self.condition.is_truncated() {
            return None;
        }
        self.worker.lock().info()
    }

    /// Makes the endpoint of its socket for front ends, `listening`, with its name in messages.
    ///
    /// # Errors
    ///
    /// No descriptor can be made.
    pub fn endpoint(&self, listening: OwnedFd, socket: String) -> io::Result<Endpoint> {
        let (backend, counters) = (Arc::clone(&self.backend), Arc::clone(&self.counters));
        let (losses, log) = (self.losses.clone(), Mutex::default());
        let served = Served { backend, losses, counters, scope: self.terms.scope, log };
        Endpoint::new(served, listening, socket, self.name())
    }

    /// Makes what processes on the host are given. To be called once.
    ///
    /// # Errors
    ///
    /// No descriptor can be made.
    pub fn estate(&mut self, admission: Admission, reopen: Reopening) -> io::Result<Estate> {
        let bells = self.bells.take().ok_or(io::ErrorKind::NotFound)?;
        let HostBell { page, to_host, to_backend } = bells;
        let backend = Arc::clone(&self.backend);
        Ok(Estate {
            reopen,
            geometry: self.geometry,
            guest: self.terms.guest,
            page,
            to_host,
            to_backend,
            counters: Arc::clone(&self.counters),
            condition: Arc::clone(&self.condition),
            guarded: self.terms.guarded,
            admission,
            suspend: Box::new(move |suspend| backend.suspend(suspend)),
        })
    }

    /// Makes the region durable, once nothing serves it any more.
    ///
    /// # Errors
    ///
    /// The region cannot be synced, or the ring's file was truncated.
    pub fn finish(&self) -> Result<(), Failure> {
        self.file.sync_data().map_err(system("make the region durable"))?;
        if self.condition.is_truncated() {
            return Err(Failure::Truncated { path: self.name() });
        }
        Ok(())
    }
}

/// Makes the events by which backend and host wake each other, and a bell for each.
fn bells(page: File, signaller: &Arc<Signaller>) -> io::Result<(HostBell, Bell, Bell)> {
    let (to_host, to_backend) = (Arc::new(new_event()?), Arc::new(new_event()?));
    let host = Bell::new(&page, Arc::clone(&to_host), Sleeper::Host)?;
    let host = host.signalled_by(Arc::clone(signaller));
    let backend = Bell::new(&page, Arc::clone(&to_backend), Sleeper::Backend)?;
    Ok((HostBell { page, to_host, to_backend }, host, backend))
}
