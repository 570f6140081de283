//! A thread of another process that goes on one instruction at a time.

use super::common::daemon::Daemon;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use ring_test_support::process::PATIENCE;
use std::time::Instant;

/// The thread that serves a daemon's queues. The thread that has made this must use it.
pub struct Stepper {
    thread: Pid,
    _processor: SameProcessor,
}

/// The caller's thread runs on the processor of another one, until this is dropped. Each of them
/// waits for the other all the time, and between two processors that takes ten times as long.
struct SameProcessor(CpuSet);

impl SameProcessor {
    fn of(thread: Pid) -> Self {
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this).unwrap();
        let mut one = CpuSet::new();
        one.set(sched_getcpu().unwrap()).unwrap();
        for thread in [this, thread] {
            sched_setaffinity(thread, &one).unwrap();
        }
        Self(before)
    }
}

impl Drop for SameProcessor {
    fn drop(&mut self) {
        sched_setaffinity(Pid::from_raw(0), &self.0).unwrap();
    }
}

impl Stepper {
    /// Stops the thread where it is.
    pub fn of(daemon: &Daemon) -> Self {
        let thread = Pid::from_raw(daemon.queue_thread().parse().unwrap());
        let processor = SameProcessor::of(thread);
        ptrace::seize(thread, ptrace::Options::empty()).expect("leave to trace a process of ours");
        ptrace::interrupt(thread).unwrap();
        let stepper = Self { thread, _processor: processor };
        stepper.wait();
        stepper
    }

    /// Executes one instruction; a system call until it returns.
    pub fn step(&self) {
        ptrace::step(self.thread, None::<Signal>).unwrap();
        self.wait();
    }

    fn wait(&self) {
        let start = Instant::now();
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        loop {
            match waitpid(self.thread, Some(flags)).unwrap() {
                WaitStatus::StillAlive => {
                    assert!(start.elapsed() < PATIENCE, "the thread sleeps");
                    std::thread::yield_now();
                }
                WaitStatus::Stopped(_, Signal::SIGTRAP) | WaitStatus::PtraceEvent(..) => return,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Kills the daemon where its thread stands.
    pub fn kill(self, mut daemon: Daemon) {
        daemon.0.kill().unwrap();
        // Its end has to be taken note of before that of the process can be.
        let start = Instant::now();
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        while let Ok(
            WaitStatus::StillAlive | WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..),
        ) = waitpid(self.thread, Some(flags))
        {
            assert!(start.elapsed() < PATIENCE, "the thread does not end");
            std::thread::yield_now();
        }
        daemon.0.wait().unwrap();
    }
}
