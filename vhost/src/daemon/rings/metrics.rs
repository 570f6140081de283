//! The metrics of all rings of the data process, as one exposition.

use crate::daemon::metrics::{Observed, report_build};
use ring_metrics::catalogue::{QUEUE_THREADS, RINGS};
use ring_metrics::{Bound, Scrape, Server, Source};
use shared_block_ring::handover::receive;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Rings that the answer for `/healthz` names, at most. Their names have at most 200 characters.
const MOST_NAMED: usize = 8;

/// A ring whose metrics are offered, until it is taken out. The lock is held while the ring is
/// read.
type Entry = Arc<Mutex<Option<Observed>>>;

/// The rings whose metrics are offered, by their names. A clone has the same ones.
///
/// The lock of the map is held for moments: no ring is read meanwhile, and so nobody who adds or
/// removes one waits for the disk of another.
#[derive(Clone, Default)]
struct Observatory(Arc<Mutex<BTreeMap<String, Entry>>>);

/// The place of a ring among the [`Metrics`]. When this is dropped, the ring is read no more.
pub struct Registration {
    rings: Observatory,
    name: String,
    entry: Entry,
}

impl Observatory {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `visit` for one ring after the other, in the order of their names. Rings that come or
    /// go meanwhile may be left out.
    fn visit(&self, mut visit: impl FnMut(&mut Observed)) {
        let entries: Vec<_> = self.lock().values().map(Arc::clone).collect();
        for entry in entries {
            if let Some(observed) = &mut *open(&entry) {
                visit(observed);
            }
        }
    }
}

fn open(entry: &Entry) -> MutexGuard<'_, Option<Observed>> {
    entry.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut rings = self.rings.lock();
        // Another ring may have the name by now.
        if rings.get(&self.name).is_some_and(|entry| Arc::ptr_eq(entry, &self.entry)) {
            rings.remove(&self.name);
        }
        drop(rings);
        // A scrape may still have the entry: the reading that is under way is waited for, and there
        // is no other one.
        open(&self.entry).take();
    }
}

/// The metrics of the data process.
pub struct Metrics {
    rings: Observatory,
    /// The sockets, until scrapes are answered.
    bound: Vec<Bound>,
    server: Option<Server>,
}

impl Metrics {
    /// Takes the sockets that follow [`Begin`](super::messages::Begin); `None` if there are none.
    /// The sandbox would not let the process look at them.
    ///
    /// # Errors
    ///
    /// They do not come, or are no listening sockets.
    pub fn receive(orders: BorrowedFd<'_>, count: usize) -> io::Result<Option<Self>> {
        if count == 0 {
            return Ok(None);
        }
        let bound = |_| {
            let (name, descriptors) = receive::<String>(orders)?;
            let socket = <[OwnedFd; 1]>::try_from(descriptors);
            let [socket] = socket.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            Bound::passed(socket, name)
        };
        let bound = (0..count).map(bound).collect::<io::Result<_>>()?;
        Ok(Some(Self { rings: Observatory::default(), bound, server: None }))
    }

    /// Starts to answer scrapes, for a process with so many `threads` that drive queues.
    ///
    /// # Errors
    ///
    /// No thread can be made.
    pub fn start(&mut self, threads: usize) -> io::Result<()> {
        let source = Exposition { rings: self.rings.clone(), threads };
        self.server = Some(Server::start(std::mem::take(&mut self.bound), source)?);
        Ok(())
    }

    /// Offers the metrics of a ring that is served, in the place of an earlier one with this name.
    pub fn add(&self, observed: Observed) -> Registration {
        let name = observed.name().to_owned();
        let entry = Arc::new(Mutex::new(Some(observed)));
        self.rings.lock().insert(name.clone(), Arc::clone(&entry));
        Registration { rings: self.rings.clone(), name, entry }
    }
}

/// What scrapes are answered from.
struct Exposition {
    rings: Observatory,
    /// Threads that drive queues.
    threads: usize,
}

impl Source for Exposition {
    fn scrape(&mut self, scrape: &mut Scrape) {
        report_build(scrape);
        let mut count = 0;
        self.rings.visit(|observed| {
            count += 1;
            observed.report(scrape);
        });
        scrape.whole(&RINGS, &[], count);
        scrape.whole(&QUEUE_THREADS, &[], self.threads as u64);
    }

    fn health(&mut self) -> Result<String, String> {
        let (mut named, mut more) = (Vec::new(), 0);
        self.rings.visit(|observed| {
            if let Some(fault) = observed.fault() {
                if named.len() < MOST_NAMED {
                    named.push(format!("{}: {}", observed.name(), fault.words()));
                } else {
                    more += 1;
                }
            }
        });
        if named.is_empty() {
            return Ok("ok".to_owned());
        }
        if more > 0 {
            named.push(format!("and {more} more"));
        }
        Err(named.join("; "))
    }
}
