//! Cost of encoding and checking the format's bytes: `cargo bench --bench format`.
#![allow(missing_docs, clippy::unwrap_used)]

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use shared_block_ring::Position;
use shared_block_ring::format::{
    Header, PointerSector, Side, Slot, Tally, find_slot, framed_len, put_slot,
};
use uuid::Uuid;

const RING: Uuid = Uuid::from_u128(7);

fn main() {
    divan::main();
}

fn at(bytes: u64) -> Position {
    Position::new(bytes).unwrap()
}

fn pointer() -> PointerSector {
    PointerSector { position: at(1 << 30), flag: false }
}

fn slot() -> Slot {
    let tally = Tally { items: 1 << 24, since_base: false, base: Position::ZERO, crc: 7 };
    Slot { position: pointer().position, tally, time_ns: 1 << 60 }
}

/// Makes a pointer sector as a producer writes it: text, slot, position, flag.
fn write(sector: &mut [u8]) {
    put_slot(RING, sector, at(0), &slot());
    pointer().encode(Side::Producer, Some(("logs", "web-1")), sector);
}

#[divan::bench]
fn pointer_encode(bencher: Bencher<'_, '_>) {
    let mut sector = [0; 512];
    bencher.bench_local(|| write(black_box(&mut sector)));
}

#[divan::bench]
fn pointer_decode(bencher: Bencher<'_, '_>) {
    let mut sector = [0; 512];
    write(&mut sector);
    bencher.bench(|| {
        let sector = black_box(&sector);
        let pointer = PointerSector::decode(Side::Producer, sector).unwrap();
        find_slot(RING, Side::Producer, sector, pointer.position).unwrap().unwrap()
    });
}

/// Walks from header to header of a stream of 64-byte items.
#[divan::bench]
fn item_framing(bencher: Bencher<'_, '_>) {
    const ITEMS: u64 = 1000;
    let header = 64_u32.to_le_bytes();
    let end = at(ITEMS * framed_len(64));
    bencher.counter(divan::counter::ItemsCount::new(ITEMS)).bench(|| {
        let mut here = Position::ZERO;
        while here < end {
            here = Header::decode(here, black_box(header), end).unwrap().next;
        }
        here
    });
}

#[divan::bench(args = [64, 4096, 65536])]
fn checksum(bencher: Bencher<'_, '_>, bytes: usize) {
    let (bytes, tally) = (vec![0x5a; bytes], Tally::from_here(Position::ZERO));
    bencher.counter(BytesCount::of_slice(&bytes)).bench(|| tally.extend(1, black_box(&bytes)));
}
