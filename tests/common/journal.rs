//! What the tests of the journal start from.

use ring_simulation::{Disk, DiskDevice};
use shared_block_ring::format::SectorSize;
use shared_block_ring::{Aside, Journal, JournalOptions};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for anything that does happen.
pub const SOON: Duration = Duration::from_secs(30);

/// Longer than any test waits.
pub const NEVER: Duration = Duration::from_secs(3600);

/// What was performed.
pub type Done = Arc<Mutex<Vec<String>>>;

pub fn options() -> JournalOptions {
    let mut options = JournalOptions::new(|aside: &Aside| panic!("{aside:?}"));
    options.flush_interval = Duration::from_millis(5);
    options.retry_interval = Duration::from_millis(5);
    options
}

/// A `perform` that keeps what it is given.
pub fn keeping(done: &Done) -> impl FnMut(&[String]) -> Result<(), String> + Send + 'static {
    let done = Arc::clone(done);
    move |entries| {
        done.lock().unwrap().extend_from_slice(entries);
        Ok(())
    }
}

pub fn entry(number: usize) -> String {
    format!("entry {number}")
}

pub fn disk(sectors: u64) -> Disk {
    Disk::new(SectorSize::DEFAULT, sectors)
}

pub fn start(
    disk: &Disk,
    options: JournalOptions,
    perform: impl FnMut(&[String]) -> Result<(), String> + Send + 'static,
) -> Journal<String> {
    Journal::start(DiskDevice::new(disk), options, perform).unwrap()
}

/// Fails where `what` hangs.
pub fn in_time<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = channel();
    thread::spawn(move || done.send(what()));
    wait.recv_timeout(SOON).unwrap()
}

pub fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < SOON);
        thread::yield_now();
    }
}

/// A `perform` that says when it begins, and then waits for what it is to answer.
pub type Held = (Receiver<Vec<String>>, Sender<Result<(), String>>);

pub fn held() -> (Held, impl FnMut(&[String]) -> Result<(), String> + Send + 'static) {
    let (say, begun) = channel();
    let (answer, wait) = channel();
    let perform = move |entries: &[String]| {
        say.send(entries.to_vec()).map_err(|e| e.to_string())?;
        wait.recv().map_err(|e| e.to_string())?
    };
    ((begun, answer), perform)
}

pub fn large() -> String {
    "x".repeat(300)
}
