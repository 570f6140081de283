//! What idle rings cost a forwarder, and what they cost the busy ones beside them:
//! `TMPDIR=/dev/shm cargo bench -p blockring --bench many_rings`.
//!
//! Two forwarders run, one of ten rings and one of a thousand. Their processor time and memory are
//! read while nothing happens. Then one item after the other is published in ten rings of each, in
//! rounds in turns; an item's time ends when the forwarder has freed it.
#![allow(missing_docs, clippy::unwrap_used)]

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};
use ring_test_support::RingFile;
use ring_test_support::backend::{Backend, Client, Word};
use shared_block_ring::format::Side;
use shared_block_ring::{FileDevice, MappedDevice, Producer, RingDevice};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Rings that are in use, of each forwarder.
const BUSY: usize = 10;

/// Rounds, in each of which both forwarders have their turn.
const ROUNDS: usize = 9;

/// Bytes of a ring's file.
const RING: usize = 32 << 10;

/// A ring that its test publishes in, and the test's view of the consumer's pointer.
struct Busy {
    producer: Producer<FileDevice>,
    client: Client,
    mapped: MappedDevice,
}

impl Busy {
    /// Publishes an item, and waits until it is freed. Returns how long that took.
    fn pass(&mut self) -> Duration {
        let start = Instant::now();
        let end = self.producer.push(&[7u8; 100][..]).unwrap();
        self.producer.advance(end).unwrap();
        self.client.ring();
        while self.mapped.peek_position(Side::Consumer) != Some(end.get()) {
            std::thread::yield_now();
        }
        start.elapsed()
    }
}

/// A running forwarder, and its rings.
struct Forwarder {
    process: Child,
    busy: Vec<Busy>,
    idle: Vec<Client>,
    _files: Vec<RingFile>,
    _folder: TempDir,
}

impl Forwarder {
    fn new(rings: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..rings).map(|_| RingFile::new(RING, 512)).collect();
        let backends: Vec<_> = files.iter().map(|file| Backend::new(file, Word::Guarded)).collect();
        for (number, file) in files.iter().enumerate() {
            let socket = folder.path().join(format!("{number}.out"));
            std::fs::rename(file.path.with_extension("socket"), socket).unwrap();
        }
        let folder_name = folder.path().display();
        let process = Command::new(env!("CARGO_BIN_EXE_blockring"))
            .args(["forward", &format!("unix:{folder_name}/*.out")])
            .args(["--to", &format!("file:{folder_name}/{{ring}}.log")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        // The forwarder opens them in an order of its own.
        let mut clients: Vec<_> = std::thread::scope(|scope| {
            let accepting: Vec<_> =
                backends.iter().map(|backend| scope.spawn(|| backend.accept())).collect();
            accepting.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let idle = clients.split_off(BUSY);
        let busy = clients.into_iter().zip(&files).map(|(client, file)| {
            let (producer, mapped) = (file.producer().unwrap(), file.open_mapped());
            Busy { producer, client, mapped }
        });
        let busy = busy.collect();
        Self { process, busy, idle, _files: files, _folder: folder }
    }

    /// Returns the median time of an item, of so many in each busy ring.
    fn round(&mut self, items: usize) -> Duration {
        let mut times: Vec<_> = (0..items)
            .flat_map(|_| self.busy.iter_mut().map(Busy::pass).collect::<Vec<_>>())
            .collect();
        times.sort_unstable();
        times[times.len() / 2]
    }

    /// Returns the ticks of a processor that the forwarder has used so far.
    fn ticks(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.process.id());
        let stat = std::fs::read_to_string(path).unwrap();
        // The fields behind the name in parentheses: user and system time are the 14th and 15th.
        let fields = stat.rsplit_once(") ").unwrap().1;
        fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Returns the forwarder's memory in MiB.
    fn memory(&self) -> u64 {
        let status = Path::new("/proc").join(self.process.id().to_string()).join("status");
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn main() {
    // `cargo test` runs every benchmark once.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (rings, idle, items) = if is_bench { (1000, 60, 200) } else { (50, 1, 2) };
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut forwarders = [BUSY, rings].map(Forwarder::new);
    for forwarder in &mut forwarders {
        forwarder.round(1);
    }
    let before = forwarders.each_ref().map(Forwarder::ticks);
    std::thread::sleep(Duration::from_secs(idle));
    let each_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    for (forwarder, before) in forwarders.iter().zip(before) {
        let rings = forwarder.busy.len() + forwarder.idle.len();
        let ticks = forwarder.ticks() - before;
        println!(
            "{rings:>5} idle rings: {ticks} of {} ticks of a processor in {idle} s, {} MiB of memory",
            idle * each_second.unsigned_abs(),
            forwarder.memory()
        );
    }
    let mut medians = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for (forwarder, medians) in forwarders.iter_mut().zip(&mut medians) {
            medians.push(forwarder.round(items));
        }
    }
    let medians = medians.map(|mut medians| {
        medians.sort_unstable();
        medians[ROUNDS / 2]
    });
    for (rings, median) in [BUSY, rings].into_iter().zip(medians) {
        let ratio = median.as_secs_f64() / medians[0].as_secs_f64();
        println!(
            "{rings:>5} rings, {BUSY} in use: an item takes {:>7.1} us, {ratio:.2}",
            median.as_secs_f64() * 1e6
        );
    }
}
