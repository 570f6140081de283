//! Front ends: one after the other, each from its arrival to its end.

use crate::counters::Counters;
use crate::dirty::GuestMemory;
use crate::driver::Driver;
use crate::failure::{Failure, system};
use crate::fault::Faults;
use crate::pace::Pace;
use shared_block_ring::Stop;
use shared_block_ring::device::bell::new_event;
use shared_block_ring::wait::wait_readable;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;

/// How long a front end may take to ask for the disk's properties while another one waits. QEMU does so within milliseconds.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

/// Between looks at a handshake that is not over.
const HANDSHAKE_PAUSE: Duration = Duration::from_secs(1);

/// After a front end that was served badly, before the next one.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What front ends are served with.
pub struct Connections {
    driver: Driver,
    listening: OwnedFd,
    stop: Stop,
    faults: Faults,
    counters: Arc<Counters>,
    ring: String,
    /// Of the line that says that somebody waits.
    waiting: Mutex<Pace>,
}

impl Connections {
    /// From a socket that listens, until `stop`, for the backend that `driver` drives. `ring` is the name that the log knows it by.
    pub fn new(
        driver: Driver,
        listening: OwnedFd,
        stop: Stop,
        faults: Faults,
        counters: Arc<Counters>,
        ring: String,
    ) -> Self {
        Self { driver, listening, stop, faults, counters, ring, waiting: Mutex::default() }
    }

    /// One front end after the other.
    pub fn serve(&self) -> Result<(), Failure> {
        let mut paces = [Pace::default(); 2];
        while !self.stop.requested() {
            wait_readable(&[self.stop.fd(), self.listening.as_fd()], None)
                .map_err(system("wait for a front end"))?;
            if self.stop.requested() || !self.somebody_waits().map_err(system("wait"))? {
                continue;
            }
            self.counters.connections.count();
            // One that comes again and again is counted, not told of each time.
            let told = paces[0].due();
            if told {
                log::info!("a front end has come");
            }
            match self.serve_one() {
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
        }
        Ok(())
    }

    /// Waits for one front end, and serves it until nothing of it is left.
    pub fn serve_one(&self) -> Result<(), Failure> {
        let outcome = self.connection();
        self.driver.backend().disconnect();
        self.faults.forget_guest();
        outcome
    }

    fn somebody_waits(&self) -> io::Result<bool> {
        Ok(wait_readable(&[self.listening.as_fd()], Some(Duration::ZERO))?.is_some())
    }

    /// Serves one front end to its end, or to ours.
    fn connection(&self) -> Result<(), Failure> {
        let memory = GuestMemoryAtomic::new(GuestMemory::new());
        let backend = self.driver.backend();
        let mut daemon = backend.connect(|| {
            VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(backend), memory)
        })?;
        let accepting = self.listening.try_clone().map_err(system("duplicate a descriptor"))?;
        daemon.start(&mut Listener::from(UnixListener::from(accepting)))?;
        let over = new_event().map_err(|e| system("make an event")(e.into()))?;
        let shutdown = daemon.shutdown_handle();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                if self.watch(over.as_fd())
                    && let Some(shutdown) = &shutdown
                {
                    backend.close();
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
            let established = self.driver.backend().established();
            // The first one that is readable is heard: what was lost is told also when all is over at the same time.
            let mut waited = vec![self.faults.fd(), over, self.stop.fd()];
            if established && !told {
                waited.push(self.listening.as_fd());
            }
            let timeout = (!established).then_some(HANDSHAKE_PAUSE);
            match wait_readable(&waited, timeout) {
                Ok(Some(0)) => {
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
                Ok(Some(1)) => return false,
                Ok(Some(2)) => return true,
                Ok(Some(_)) => {
                    told = true;
                    if self.waiting.lock().unwrap_or_else(PoisonError::into_inner).due() {
                        log::warn!("another front end waits: one is served at a time");
                    }
                }
                Ok(None) if !established && start.elapsed() >= HANDSHAKE_PATIENCE => {
                    if matches!(self.somebody_waits(), Ok(true)) {
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
