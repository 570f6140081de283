//! Items from a producer to a consumer: through our backend, and through a file.

use crate::backend::{Backend, consumer_socket};
use crate::bars::Bar;
use crate::ends::{Ends, Passed};
use crate::error::{Result, doing};
use crate::figures::{Beside, Distribution, Items, Load};
use crate::front::{REGION, START};
use crate::machine::{Streaming, clock_cost, median};
use crate::processes::two_processes;
use crate::requests::{Plan, Runner, WARM_UP};
use crate::rounds::{Counted, Rounds, beside_line};
use crate::rows::PEER_ROW;
use shared_block_ring::handover::Role;
use shared_block_ring::{
    Consumer, CreateOptions, Durability, OpenOptions, Producer, UnixDevice, create, make_file,
};
use std::path::{Path, PathBuf};
use virtio_blk_driver::VirtioDevice;

/// Bytes of an item, and items in a batch.
pub const SIZES: [usize; 3] = [64, 1 << 10, 64 << 10];
pub const BATCHES: [usize; 2] = [1, 64];

/// Bytes of the ring: more than the front end writes at the start of a backend.
pub const RING: u64 = START + REGION;

/// Our daemon and its sockets.
pub struct Served {
    backend: Backend,
    consumer: PathBuf,
}

/// Figures of the machine and the peer, measured in turns with items.
struct Limits<'a> {
    peer: Runner<'a>,
    copy: Streaming,
    clock: f64,
}

/// Figures of one round.
struct Sample {
    ours: Passed,
    peer: f64,
    copy: f64,
    line: f64,
}

/// Returns the bars of items that one thread pushes and pops.
fn wanted(load: Load) -> &'static [Bar] {
    match load {
        Load { bytes: 64, batch: 64, checksums: true } => &[Bar::Peer(80.0)],
        Load { bytes: 64, batch: 64, checksums: false } => &[Bar::Peer(120.0)],
        Load { bytes: 64, batch: 1, .. } => &[Bar::Lines(4.0)],
        Load { bytes: 65_536, checksums: true, .. } => &[Bar::Copy(0.4)],
        Load { bytes: 65_536, checksums: false, .. } => &[Bar::Copy(0.7)],
        Load { .. } => &[],
    }
}

/// Measures every way, size and batch.
pub fn all(plan: &Plan, dir: &Path) -> Result<Vec<Items>> {
    let dir = &dir.join("items");
    std::fs::create_dir(dir).map_err(doing("making a folder"))?;
    let peer = Backend::peer(RING, dir, plan.processors)?;
    let runner = Runner::new(&peer, PEER_ROW)?;
    let mut limits = Limits { peer: runner, copy: Streaming::new(), clock: clock_cost() };
    let mut found = Vec::new();
    for checksums in [true, false] {
        let served = Served::start(plan, dir, checksums)?;
        for bytes in SIZES {
            for batch in BATCHES {
                let load = Load { bytes, batch, checksums };
                found.push(one_thread(&served, &mut limits, plan, load, Look::InPlace)?);
                if checksums {
                    found.push(one_thread(&served, &mut limits, plan, load, Look::Copy)?);
                    let two = || two_processes(&served, dir, plan, load);
                    found.push(served.running(two)?);
                }
            }
        }
    }
    found.push(file(dir, plan.rounds, limits.clock)?);
    Ok(found)
}

impl Served {
    /// Without checksums: a ring without identity, and so without slots.
    fn start(plan: &Plan, dir: &Path, checksums: bool) -> Result<Self> {
        let name = if checksums { "ring" } else { "plain" };
        if !checksums {
            let path = dir.join(format!("{name}.ring"));
            make_file(&path, RING).map_err(doing("making a ring"))?;
            create(&OpenOptions::default().open(&path)?, CreateOptions::new().plain(true))?;
        }
        let Plan { program, arguments, processors, .. } = plan;
        let backend = Backend::ours(name, program, arguments, RING, dir, *processors)?;
        Ok(Self { backend, consumer: consumer_socket(dir, name) })
    }

    /// Runs the daemon only during `action`.
    pub fn running<T>(&self, action: impl FnOnce() -> Result<T>) -> Result<T> {
        self.backend.resume()?;
        let outcome = action()?;
        self.backend.halt()?;
        Ok(outcome)
    }

    /// Attaches the producer over a front end.
    pub fn producer(&self) -> Result<Producer<VirtioDevice>> {
        let device = VirtioDevice::connect(self.backend.socket(), None)?;
        let mut producer = Producer::attach(device, "bench", "producer")?;
        producer.set_durability(Durability::PageCache);
        Ok(producer)
    }

    /// Returns the hand-over socket.
    pub fn consumer(&self) -> &Path {
        &self.consumer
    }
}

/// How a consumer looks at items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Where they lie.
    InPlace,
    /// In a copy, as the library does unless it is told otherwise.
    Copy,
}

/// The consumer that has the ring by the hand-over of a backend of this program's.
pub fn consumer(socket: &Path, look: Look) -> Result<Consumer<UnixDevice>> {
    let mut device = UnixDevice::connect(socket, Role::Consumer)?;
    if look == Look::InPlace {
        // SAFETY: this program has started the backend, with its guard on, over a file that it has
        // made for it and nobody else writes.
        device = unsafe { device.lend_in_place() };
    }
    let mut consumer = Consumer::attach(device, "bench", "consumer")?;
    consumer.set_durability(Durability::PageCache);
    Ok(consumer)
}

/// Measures both ends in this thread.
fn one_thread(
    served: &Served,
    limits: &mut Limits<'_>,
    plan: &Plan,
    load: Load,
    look: Look,
) -> Result<Items> {
    let Plan { rounds, processors, .. } = *plan;
    let mut ends = served.running(|| {
        let (producer, consumer) = (served.producer()?, consumer(served.consumer(), look)?);
        Ok(Ends { producer, consumer })
    })?;
    let payload = vec![7u8; load.bytes];
    let items = vec![&payload[..]; load.batch];
    let samples = rounds.each(|| {
        let round = || {
            let copy = limits.copy.rate();
            let ours = served.running(|| {
                ends.round(&items, Rounds { time: WARM_UP, ..rounds }, limits.clock)?;
                ends.round(&items, rounds, limits.clock)
            })?;
            let peer = limits.peer.round(rounds.time, limits.clock)?.requests;
            Ok(Sample { ours, peer, copy, line: f64::NAN })
        };
        let (sample, line) = beside_line(processors, round)?;
        Ok(Sample { line, ..sample })
    })?;
    served.running(|| {
        drop(ends);
        Ok(())
    })?;
    Ok(outcome(load, look, &samples))
}

fn outcome(load: Load, look: Look, samples: &[Sample]) -> Items {
    let counted = Counted::of(samples, |sample| sample.line);
    let moved = |sample: &Sample| sample.ours.rate * load.bytes as f64;
    let beside = Beside {
        line: counted.median(|sample| sample.line),
        near: counted.near,
        peer: counted.median(|sample| sample.peer),
        times_peer: counted.median(|sample| sample.ours.rate / sample.peer),
        visible: None,
        copy: counted.median(|sample| sample.copy),
        of_copy: counted.median(|sample| moved(sample) / sample.copy),
    };
    let single = |of: fn(&Passed) -> &Vec<f64>| {
        let times = counted.rounds.iter().flat_map(|sample| of(&sample.ours));
        (load.batch == 1).then(|| Distribution::of(&mut times.copied().collect::<Vec<_>>()))
    };
    let (visible, latency) = (single(|ours| &ours.visible), single(|ours| &ours.times));
    let beside = Beside { visible: visible.map(|times| times.p50()), ..beside };
    let rate = counted.median(|sample| sample.ours.rate);
    let (way, bars) = match look {
        Look::InPlace => ("one thread", wanted(load)),
        Look::Copy => ("one thread, copies", &[][..]),
    };
    Items { way, load, rate, latency, beside: Some(beside), bars }
}

/// Measures a ring in a file, without a backend.
fn file(dir: &Path, rounds: Rounds, clock: f64) -> Result<Items> {
    let load = Load { bytes: 64, batch: 64, checksums: true };
    let mut ends = Ends::in_file(&dir.join("file.ring"), RING, Durability::PageCache)?;
    let payload = vec![7u8; load.bytes];
    let items = vec![&payload[..]; load.batch];
    let mut rates = rounds.each(|| Ok(ends.round(&items, rounds, clock)?.rate))?;
    let (rate, bars) = (median(&mut rates), &[Bar::Rate(5.8e6)]);
    Ok(Items { way: "a file", load, rate, latency: None, beside: None, bars })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a round with that many items per second beside a peer and a copy; each item was
    /// visible after `lines` lines of 100 ns.
    fn outcome_of(load: Load, rate: f64, lines: f64) -> Items {
        let ours = Passed { rate, visible: vec![lines * 100.0], times: vec![9e9] };
        let sample = Sample { ours, peer: 1e5, copy: 1e10, line: 100.0 };
        outcome(load, Look::InPlace, &[sample])
    }

    #[test]
    fn items_are_compared_with_figures_of_the_same_rounds() {
        let load = |bytes, batch, checksums| Load { bytes, batch, checksums };
        let cases = [
            (load(64, 64, true), 8.0e6, 9.0, ">= 80 x qsd: yes"),
            (load(64, 64, true), 7.9e6, 1.0, ">= 80 x qsd: NO"),
            (load(64, 64, false), 1.2e7, 9.0, ">= 120 x qsd: yes"),
            (load(64, 64, false), 1.1e7, 1.0, ">= 120 x qsd: NO"),
            (load(64, 1, true), 1.0, 4.0, "p50 <= 4 L: yes"),
            (load(64, 1, false), 1e9, 4.1, "p50 <= 4 L: NO"),
            (load(65_536, 64, true), 6.2e4, 1.0, ">= 40 % of copy: yes"),
            (load(65_536, 1, true), 6.1e4, 1.0, ">= 40 % of copy: NO"),
            (load(65_536, 1, false), 1.1e5, 1.0, ">= 70 % of copy: yes"),
            (load(65_536, 64, false), 1.0e5, 1.0, ">= 70 % of copy: NO"),
            (load(1024, 1, true), 1.0, 1.0, ""),
        ];
        for (load, rate, lines, said) in cases {
            assert_eq!(outcome_of(load, rate, lines).wanted(), said, "{load:?}");
        }
    }
}
