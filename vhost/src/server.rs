//! The daemon's life: one front end after the other, until it is asked to stop.

use crate::backend::Backend;
use crate::config::Config;
use crate::counters::Counters;
use crate::executor::{Executor, Service};
use crate::flusher::Flusher;
use crate::guard::Guard;
use crate::handover::{Estate, Handover};
use crate::pace::Pace;
use crate::region::Region;
use crate::ring;
use crate::sockets::{self, Listening};
use crate::worker::Worker;
use nix::sys::socket::SockType;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::wait::wait_readable;
use shared_block_ring::{Error, Stop};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

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

/// Serves the ring until SIGTERM or SIGINT. Whatever was answered is then in the region, and durable.
pub fn run(config: &Config) -> Result<(), Failure> {
    let stop = Stop::on_signal().map_err(system("set up signals"))?;
    let path = config.blk_file.as_deref().unwrap_or(Path::new(""));
    let name = path.display().to_string();
    let guest = config.guest.into();
    // Sockets first: a second daemon with the same arguments is told so before it looks at the ring. Nobody is
    // accepted before everything is ready, since QEMU gives a backend up that dies during the handshake.
    let front_ends = front_ends(config)?;
    let consumers = match &config.consumer_socket {
        Some(socket) => Some(Listening::on(socket, SockType::SeqPacket).map_err(named(socket))?),
        None => None,
    };
    let opened = ring::open(config, path, guest)
        .map_err(|source| Failure::Ring { path: name.clone(), source })?;
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
    let service = Service { read_only: config.read_only, serial: config.serial };
    let guard = Guard::new(opened.geometry, guest, opened.uuid);
    let executor =
        Executor::new(region, guard, service, Arc::clone(&counters), host_bell, opened.mine);
    let flusher = Flusher::start(duplicate()?).map_err(system("start a thread"))?;
    let worker =
        Worker::new(executor, Arc::clone(&counters), flusher, backend_bell, config.hold_ms)
            .map_err(system("make a timer"))?;
    let backend = Arc::new(Backend::new(worker, opened.geometry, config.read_only));
    let _handover = match consumers {
        Some(listening) => {
            let counters = Arc::clone(&counters);
            let estate = Estate {
                region: duplicate()?,
                geometry: opened.geometry,
                guest,
                page,
                to_host,
                to_backend,
                counters,
            };
            Some(Handover::start(listening, estate).map_err(system("start a thread"))?)
        }
        None => None,
    };
    log::info!("serving {name}, {} bytes, guest is the {guest}", opened.geometry.total_bytes());
    serve(&backend, &front_ends, &stop, &counters)?;
    opened.file.sync_data().map_err(system("make the region durable"))?;
    log::info!("stopped: everything answered is durable");
    Ok(())
}

/// The socket that front ends connect to; the path, if it is ours, goes with it.
enum FrontEnds {
    Ours(Listening),
    Inherited(OwnedFd),
}

impl FrontEnds {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ours(listening) => listening.fd().as_fd(),
            Self::Inherited(fd) => fd.as_fd(),
        }
    }
}

fn named(path: &Path) -> impl Fn(io::Error) -> Failure {
    let name = path.display().to_string();
    move |source| Failure::Socket { name: name.clone(), source }
}

fn front_ends(config: &Config) -> Result<FrontEnds, Failure> {
    if let Some(path) = &config.socket_path {
        return Ok(FrontEnds::Ours(Listening::on(path, SockType::Stream).map_err(named(path))?));
    }
    let number = config.fd.unwrap_or(-1);
    sockets::inherited(number)
        .map(FrontEnds::Inherited)
        .map_err(|source| Failure::Socket { name: format!("--fd {number}"), source })
}

fn serve(
    backend: &Arc<Backend>,
    front_ends: &FrontEnds,
    stop: &Stop,
    counters: &Counters,
) -> Result<(), Failure> {
    let mut paces = [Pace::default(); 2];
    while let Some(1) | None = wait_readable(&[stop.fd(), front_ends.fd()], None)
        .map_err(system("wait for a front end"))?
    {
        if stop.requested() {
            break;
        }
        if wait_readable(&[front_ends.fd()], Some(std::time::Duration::ZERO))
            .map_err(system("wait"))?
            .is_none()
        {
            continue;
        }
        counters.connections.count();
        let told = paces[0].due();
        if told {
            log::info!("a front end has come");
        }
        match connection(backend, front_ends, stop) {
            Ok(()) if told => log::info!("the front end has left"),
            Err(e) if paces[1].due() => log::warn!("the front end was let go: {e}"),
            // One that comes again and again is counted, not told of each time.
            Ok(()) | Err(_) => {}
        }
        backend.disconnect();
    }
    Ok(())
}

/// Serves one front end to its end, or to ours.
fn connection(backend: &Arc<Backend>, front_ends: &FrontEnds, stop: &Stop) -> Result<(), Failure> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(backend), memory)?;
    for handler in daemon.get_epoll_handlers() {
        backend.listen(&handler).map_err(system("listen to events"))?;
    }
    let accepting =
        front_ends.fd().try_clone_to_owned().map_err(system("duplicate a descriptor"))?;
    daemon.start(&mut Listener::from(UnixListener::from(accepting)))?;
    let over = new_event().map_err(|e| system("make an event")(e.into()))?;
    let shutdown = daemon.shutdown_handle();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Until the connection ends by itself, or we are asked to end it.
            while matches!(wait_readable(&[stop.fd(), over.as_fd()], None), Ok(None)) {}
            if stop.requested()
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

/// What management software asks for (vhost-user, "Backend program conventions").
pub fn capabilities() -> String {
    serde_json::json!({"type": "block", "features": ["read-only", "blk-file"]}).to_string()
}
