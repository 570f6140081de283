//! The worker's flushes, which end when the exploration says so.

use ring_test_support::process::PATIENCE;
use shared_block_ring::device::event::drain;
use shared_block_ring::wait::wait_readable;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock};
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;

/// The threads for all explorations.
static POOL: LazyLock<FlushPool> = LazyLock::new(FlushPool::new);

/// The tests' end of a flusher, and what it must be doing: a flush says that it has begun, but
/// nothing says that none has.
pub struct Flushes {
    begun: Receiver<()>,
    go_on: Sender<()>,
    done: Arc<OwnedFd>,
    under_way: bool,
    /// Whether another flush begins behind the one under way.
    wanted: bool,
}

impl Flushes {
    pub fn new() -> (Flusher, Self) {
        let (begins, begun) = channel();
        let (go_on, goes_on) = channel();
        let sync = move || {
            // Either fails if the backend was killed.
            let _ = begins.send(());
            let _ = goes_on.recv();
            Ok(())
        };
        let flusher = Flusher::by(&POOL, sync).unwrap();
        let done = Arc::clone(flusher.event());
        (flusher, Self { begun, go_on, done, under_way: false, wanted: false })
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Notes that the worker takes a FLUSH. Returns whether a flush begins for it: otherwise it
    /// waits for the one behind that which is under way.
    pub fn request(&mut self) -> bool {
        let begins = !std::mem::replace(&mut self.under_way, true);
        self.wanted |= !begins;
        begins
    }

    /// Ends the flush that is under way. Returns whether the next begins.
    pub fn end(&mut self) -> bool {
        self.go_on.send(()).unwrap();
        assert!(wait_readable(&[self.done.as_fd()], Some(PATIENCE)).unwrap().is_some());
        drain(self.done.as_fd()).unwrap();
        self.under_way = std::mem::take(&mut self.wanted);
        self.under_way
    }

    /// Waits until the flusher has begun.
    pub fn expect_begun(&self) {
        self.begun.recv_timeout(PATIENCE).expect("a flush begins");
    }

    pub fn expect_no_other(&self) {
        assert!(self.begun.try_recv().is_err(), "a flush that nobody has asked for");
    }
}
