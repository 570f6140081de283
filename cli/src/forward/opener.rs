//! Opening of rings on threads: a backend that does not answer delays no other ring.

use super::super::address::{Address, Device};
use super::super::failure::Failure;
use super::super::produce::client;
use nix::sys::eventfd::EventFd;
use ring_program::Stop;
use shared_block_ring::handover::Role;
use shared_block_ring::{Consumer, DebugInfo};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, Scope};
use std::time::Duration;

/// Rings that are opened at the same time.
const THREADS: usize = 8;

/// The longest wait for the answer of a backend, after which its ring's turn is over for a while.
const PATIENCE: Duration = Duration::from_secs(2);

/// Stack of a thread in bytes: opening a ring takes little.
const STACK: usize = 256 << 10;

/// A ring that was opened.
pub type Open = Box<(Consumer<Device>, DebugInfo)>;

/// The outcome of an opening, with the number that it was asked for by.
pub type Outcome = (u64, Result<Open, Failure>);

pub struct Opener<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    stop: &'env Stop,
    waiting: VecDeque<(u64, Address)>,
    running: usize,
    outcomes: (Sender<Outcome>, Receiver<Outcome>),
    wake: Arc<EventFd>,
}

impl<'scope, 'env> Opener<'scope, 'env> {
    /// Makes an opener that signals `wake` when there is an outcome.
    pub fn new(scope: &'scope Scope<'scope, 'env>, stop: &'env Stop, wake: Arc<EventFd>) -> Self {
        Self { scope, stop, waiting: VecDeque::new(), running: 0, outcomes: channel(), wake }
    }

    /// Opens a ring some time later. Nothing waits.
    pub fn open(&mut self, number: u64, address: Address) {
        self.waiting.push_back((number, address));
        self.start();
    }

    fn start(&mut self) {
        while self.running < THREADS
            && let Some((number, address)) = self.waiting.pop_front()
        {
            let (stop, outcomes) = (self.stop, self.outcomes.0.clone());
            let wake = Arc::clone(&self.wake);
            let work = move || {
                let outcome = open(&address, stop);
                // The receiver outlives this thread's use, or nobody asks any more.
                let _ = outcomes.send((number, outcome));
                let _ = wake.write(1);
            };
            let thread = Builder::new().name("open".to_owned()).stack_size(STACK);
            if let Err(e) = thread.spawn_scoped(self.scope, work) {
                let what = "cannot start a thread (a limit on processes or on memory?)";
                let _ = self.outcomes.0.send((number, Err(Failure::io(what)(e))));
                let _ = self.wake.write(1);
                return;
            }
            self.running += 1;
        }
    }

    /// Returns an outcome, if there is one.
    pub fn take(&mut self) -> Option<Outcome> {
        let outcome = self.outcomes.1.try_recv().ok()?;
        self.running = self.running.saturating_sub(1);
        self.start();
        Some(outcome)
    }
}

fn open(address: &Address, stop: &Stop) -> Result<Open, Failure> {
    let device = address.open(Role::Consumer, stop, Some(PATIENCE))?;
    let consumer =
        Consumer::attach(device, "blockring", &client()).map_err(Failure::about(address.name()))?;
    let info = consumer.debug_info().map_err(Failure::about(address.name()))?;
    Ok(Box::new((consumer, info)))
}
