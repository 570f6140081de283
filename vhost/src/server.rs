//! The daemon's life: one front end after the other, until it is asked to stop.

use crate::backend::Backend;
use crate::counters::Counters;
use crate::dirty::GuestMemory;
use crate::executor::{Executor, Service};
use crate::fault::Faults;
use crate::flusher::Flusher;
use crate::guard::Guard;
use crate::handover::{Estate, Handover, reopen};
use crate::pace::Pace;
use crate::region::Region;
use crate::ring::{self, Opened};
use crate::sandbox::{self, Policy};
use crate::settings::{ConsumerSocket, FrontEnds, Settings};
use crate::sockets::{self, Listening};
use crate::worker::Worker;
use nix::sys::socket::SockType;
use nix::unistd::{Uid, geteuid};
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::wait::wait_readable;
use shared_block_ring::{Error, Stop};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;

/// Why the daemon could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The ring.
    #[error("{path}: {source}{}", remedy(source))]
    Ring {
        /// As given.
        path: String,
        /// What is wrong with it.
        source: Error,
    },
    /// A socket, by its path or number.
    #[error("{name}: {source}")]
    Socket {
        /// As given.
        name: String,
        /// Why it cannot be served.
        source: io::Error,
    },
    /// The kernel refused something that does not depend on what was asked.
    #[error("cannot {what}: {source}")]
    System {
        /// Of the daemon's own needs.
        what: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The ring cannot be opened again by whom the daemon has become.
    #[error("{path}: {source}: it must be readable and writable for the daemon's user, {user}")]
    Reopen {
        /// As given.
        path: String,
        /// The operating system's error.
        source: io::Error,
        /// Who that is.
        user: Uid,
    },
    /// The sandbox.
    #[error("sandbox: {0} (--sandbox off does without)")]
    Sandbox(sandbox::Failure),
    /// Another user.
    #[error("--user, --group: {0}")]
    Identity(sandbox::Failure),
    /// The vhost-user library.
    #[error("vhost-user: {0}")]
    VhostUser(DaemonError),
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        Self::VhostUser(error)
    }
}

fn remedy(error: &Error) -> &'static str {
    match error {
        Error::Device(device) if device.source.kind() == io::ErrorKind::NotFound => {
            " (--size 8M makes it)"
        }
        Error::Format(shared_block_ring::format::FormatError::NotARing) => {
            " (blockring create makes one)"
        }
        _ => "",
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::System { what, source }
}

/// How long a front end may take to ask for the disk's properties while another one waits. QEMU does so within milliseconds.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

/// Between looks at a handshake that is not over.
const HANDSHAKE_PAUSE: Duration = Duration::from_secs(1);

/// After a front end that was served badly, before the next one.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Serves the ring until SIGTERM or SIGINT. Whatever was answered is then in the region, and durable.
pub fn run(settings: &Settings) -> Result<(), Failure> {
    let stop = Stop::on_signal().map_err(system("set up signals"))?;
    let name = settings.ring.display().to_string();
    let guest = settings.guest;
    // Sockets first: a second daemon with the same arguments is told so before it looks at the ring. Nobody is
    // accepted before everything is ready, since QEMU gives a backend up that dies during the handshake.
    let entrance = Entrance::open(&settings.front_ends)?;
    let consumers = match &settings.consumers {
        Some(ConsumerSocket { path, access, admission }) => {
            let listening =
                Listening::on(path, SockType::SeqPacket, access).map_err(named(path))?;
            Some((listening, admission.clone()))
        }
        None => None,
    };
    let opened =
        ring::open(settings).map_err(|source| Failure::Ring { path: name.clone(), source })?;
    let counters = Arc::new(Counters::default());
    let wiring = || -> io::Result<_> {
        let (page, to_host, to_backend) = (new_page()?, new_event()?, new_event()?);
        let host = Bell::new(&page, to_host.try_clone()?, Sleeper::Host)?;
        let backend = Bell::new(&page, to_backend.try_clone()?, Sleeper::Backend)?;
        Ok((page, to_host, to_backend, host, backend))
    };
    let (page, to_host, to_backend, host_bell, backend_bell) =
        wiring().map_err(system("make the bells"))?;
    let duplicate = || opened.file.try_clone().map_err(system("duplicate a descriptor"));
    let region = Region::new(duplicate()?, &name, opened.geometry)
        .map_err(|source| Failure::Ring { path: name.clone(), source: source.into() })?;
    let faults = Faults::catch(&region.device().memory().addresses())
        .map_err(system("catch faults of memory"))?;
    let sockets = entrance.ours().into_iter().chain(consumers.as_ref().map(|(ours, _)| ours));
    confine(settings, &opened, &sockets.map(Listening::folder).collect::<Vec<_>>())?;
    let service = Service { read_only: settings.read_only, serial: settings.serial };
    let guard = Guard::new(opened.geometry, guest, opened.uuid);
    let executor =
        Executor::new(region, guard, service, Arc::clone(&counters), host_bell, opened.mine);
    let flusher = Flusher::start(duplicate()?).map_err(system("start a thread"))?;
    let worker = Worker::new(executor, Arc::clone(&counters), flusher, backend_bell, settings.hold)
        .map_err(system("make a timer"))?;
    let backend =
        Arc::new(Backend::new(worker, opened.geometry, settings.read_only, settings.migratable));
    let _handover = match consumers {
        Some((listening, admission)) => {
            let counters = Arc::clone(&counters);
            let estate = Estate {
                region: duplicate()?,
                geometry: opened.geometry,
                guest,
                page,
                to_host,
                to_backend,
                counters,
                admission,
            };
            Some(Handover::start(listening, estate).map_err(system("start a thread"))?)
        }
        None => None,
    };
    log::info!("serving {name}, {} bytes, guest is the {guest}", opened.geometry.total_bytes());
    let server =
        Server { backend, entrance, stop, faults, counters, ring: name, waiting: Mutex::default() };
    server.serve()?;
    opened.file.sync_data().map_err(system("make the region durable"))?;
    log::info!("stopped: everything answered is durable");
    Ok(())
}

/// From here on nothing is opened that was not open before, but the region. No other thread runs yet: each inherits it.
fn confine(
    settings: &Settings,
    opened: &Opened,
    folders: &[BorrowedFd<'_>],
) -> Result<(), Failure> {
    let user = settings.identity.map_or_else(geteuid, |identity| identity.uid);
    if let Some(identity) = settings.identity {
        identity.assume().map_err(Failure::Identity)?;
    }
    if settings.confined {
        let policy = Policy { files: &[opened.file.as_fd()], folders };
        sandbox::apply(&policy).map_err(Failure::Sandbox)?;
    } else {
        log::warn!("no sandbox: for debugging only");
    }
    if settings.consumers.is_some() {
        // Every client gets a description of its own: better to know now than then.
        reopen(&opened.file).map_err(|source| Failure::Reopen {
            path: settings.ring.display().to_string(),
            source,
            user,
        })?;
    }
    Ok(())
}

/// The socket that front ends connect to; the path, if it is ours, goes with it.
enum Entrance {
    Ours(Listening),
    Inherited(OwnedFd),
}

impl Entrance {
    fn open(front_ends: &FrontEnds) -> Result<Self, Failure> {
        match front_ends {
            FrontEnds::Path(path, access) => {
                Listening::on(path, SockType::Stream, access).map(Self::Ours).map_err(named(path))
            }
            FrontEnds::Inherited(number) => sockets::inherited(*number)
                .map(Self::Inherited)
                .map_err(|source| Failure::Socket { name: format!("--fd {number}"), source }),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ours(listening) => listening.fd().as_fd(),
            Self::Inherited(fd) => fd.as_fd(),
        }
    }

    fn ours(&self) -> Option<&Listening> {
        match self {
            Self::Ours(listening) => Some(listening),
            Self::Inherited(_) => None,
        }
    }

    fn somebody_waits(&self) -> io::Result<bool> {
        Ok(wait_readable(&[self.fd()], Some(Duration::ZERO))?.is_some())
    }
}

fn named(path: &Path) -> impl Fn(io::Error) -> Failure {
    let name = path.display().to_string();
    move |source| Failure::Socket { name: name.clone(), source }
}

/// What front ends are served with.
struct Server {
    backend: Arc<Backend>,
    entrance: Entrance,
    stop: Stop,
    faults: Faults,
    counters: Arc<Counters>,
    ring: String,
    /// Of the line that says that somebody waits.
    waiting: Mutex<Pace>,
}

impl Server {
    /// One front end after the other.
    fn serve(&self) -> Result<(), Failure> {
        let mut paces = [Pace::default(); 2];
        while !self.stop.requested() {
            wait_readable(&[self.stop.fd(), self.entrance.fd()], None)
                .map_err(system("wait for a front end"))?;
            if self.stop.requested() || !self.entrance.somebody_waits().map_err(system("wait"))? {
                continue;
            }
            self.counters.connections.count();
            // One that comes again and again is counted, not told of each time.
            let told = paces[0].due();
            if told {
                log::info!("a front end has come");
            }
            match self.connection() {
                Ok(()) if told => log::info!("the front end has left"),
                Ok(()) => {}
                Err(e) => {
                    if paces[1].due() {
                        log::warn!("the front end was let go: {e}");
                    }
                    // If it could not even be accepted, it still waits, and is not to keep us busy.
                    wait_readable(&[self.stop.fd()], Some(RETRY_PAUSE)).map_err(system("wait"))?;
                }
            }
            self.backend.disconnect();
            self.faults.forget_guest();
        }
        Ok(())
    }

    /// Serves one front end to its end, or to ours.
    fn connection(&self) -> Result<(), Failure> {
        let memory = GuestMemoryAtomic::new(GuestMemory::new());
        let mut daemon =
            VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&self.backend), memory)?;
        for handler in daemon.get_epoll_handlers() {
            self.backend.listen(&handler).map_err(system("listen to events"))?;
        }
        let accepting =
            self.entrance.fd().try_clone_to_owned().map_err(system("duplicate a descriptor"))?;
        daemon.start(&mut Listener::from(UnixListener::from(accepting)))?;
        let over = new_event().map_err(|e| system("make an event")(e.into()))?;
        let shutdown = daemon.shutdown_handle();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                if self.watch(over.as_fd())
                    && let Some(shutdown) = &shutdown
                {
                    shutdown.shutdown();
                }
            });
            let outcome = daemon.wait();
            // The counter of a fresh event takes a one.
            let _ = nix::unistd::write(&over, &1u64.to_ne_bytes());
            outcome
        });
        match outcome {
            // How front ends usually leave.
            Err(DaemonError::HandleRequest(
                VhostUserError::Disconnected | VhostUserError::PartialMessage,
            )) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Waits until the connection is over, which answers false, or we have to end it.
    fn watch(&self, over: BorrowedFd<'_>) -> bool {
        let start = Instant::now();
        let mut told = false;
        loop {
            let established = self.backend.established();
            let mut waited = vec![over, self.stop.fd(), self.faults.fd()];
            if established && !told {
                waited.push(self.entrance.fd());
            }
            let timeout = (!established).then_some(HANDSHAKE_PAUSE);
            match wait_readable(&waited, timeout) {
                Ok(Some(0)) => return false,
                Ok(Some(1)) => return true,
                Ok(Some(2)) => {
                    if self.faults.guest_lost() {
                        log::error!(
                            "the front end has taken back memory that it shared: it is let go"
                        );
                        return true;
                    }
                    log::error!(
                        "{}: the file was cut short, or its medium cannot be read: every request fails from here on",
                        self.ring
                    );
                }
                Ok(Some(_)) => {
                    told = true;
                    if self.waiting.lock().unwrap_or_else(PoisonError::into_inner).due() {
                        log::warn!("another front end waits: one is served at a time");
                    }
                }
                Ok(None) if !established && start.elapsed() >= HANDSHAKE_PATIENCE => {
                    if matches!(self.entrance.somebody_waits(), Ok(true)) {
                        log::warn!(
                            "the front end does not say what it wants, and another one waits"
                        );
                        return true;
                    }
                }
                Ok(None) => {}
                Err(e) => {
                    log::error!("a front end is served without supervision: {e}");
                    return false;
                }
            }
        }
    }
}

/// What management software asks for (vhost-user, "Backend program conventions").
pub fn capabilities() -> String {
    serde_json::json!({"type": "block", "features": ["read-only", "blk-file"]}).to_string()
}
