//! The thread that drives the queues of one front end after the other.

use crate::backend::Backend;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The thread; it ends with this.
pub struct Driver {
    backend: Arc<Backend>,
    thread: Option<JoinHandle<()>>,
}

/// A panic there, which is a fault of ours, ends the daemon: whoever starts it again finds everything that was answered, and a queue that
/// nobody drives would help nobody.
struct Alarm;

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("the queue's thread has died of a fault of its own");
            std::process::abort();
        }
    }
}

impl Driver {
    /// Starts it, on one processor alone if that is given.
    pub fn start(backend: Arc<Backend>, cpu: Option<usize>) -> io::Result<Self> {
        let driven = Arc::clone(&backend);
        let spawn = || {
            std::thread::Builder::new().name("queue".to_owned()).spawn(move || {
                let _alarm = Alarm;
                driven.drive();
            })
        };
        let thread = match cpu {
            Some(cpu) => on_processor(cpu, spawn)?,
            None => spawn()?,
        };
        Ok(Self { backend, thread: Some(thread) })
    }

    /// What it drives.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

/// Starts a thread from there: it inherits the place from us, so that what is wrong with that is known before there is a thread.
fn on_processor<T>(cpu: usize, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let this = Pid::from_raw(0);
    let anywhere = sched_getaffinity(this)?;
    let mut there = CpuSet::new();
    there.set(cpu)?;
    sched_setaffinity(this, &there)?;
    let started = start();
    sched_setaffinity(this, &anywhere)?;
    started
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.backend.finish();
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked.
            let _ = thread.join();
        }
    }
}
