//! The daemon of one ring, from start to end: opening everything, confining the process, serving
//! until a stop.

use crate::daemon::failure::{Failure, system};
use crate::daemon::handover::{Estate, Handover, reopen};
use crate::daemon::metrics;
use crate::daemon::prepared::{Prepared, Sockets};
use crate::daemon::sandbox::{self, Policy};
use crate::daemon::service::{Service, Shared, bell_page};
use crate::daemon::settings::Settings;
use crate::daemon::sockets::{self, Inherited, Listening};
use crate::daemon::watch;
use crate::daemon::watchdog::Watchdog;
use crate::data_path::flush_pool::FlushPool;
use crate::data_path::queue_thread::{self, QueueThread};
use crate::data_path::rate::Rates;
use crate::front_end::supervisor::Supervisor;
use nix::unistd::geteuid;
use ring_metrics::Bound;
use ring_program::{ServiceManager, Stop};
use shared_block_ring::device::event::Signaller;
use shared_block_ring::wait::{Limits, wait_readable};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// The action in the error for a queue's thread that cannot be started.
const NO_PROCESSOR: &str =
    "run the queue's thread (--cpu must name a processor that this process may use)";

/// Checks that `/proc` is there: sockets and region are opened again there by their descriptors,
/// whatever their paths lead to.
///
/// # Errors
///
/// It is not there.
pub fn expect_proc() -> Result<(), Failure> {
    let found = std::fs::metadata("/proc/self/fd");
    found.map(drop).map_err(system("work without /proc (mount -t proc proc /proc)"))
}

/// Checks what the daemon cannot do without on this machine.
fn expect_machine(settings: &Settings) -> Result<(), Failure> {
    expect_proc()?;
    let mut cpus = settings.cpus.iter().copied();
    cpus.try_for_each(queue_thread::try_processor).map_err(system(NO_PROCESSOR))
}

/// Prepares for signals to guests and to processes on the host.
///
/// # Errors
///
/// The kernel has no descriptor to spare.
pub fn signaller() -> Result<Arc<Signaller>, Failure> {
    let signaller = Signaller::new().map_err(system("prepare for signals to others"))?;
    if !signaller.never_waits() {
        log::warn!(
            "this kernel has no asynchronous I/O (CONFIG_AIO): a front end or consumer can hold the queue up by its events' flags"
        );
    }
    Ok(Arc::new(signaller))
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
    let asked = [stop.fd()];
    let metrics =
        metrics::listen(&settings.metrics, &settings.inherited_metrics, settings.identity, take)?;
    let sockets = Sockets { inherited: &take, kept: &|_| None };
    let prepared = Prepared::new(settings, sockets, &Limits::default().or_on(&asked))?;
    let Some(mut prepared) = prepared else {
        log::info!("asked to stop before the ring was served: nothing was begun");
        return Ok(());
    };
    let shared = Shared { signaller: signaller()?, flushes: FlushPool::new() };
    let page = bell_page()?;
    // The sandbox soon forbids to undo.
    prepared.keep();
    let listening = metrics.iter().filter_map(Bound::listening);
    let folders: Vec<_> =
        prepared.folders().chain(listening.filter_map(Listening::folder)).collect();
    let files = confine(settings, &prepared, &folders)?;
    let Prepared { opened, region, entrance, consumers, ring_file, names, serial } = prepared;
    let (role, content) = opened.split(region);
    let mut service = Service::new(content, settings.terms(serial), page, &shared)?;
    // Before the threads that follow, so that after a failure from here on the watchdog ends last.
    let waiters = service.worker.waiters().clone();
    let watchdog = Watchdog::start(&stop, waiters, Arc::clone(manager));
    let watchdog = watchdog.map_err(system("start a thread"))?;
    let worker = Arc::clone(&service.worker);
    let queue_thread =
        QueueThread::start(worker, settings.cpus.first().copied()).map_err(system(NO_PROCESSOR))?;
    let serving = service.status();
    let watch = watch::start(names, &service.condition, manager, &serving);
    let watch = watch.map_err(system("start a thread"))?;
    let offered = metrics::names(&metrics);
    let scrapes = metrics::serve(metrics, &service)?;
    let ask = stop.asker().map_err(system("duplicate a descriptor"))?;
    let supervisor = supervisor(&service, &entrance)?;
    // Last: a client that is answered finds a backend that is ready.
    let handover = match consumers {
        Some((listening, admission)) => {
            let file = Arc::clone(&service.file);
            let reopen = Box::new(move |writing| reopen(&file, writing));
            let estate = service.estate(admission, reopen);
            let estate = estate.map_err(system("duplicate a descriptor"))?;
            let failed = stop.asker().map_err(system("duplicate a descriptor"))?;
            Some(hand_over(listening, estate, failed)?)
        }
        None => None,
    };
    let rates = service.terms.rates;
    let limited =
        if rates == Rates::default() { String::new() } else { format!(" and gets {rates}") };
    log::info!(
        "serving {}, {} bytes, guest is the {}{limited}, the disk's serial number is {}{offered}; the file system is {files}",
        service.name(),
        service.geometry.total_bytes(),
        service.terms.guest,
        String::from_utf8_lossy(&serial).trim_end_matches('\0')
    );
    manager.ready(&serving);
    let served = supervise(supervisor, &stop, &|| service.backend.retire_signals());
    // The watchdog bounds the end, whatever its reason is.
    ask();
    manager.stopping("making everything durable");
    // Nothing is answered after this. The last flush is waited for, however long it takes: the
    // kernel may report to it alone what the sync below would have to report. The watchdog bounds
    // that.
    let durable = queue_thread.finish().map_err(system("make the region durable"));
    // The watch ends before the sockets are removed.
    drop(watch);
    drop(scrapes);
    let handed_over = handover.map_or(Ok(()), Handover::finish);
    drop(watchdog);
    service.finish().and(durable)?;
    if ring_file.is_lost() {
        return Err(Failure::Lost { path: service.name() });
    }
    // Held until everything is durable: another backend finds it so.
    drop(role);
    served?;
    handed_over?;
    log::info!("stopped: everything answered is durable");
    Ok(())
}

/// Prepares to serve the ring's front ends.
fn supervisor(service: &Service, entrance: &Listening) -> Result<Supervisor, Failure> {
    let listening = entrance.fd().try_clone().map_err(system("duplicate a descriptor"))?;
    let endpoint = service.endpoint(listening, entrance.name().to_owned());
    let endpoint = endpoint.map_err(system("make an event"))?;
    let wait = system("wait for a front end");
    let mut supervisor = Supervisor::new().map_err(&wait)?;
    supervisor.add(endpoint).map_err(&wait)?;
    Ok(supervisor)
}

/// Serves front ends until `stop`, and then until the last one is let go. What the kernel would wait
/// for at the end of this process is given back by `retire` while that one is still served.
///
/// # Errors
///
/// Another process has shut the socket down, and the last front end has left; or the socket cannot
/// be waited for.
fn supervise(mut supervisor: Supervisor, stop: &Stop, retire: &impl Fn()) -> Result<(), Failure> {
    let wait = system("wait for a front end");
    let mut leaves = false;
    while !supervisor.is_empty() {
        let now = Instant::now();
        let left = supervisor.deadline().map(|at| at.saturating_duration_since(now));
        let waited = [supervisor.fd(), stop.fd()];
        let waited = if leaves { &waited[..1] } else { &waited };
        wait_readable(waited, left).map_err(&wait)?;
        if !leaves && stop.requested() {
            retire();
            supervisor.leave_all().map_err(&wait)?;
            leaves = true;
        }
        for (_, end) in supervisor.turn().map_err(&wait)? {
            end?;
        }
    }
    Ok(())
}

/// Takes a socket that was inherited.
pub(super) fn take(inherited: Inherited) -> io::Result<OwnedFd> {
    // SAFETY: whoever started the daemon with `--fd` or `LISTEN_FDS` has left it this descriptor.
    // The settings have each number once, and this is called once for each: when its socket is
    // opened at the start.
    unsafe { sockets::inherited(inherited) }
}

/// Starts to serve a consumer socket. Calls `failed` if that cannot go on.
fn hand_over(
    listening: Listening,
    estate: Estate,
    failed: impl FnOnce() + Send + 'static,
) -> Result<Handover, Failure> {
    let handover = Handover::start().map_err(system("start a thread"))?;
    handover.add(listening, estate, failed).map_err(system("wait for clients"))?;
    Ok(handover)
}

/// Becomes another user and applies the sandbox: from here on only the region is opened again. No
/// other thread runs yet; all inherit it. Returns how far the file system is restricted.
fn confine(
    settings: &Settings,
    prepared: &Prepared,
    folders: &[BorrowedFd<'_>],
) -> Result<&'static str, Failure> {
    let user = settings.identity.map_or_else(geteuid, |identity| identity.uid);
    if let Some(identity) = settings.identity {
        identity.assume().map_err(Failure::Identity)?;
    }
    let files = if settings.confined {
        let descriptors = Some(sandbox::MAX_DESCRIPTORS);
        let policy = Policy { files: &[prepared.opened.file.as_fd()], folders, descriptors };
        sandbox::apply(&policy).map_err(Failure::Sandbox)?
    } else {
        log::warn!("no sandbox: for debugging only");
        "not restricted"
    };
    ring_program::stderr::release();
    prepared.try_reopen(settings, user)?;
    Ok(files)
}

/// Returns the capabilities for management software (vhost-user, "Backend program conventions").
pub fn capabilities() -> String {
    serde_json::json!({"type": "block", "features": ["read-only", "blk-file"]}).to_string()
}
