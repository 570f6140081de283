//! The daemon's life: everything is opened, confined, and served until it is asked to stop.

use crate::backend::Backend;
use crate::connections::Connections;
use crate::counters::Counters;
use crate::driver::Driver;
use crate::executor::{Executor, Service};
use crate::failure::{Failure, system};
use crate::fault::Faults;
use crate::flusher::Flusher;
use crate::guard::Guard;
use crate::handover::{Estate, Handover, reopen};
use crate::region::Region;
use crate::ring::{self, Opened};
use crate::sandbox::{self, Policy};
use crate::settings::{ConsumerSocket, FrontEnds, Settings};
use crate::sockets::{self, Listening};
use crate::worker::Worker;
use nix::sys::socket::SockType;
use nix::unistd::geteuid;
use shared_block_ring::Stop;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

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
    region.prefault(&opened.file, settings.huge_pages);
    let faults = Faults::catch(&region.device().memory().addresses())
        .map_err(system("catch faults of memory"))?;
    let sockets = entrance.ours().into_iter().chain(consumers.as_ref().map(|(ours, _)| ours));
    confine(settings, &opened, &sockets.map(Listening::folder).collect::<Vec<_>>())?;
    let (read_only, guarded) = (settings.read_only, settings.guarded);
    let service = Service { read_only, guarded, serial: settings.serial };
    let guard = Guard::new(opened.geometry, guest, opened.uuid);
    let executor =
        Executor::new(region, guard, service, Arc::clone(&counters), host_bell, opened.mine);
    let flusher = Flusher::start(duplicate()?).map_err(system("start a thread"))?;
    let worker = Worker::new(
        executor,
        Arc::clone(&counters),
        flusher,
        backend_bell,
        settings.hold,
        settings.polling,
    );
    let backend = Backend::new(worker, opened.geometry, read_only, settings.migratable);
    let backend = Arc::new(backend.map_err(system("make an event"))?);
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
                guarded,
                admission,
            };
            Some(Handover::start(listening, estate).map_err(system("start a thread"))?)
        }
        None => None,
    };
    let listening = entrance.fd().try_clone_to_owned().map_err(system("duplicate a descriptor"))?;
    let driver = Driver::start(backend, settings.cpu).map_err(system(
        "run the queue's thread (--cpu must name a processor that this process may use)",
    ))?;
    log::info!("serving {name}, {} bytes, guest is the {guest}", opened.geometry.total_bytes());
    Connections::new(driver, listening, stop, faults, counters, name).serve()?;
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
}

fn named(path: &Path) -> impl Fn(io::Error) -> Failure {
    let name = path.display().to_string();
    move |source| Failure::Socket { name: name.clone(), source }
}

/// What management software asks for (vhost-user, "Backend program conventions").
pub fn capabilities() -> String {
    serde_json::json!({"type": "block", "features": ["read-only", "blk-file"]}).to_string()
}
