//! What other queues cost the one in use: `cargo bench -p vhost-device-blockring --bench queues`.
//!
//! One thread is the guest: it offers a write of 512 bytes in the first queue, kicks it, and waits
//! for the used index. With each write it also signals one other event, in turn: one that nobody
//! waits for, or the kick of another queue. So its own work is the same in all rows.
#![allow(missing_docs, clippy::unwrap_used)]

use nix::unistd::write;
use ring_test_support::executor_disk::{Disk, open};
use ring_test_support::worker_disk::{Payload, Running};
use shared_block_ring::device::bell::new_event;
use shared_block_ring::format::Side;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;
use vhost_device_blockring::data_path::polling::Polling;
use vhost_device_blockring::data_path::queue_set::MAX_QUEUES;

/// Rounds, in each of which every row has its turn.
const ROUNDS: usize = 9;

/// Sectors: a data area of 128 KiB.
const SECTORS: usize = 3 + 256;

fn signal(event: &OwnedFd) {
    write(event, &1u64.to_ne_bytes()).unwrap();
}

/// A guest with so many running queues.
struct Guest {
    running: Running,
    /// The other events, of which one is signalled with each write.
    others: Vec<OwnedFd>,
}

impl Guest {
    fn new(polling: Polling, queues: usize, storm: bool) -> Self {
        let disk = Disk::with(Side::Producer, false, SECTORS, |_| ());
        let flusher =
            Flusher::start(&FlushPool::new(), open(&disk.path), Arc::clone(&disk.counters))
                .unwrap();
        let running = Running::start(disk, queues, flusher, polling);
        let others = if storm {
            (1..queues).map(|queue| running.kick(queue).try_clone().unwrap()).collect()
        } else {
            (1..MAX_QUEUES).map(|_| new_event().unwrap()).collect()
        };
        Self { running, others }
    }

    /// Returns the time of a write, as the mean of `times`.
    fn writes(&self, times: usize) -> Duration {
        let start = Instant::now();
        for number in 0..times {
            signal(&self.others[number % self.others.len()]);
            let place = self.running.put(0, 0, 3, Payload::Write(&[7; 512]));
            signal(self.running.kick(0));
            while self.running.status(place).is_none() {
                std::hint::spin_loop();
            }
        }
        start.elapsed() / u32::try_from(times).unwrap()
    }
}

fn main() {
    // `cargo test` runs every benchmark once.
    let times = if std::env::args().any(|argument| argument == "--bench") { 5000 } else { 50 };
    for (name, polling) in [
        ("never polling", Polling::For(Duration::ZERO)),
        ("polling for 50 us", Polling::For(Duration::from_micros(50))),
        ("always polling", Polling::Always),
    ] {
        let rows = [
            ("one queue", 1, false),
            ("64 queues, one in use", MAX_QUEUES, false),
            ("64 queues, 63 kicked in a storm", MAX_QUEUES, true),
        ];
        let mut figures = rows.each_ref().map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for ((_, queues, storm), figures) in rows.iter().zip(&mut figures) {
                // One at a time: a worker that polls takes a processor.
                let guest = Guest::new(polling, *queues, *storm);
                guest.writes(times / 10);
                figures.push(guest.writes(times));
            }
        }
        let medians = figures.map(|mut figures| {
            figures.sort_unstable();
            figures[ROUNDS / 2]
        });
        for ((row, ..), median) in rows.iter().zip(medians) {
            let ratio = median.as_secs_f64() / medians[0].as_secs_f64();
            println!("{name:<18} {row:<32} {:>8.2} us {ratio:>6.2}", median.as_secs_f64() * 1e6);
        }
    }
}
