//! What it costs to judge a write: `cargo bench -p vhost-device-blockring --bench guard`.
#![allow(missing_docs, clippy::unwrap_used)]

use divan::{Bencher, black_box};
use ring_test_support::executor_disk::Disk;
use ring_test_support::guard_write::{Write, index};
use shared_block_ring::Producer;
use shared_block_ring::format::Side;
use vhost_device_blockring::daemon::ring::guest_side;
use vhost_device_blockring::data_path::guard::{Grant, Guard, GuestState, Judgement, Scratch};

/// Sectors: a data area of 128 KiB.
const SECTORS: usize = 3 + 256;
const SECTOR: usize = 512;

/// More items than are looked at here.
const BUDGET: usize = 1000;

fn main() {
    divan::main();
}

/// A ring, and a write to it that there is nothing to say against.
struct Case {
    guard: Guard,
    guest: GuestState,
    region: Vec<u8>,
    first: usize,
    bytes: Vec<u8>,
}

impl Case {
    /// Free sectors are written.
    fn data(bytes: usize) -> Self {
        let disk = Disk::with(Side::Producer, false, SECTORS, |_| ());
        Self::of(&disk, disk.bytes(), 3, vec![7; bytes])
    }

    /// So many items of 64 bytes, which are there already, become visible.
    fn pointer(items: usize) -> Self {
        let disk = Disk::with(Side::Producer, false, SECTORS, |_| ());
        let mut producer = Producer::attach(disk.outside()(), "queue", "guest").unwrap();
        let end = producer.push_batch(&vec![[7; 64]; items]).unwrap();
        producer.flush().unwrap();
        let mut case = Self::of(&disk, disk.bytes(), 1, Vec::new());
        producer.advance(end).unwrap();
        case.bytes = disk.bytes()[SECTOR..2 * SECTOR].to_vec();
        case
    }

    fn of(disk: &Disk, region: Vec<u8>, first: usize, bytes: Vec<u8>) -> Self {
        let (uuid, guest) = guest_side(&disk.outside()(), Side::Producer).unwrap();
        let guard = Guard::new(disk.geometry, Side::Producer, uuid);
        Self { guard, guest, region, first, bytes }
    }

    fn judge(&self, scratch: Box<Scratch>) -> (Grant, Judgement) {
        let Self { region, bytes, .. } = self;
        let range = self.guard.range(self.first as u64, bytes.len() as u64).unwrap();
        let start = index(range.start);
        let write = Write { region, sector_size: SECTOR, start, bytes, may_repeat: false };
        let mut judgement = self.guard.begin(range, scratch);
        let grant = self.guard.judge(self.guest, &mut judgement, BUDGET, &write).unwrap();
        (grant.expect("no more items than the budget"), judgement)
    }

    fn bench(&self, bencher: Bencher<'_, '_>) {
        let mut scratch = Box::<Scratch>::default();
        bencher.bench_local(|| {
            let (grant, judgement) = black_box(self).judge(std::mem::take(&mut scratch));
            black_box(grant);
            scratch = judgement.into_scratch();
        });
    }
}

#[divan::bench(args = [512, 4096])]
fn data(bencher: Bencher<'_, '_>, bytes: usize) {
    Case::data(bytes).bench(bencher);
}

#[divan::bench(args = [1, 64])]
fn pointer(bencher: Bencher<'_, '_>, items: usize) {
    Case::pointer(items).bench(bencher);
}
