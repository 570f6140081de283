//! The consumer on the host during attacks: it reads items in place, again and again.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use qemu_tests::load::item::{Recipe, hash};
use qemu_tests::redteam::{HELD, honest_item, stream};
use shared_block_ring::format::{Header, PointerSector, Side};
use shared_block_ring::handover::Role;
use shared_block_ring::{BlockDevice, Consumer, Durability, Position, UnixDevice};
use std::io::IoSliceMut;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_micros(200);

/// A thread that checks that published items are the honest producer's, in order, and that they do
/// not change until they are consumed.
pub struct Witness {
    stop: Arc<AtomicBool>,
    reached: Arc<Seen>,
    thread: JoinHandle<Tale>,
}

/// Progress of the witness.
#[derive(Default)]
struct Seen {
    items: AtomicU32,
    /// End of the last item seen.
    end: AtomicU64,
}

/// Report of the witness.
#[derive(Debug, Default)]
pub struct Tale {
    /// Number of items seen, each honest and in its place.
    pub items: u32,
    /// Number of items that were read again and had not changed.
    pub looks: u64,
}

/// An item at its first reading.
struct Sighted {
    from: Position,
    to: Position,
    hash: u64,
}

impl Witness {
    pub fn start(socket: PathBuf, seed: u64) -> Self {
        let (stop, reached) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let (order, counted) = (Arc::clone(&stop), Arc::clone(&reached));
        let thread = std::thread::spawn(move || {
            let device = UnixDevice::connect(&socket, Role::Consumer).unwrap();
            // SAFETY: the backend guards the ring, which is what is tried here; nothing else on
            // this host writes to its file.
            let device = unsafe { device.lend_in_place() };
            let mut consumer = Consumer::attach(device, "redteam", "witness").unwrap();
            consumer.set_durability(Durability::PageCache);
            let mut found = Tale::default();
            let mut held = VecDeque::new();
            let mut end = consumer.position();
            loop {
                // In this order: items that were published before the stop are seen.
                let last = order.load(Ordering::Acquire);
                let published = producer(consumer.device());
                while end < published {
                    let sighted = sight(consumer.device(), end, published, seed, found.items);
                    end = sighted.to;
                    held.push_back(sighted);
                    found.items += 1;
                }
                for sighted in &held {
                    again(consumer.device(), sighted);
                    found.looks += 1;
                }
                counted.items.store(found.items, Ordering::Relaxed);
                counted.end.store(end.get(), Ordering::Release);
                let keep = if last { 0 } else { HELD };
                while held.len() > keep {
                    let sighted = held.pop_front().unwrap();
                    free(&mut consumer, &sighted);
                }
                if last {
                    return found;
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self { stop, reached, thread }
    }

    /// Returns whether all checks have passed so far.
    pub fn is_well(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Returns the number of items seen so far, and the end of the last one.
    pub fn seen(&self) -> (u32, u64) {
        let end = self.reached.end.load(Ordering::Acquire);
        (self.reached.items.load(Ordering::Relaxed), end)
    }

    /// Frees all items that are left.
    pub fn finish(self) -> Tale {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("what the host has seen is honest")
    }
}

fn producer(device: &UnixDevice) -> Position {
    let mut sector = vec![0; device.geometry().sector_size().bytes()];
    device.read(Side::Producer.sector(), &mut [IoSliceMut::new(&mut sector)]).unwrap();
    PointerSector::decode(Side::Producer, &sector).unwrap().position
}

/// The item at `from` must be the one with this number.
fn sight(
    device: &UnixDevice,
    from: Position,
    published: Position,
    seed: u64,
    number: u32,
) -> Sighted {
    let header = stream(device, from, from.checked_add(4).unwrap()).unwrap();
    let header = Header::decode(from, header[..].try_into().unwrap(), published)
        .unwrap_or_else(|e| panic!("item {number}: {e}"));
    let bytes = stream(device, from, header.next).unwrap();
    let payload = &bytes[4..4 + header.length as usize];
    let honest = payload == honest_item(Recipe { seed }, number);
    assert!(honest, "item {number} at {from} is none of the honest producer's");
    Sighted { from, to: header.next, hash: hash(&bytes) }
}

fn again(device: &UnixDevice, sighted: &Sighted) {
    let bytes = stream(device, sighted.from, sighted.to).unwrap();
    assert_eq!(hash(&bytes), sighted.hash, "the item at {} has changed", sighted.from);
}

/// Reads the items again, in place and by the library, and frees them.
fn free(consumer: &mut Consumer<UnixDevice>, sighted: &Sighted) {
    let item = consumer.pop(sighted.from).unwrap();
    assert_eq!(item.next, sighted.to);
    let popped = hash(item.bytes);
    let bytes = stream(consumer.device(), sighted.from, sighted.to).unwrap();
    assert_eq!(hash(&bytes), sighted.hash, "the item at {} has changed", sighted.from);
    let header = Header::decode(sighted.from, bytes[..4].try_into().unwrap(), sighted.to).unwrap();
    assert_eq!(popped, hash(&bytes[4..4 + header.length as usize]));
    consumer.advance(sighted.to).unwrap();
}
