//! The daemon from start to end: opening everything, confining the process, serving until a stop.

use crate::daemon::condition::Condition;
use crate::daemon::failure::{Failure, system};
use crate::daemon::handover::{Estate, Handover, reopen};
use crate::daemon::metrics;
use crate::daemon::peer::Admission;
use crate::daemon::ring::{self, Opened};
use crate::daemon::sandbox::{self, Policy};
use crate::daemon::settings::{ConsumerSocket, Settings};
use crate::daemon::sockets::{self, Inherited, Listening, Source};
use crate::daemon::watch::{self, Named};
use crate::daemon::watchdog::Watchdog;
use crate::data_path::counters::Counters;
use crate::data_path::executor::{Executor, Service};
use crate::data_path::fault::{self, Losses};
use crate::data_path::flusher::Flusher;
use crate::data_path::guard::Guard;
use crate::data_path::queue_thread::{self, QueueThread, SharedWorker};
use crate::data_path::region::Region;
use crate::data_path::worker::Worker;
use crate::front_end::backend::Backend;
use crate::front_end::connections::Connections;
use nix::sys::socket::SockType;
use nix::unistd::geteuid;
use ring_metrics::{Address, Bound};
use ring_program::{ServiceManager, Stop};
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::device::event::Signaller;
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::handover::refuse_descriptors;
use shared_block_ring::wait::Limits;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The action in the error for a queue's thread that cannot be started.
const NO_PROCESSOR: &str =
    "run the queue's thread (--cpu must name a processor that this process may use)";

/// Checks what the daemon cannot do without on this machine.
fn expect_machine(settings: &Settings) -> Result<(), Failure> {
    // Sockets and region are opened again there by their descriptors, whatever their paths lead to.
    std::fs::metadata("/proc/self/fd")
        .map_err(system("work without /proc (mount -t proc proc /proc)"))?;
    settings.cpu.map_or(Ok(()), queue_thread::try_processor).map_err(system(NO_PROCESSOR))
}

fn warn_of_waits(signaller: &Signaller) {
    if !signaller.never_waits() {
        log::warn!(
            "this kernel has no asynchronous I/O (CONFIG_AIO): a front end or consumer can hold the queue up by its events' flags"
        );
    }
}

/// Serves the ring until SIGTERM or SIGINT, which also end a long start. Everything that was
/// answered is then in the region, and durable. `manager` is told when clients can connect, and
/// that the queue's thread is alive.
///
/// # Errors
///
/// Why the daemon could not start or go on, or what is lost of the ring at its end.
pub fn run(settings: &Settings, manager: &Arc<ServiceManager>) -> Result<(), Failure> {
    expect_machine(settings)?;
    let stop = Stop::on_signal().map_err(system("set up signals"))?;
    let name = settings.ring.display().to_string();
    let guest = settings.guest;
    // Sockets first: a second daemon with the same arguments fails before it opens the ring. No
    // connection is accepted before everything is ready, since QEMU gives up on a backend that dies
    // during the handshake.
    let entrance = listen(&settings.front_ends, SockType::Stream)?;
    let consumers = settings.consumers.as_ref().map(listen_to_consumers).transpose()?;
    let metrics = metrics::listen(settings, take)?;
    let Some((mut opened, region)) = open_ring(settings, &stop)? else {
        log::info!("asked to stop before the ring was served: nothing was begun");
        return Ok(());
    };
    let counters = Arc::new(Counters::default());
    let signaller = Arc::new(Signaller::new().map_err(system("prepare for signals to others"))?);
    warn_of_waits(&signaller);
    let (page, to_host, to_backend, host_bell, backend_bell) =
        bells(&signaller).map_err(system("make the bells"))?;
    let (ring_file, names) = names(settings, &opened).map_err(system("look at the files"))?;
    // From here on no failure is expected because of the arguments, and the sandbox soon forbids to
    // undo.
    opened.keep();
    let duplicate = || opened.file.try_clone().map_err(system("duplicate a descriptor"));
    let losses = region.losses().clone();
    let sockets = [&entrance].into_iter().chain(consumers.as_ref().map(|(socket, _)| socket));
    let sockets = sockets.chain(metrics.iter().filter_map(Bound::listening));
    let folders: Vec<_> = sockets.filter_map(Listening::folder).collect();
    let files = confine(settings, &opened, &folders)?;
    let Settings { read_only, guarded, .. } = *settings;
    let serial = settings.serial.map_or_else(|| opened.serial(), Ok);
    let serial = serial.map_err(system("look at the ring's file"))?;
    let service = Service { read_only, guarded, serial };
    let guard = Guard::new(opened.geometry, guest, opened.uuid);
    let (counted, state) = (Arc::clone(&counters), opened.guest_state);
    let executor = Executor::new(region, guard, service, counted, host_bell, state);
    let flusher = Flusher::start(duplicate()?, Arc::clone(&counters));
    let flusher = flusher.map_err(system("start a thread"))?;
    let worker = Worker::new(
        executor,
        Arc::clone(&counters),
        flusher,
        backend_bell,
        settings.hold,
        settings.polling,
    );
    let worker = Arc::new(SharedWorker::new(worker).map_err(system("make an event"))?);
    let (queue, geometry) = (Arc::clone(&worker), opened.geometry);
    let backend = Backend::new(queue, geometry, read_only, settings.migratable, signaller);
    let backend = Arc::new(backend);
    // Before the threads that follow, so that after a failure from here on the watchdog ends last.
    let watchdog = Watchdog::start(&stop, worker.waiters().clone(), Arc::clone(manager));
    let watchdog = watchdog.map_err(system("start a thread"))?;
    let listening = entrance.fd().try_clone().map_err(system("duplicate a descriptor"))?;
    let queue_thread = QueueThread::start(worker, settings.cpu).map_err(system(NO_PROCESSOR))?;
    let serving = status(&name, opened.geometry, guest);
    let condition = Arc::new(Condition::new(duplicate()?, opened.geometry, &counters, &losses));
    let watch = watch::start(names, &condition, manager, &serving);
    let watch = watch.map_err(system("start a thread"))?;
    let offered = metrics::names(&metrics);
    let scrapes = metrics::serve(metrics, settings, &opened, &counters, &condition)?;
    let ask = stop.asker().map_err(system("duplicate a descriptor"))?;
    // Last: a client that is answered finds a backend that is ready.
    let handover = match consumers {
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
                condition: Arc::clone(&condition),
                guarded,
                admission,
                suspend: {
                    let backend = Arc::clone(&backend);
                    Box::new(move |suspend| backend.suspend(suspend))
                },
            };
            let failed = stop.asker().map_err(system("duplicate a descriptor"))?;
            Some(Handover::start(listening, estate, failed).map_err(system("start a thread"))?)
        }
        None => None,
    };
    log::info!(
        "serving {name}, {} bytes, guest is the {guest}, the disk's serial number is {}{offered}; the file system is {files}",
        opened.geometry.total_bytes(),
        String::from_utf8_lossy(&serial).trim_end_matches('\0')
    );
    manager.ready(&serving);
    let connections = Connections::new(backend, listening, stop, losses, counters, name);
    let served = connections.serve(entrance.name());
    // The watchdog bounds the end, whatever its reason is.
    ask();
    manager.stopping("making everything durable");
    end(queue_thread, connections);
    // The watch ends before the sockets are removed.
    drop(watch);
    drop(scrapes);
    let handed_over = handover.map_or(Ok(()), Handover::finish);
    drop(watchdog);
    finish(settings, &opened, &condition, &ring_file)?;
    served?;
    handed_over?;
    log::info!("stopped: everything answered is durable");
    Ok(())
}

/// Makes the page and the events by which backend and host wake each other, and a bell for each.
fn bells(signaller: &Arc<Signaller>) -> io::Result<(File, OwnedFd, OwnedFd, Bell, Bell)> {
    let (page, to_host, to_backend) = (new_page()?, new_event()?, new_event()?);
    let host = Bell::new(&page, to_host.try_clone()?, Sleeper::Host)?;
    let host = host.signalled_by(Arc::clone(signaller));
    let backend = Bell::new(&page, to_backend.try_clone()?, Sleeper::Backend)?;
    Ok((page, to_host, to_backend, host, backend))
}

/// Ends the queue's thread: nothing is answered after this. Then drops what its front ends used.
fn end(queue_thread: QueueThread, connections: Connections) {
    drop(queue_thread);
    drop(connections);
}

/// Makes a listening socket, or takes one that was inherited.
fn listen(source: &Source, kind: SockType) -> Result<Listening, Failure> {
    match source {
        Source::Path(path, access) => Listening::on(path, kind, access)
            .map_err(|source| Failure::Socket { name: path.display().to_string(), source }),
        Source::Inherited(inherited) => {
            let name = inherited.to_string();
            match take(*inherited) {
                Ok(socket) => Ok(Listening::inherited(socket, name)),
                Err(source) => Err(Failure::Socket { name, source }),
            }
        }
    }
}

/// Takes a socket that was inherited.
fn take(inherited: Inherited) -> io::Result<OwnedFd> {
    // SAFETY: whoever started the daemon with `--fd` or `LISTEN_FDS` has left it this descriptor.
    // The settings have each number once, and this is called once for each: when its socket is
    // opened at the start.
    unsafe { sockets::inherited(inherited) }
}

fn listen_to_consumers(socket: &ConsumerSocket) -> Result<(Listening, Admission), Failure> {
    let listening = listen(&socket.source, SockType::SeqPacket)?;
    refuse_descriptors(listening.fd().as_fd());
    sockets::do_not_block(listening.fd())
        .map_err(|source| Failure::Socket { name: listening.name().to_owned(), source })?;
    Ok((listening, socket.admission.clone()))
}

/// Opens and maps the ring. Returns `None` at a stop, after giving back the space that was
/// allocated.
fn open_ring(settings: &Settings, stop: &Stop) -> Result<Option<(Opened, Region)>, Failure> {
    let name = settings.ring.display().to_string();
    let fail = |source| Failure::Ring { path: name.clone(), source };
    let asked = [stop.fd()];
    let limits = Limits::default().or_on(&asked);
    let opened = match ring::open(settings, &limits) {
        Err(e) if ring::is_interrupted(&e) => return Ok(None),
        other => other.map_err(fail)?,
    };
    let file = opened.file.try_clone().map_err(system("duplicate a descriptor"))?;
    fault::catch().map_err(system("catch faults of memory"))?;
    let losses = Losses::new().map_err(system("record faults of memory"))?;
    let region = Region::new(file, &name, opened.geometry, &losses);
    let region = region.map_err(|e| fail(e.into()))?;
    let prefaulted = region.prefault(&opened.file, settings.huge_pages, &limits);
    Ok(prefaulted.is_ok().then_some((opened, region)))
}

/// Makes the region durable.
///
/// # Errors
///
/// The region cannot be synced, or the ring's file was truncated or is not at its path any more.
fn finish(
    settings: &Settings,
    opened: &Opened,
    condition: &Condition,
    ring_file: &Named,
) -> Result<(), Failure> {
    opened.file.sync_data().map_err(system("make the region durable"))?;
    let path = || settings.ring.display().to_string();
    if condition.is_truncated() {
        return Err(Failure::Truncated { path: path() });
    }
    if ring_file.is_lost() {
        return Err(Failure::Lost { path: path() });
    }
    Ok(())
}

/// Returns what the service manager is told while the ring is served.
fn status(name: &str, geometry: Geometry, guest: Side) -> String {
    format!("serving {name}, {} bytes, to a guest that is the {guest}", geometry.total_bytes())
}

/// Returns the ring's name, and all names that are watched.
fn names(settings: &Settings, opened: &Opened) -> io::Result<(Named, Vec<Named>)> {
    let ring = Named::ring(&settings.ring, &opened.file.metadata()?);
    let mut names = vec![ring.clone()];
    let consumers = settings.consumers.as_ref().map(|consumers| &consumers.source);
    for source in [&settings.front_ends].into_iter().chain(consumers) {
        if let Source::Path(path, _) = source {
            names.push(Named::socket(path)?);
        }
    }
    for address in &settings.metrics {
        if let Address::Unix(path) = address {
            names.push(Named::socket(path)?);
        }
    }
    Ok((ring, names))
}

/// Becomes another user and applies the sandbox: from here on only the region is opened again. No
/// other thread runs yet; all inherit it. Returns how far the file system is restricted.
fn confine(
    settings: &Settings,
    opened: &Opened,
    folders: &[BorrowedFd<'_>],
) -> Result<&'static str, Failure> {
    let user = settings.identity.map_or_else(geteuid, |identity| identity.uid);
    if let Some(identity) = settings.identity {
        identity.assume().map_err(Failure::Identity)?;
    }
    let files = if settings.confined {
        let policy = Policy { files: &[opened.file.as_fd()], folders };
        sandbox::apply(&policy).map_err(Failure::Sandbox)?
    } else {
        log::warn!("no sandbox: for debugging only");
        "not restricted"
    };
    ring_program::stderr::release();
    if settings.consumers.is_some() {
        // Every client gets an open file description of its own: a failure shows at the start.
        reopen(&opened.file).map_err(|source| Failure::Reopen {
            path: settings.ring.display().to_string(),
            source,
            user,
        })?;
    }
    Ok(files)
}

/// Returns the capabilities for management software (vhost-user, "Backend program conventions").
pub fn capabilities() -> String {
    serde_json::json!({"type": "block", "features": ["read-only", "blk-file"]}).to_string()
}
