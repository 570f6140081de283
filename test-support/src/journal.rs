//! A journal on a simulated disk, and callbacks for it.

use crate::process::PATIENCE;
use ring_simulation::{Disk, DiskDevice};
use shared_block_ring::format::SectorSize;
use shared_block_ring::{Aside, Journal, JournalOptions};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A time that no test waits for to its end.
pub const NEVER: Duration = Duration::from_secs(3600);

/// The entries that were performed, in order.
pub type Done = Arc<Mutex<Vec<String>>>;

pub fn options() -> JournalOptions {
    let mut options = JournalOptions::new(|aside: &Aside| panic!("{aside:?}"));
    options.flush_interval = Duration::from_millis(5);
    options.retry_interval = Duration::from_millis(5);
    options
}

/// Returns a `perform` that adds its entries to `done`.
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

/// Runs `what` on a thread of its own, and panics where it hangs.
pub fn in_time<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = channel();
    thread::spawn(move || done.send(what()));
    wait.recv_timeout(PATIENCE).unwrap()
}

/// The other end of a held `perform`: the batches that it was given, and the answers that it waits
/// for.
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
