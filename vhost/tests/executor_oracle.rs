//! The executor, with a mapped region and guest memory, compared with the oracle that `guard.rs`
//! compares the guard alone with.
#![allow(clippy::unwrap_used)]

use arbitrary::{Arbitrary, Unstructured};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use ring_simulation::oracle::states::{Shape, UUID, random_ring, ring};
use ring_simulation::oracle::{Ring, UNIT, writes};
use ring_simulation::requests::{Backend, Sequence};
use ring_test_support::executor_disk::{Disk, answer};
use shared_block_ring::format::{FormatError, Side};
use shared_block_ring::{Error, Producer, check};
use std::path::Path;
use vhost_device_blockring::data_path::request_state::Answer;

/// States of a ring; about two hundred writes are tried on each.
const STATES: usize = 600;

#[test]
fn executor_decides_each_write_as_the_oracle() {
    let seed = 7;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut tried = (0, 0);
    for state in 0..STATES {
        let (shape, ring) = random_ring(&mut random, state);
        let mut guest = Disk::of(&ring);
        writes::all(&ring, &mut |first, bytes| {
            let place = format!("seed {seed}, state {state}, sector {first}, {shape:?}");
            let found = Backend::write(&mut guest, first as u64, bytes);
            match ring.judge(first, bytes) {
                Ok((after, _)) => {
                    assert_eq!(found, Ok(()), "{place}");
                    assert!(guest.bytes() == after, "{place}");
                    tried.0 += 1;
                    if after != ring.bytes {
                        guest = Disk::of(&ring);
                    }
                }
                Err(expected) => {
                    assert_eq!(found, Err(expected), "{place}");
                    assert!(guest.bytes() == ring.bytes, "{place}");
                    tried.1 += 1;
                }
            }
        });
    }
    println!("{} writes carried out, {} refused", tried.0, tried.1);
    assert!(tried.0 > 10_000 && tried.1 > 50_000);
}

fn sequence(input: &[u8]) -> (u64, u64) {
    let sequence = Sequence::arbitrary(&mut Unstructured::new(input)).unwrap();
    sequence.judge(&mut Disk::of(&sequence.ring()))
}

#[test]
fn executor_decides_random_sequences_as_the_oracle() {
    let (mut done, mut refused) = (0, 0);
    for seed in 0..3000 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut input = vec![0; random.random_range(100..1000)];
        random.fill_bytes(&mut input);
        let outcome = std::panic::catch_unwind(|| sequence(&input));
        let outcome = outcome.unwrap_or_else(|_| panic!("with seed {seed}"));
        (done, refused) = (done + outcome.0, refused + outcome.1);
    }
    println!("{done} writes carried out, {refused} refused");
    assert!(done > 5000 && refused > 5000);
}

#[test]
fn executor_decides_the_fuzzers_corpus_as_the_oracle() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/guard");
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        let outcome = std::panic::catch_unwind(|| sequence(&input));
        assert!(outcome.is_ok(), "{}", path.display());
        inputs += 1;
    }
    assert!(inputs > 20, "{inputs} inputs are no corpus");
}

/// Moves the host's side at random: it consumes some items, or publishes some.
fn host_moves(disk: &Disk, random: &mut SmallRng) {
    if disk.guest == Side::Producer {
        let mut consumer = disk.consumer();
        let mut at = consumer.position();
        for _ in 0..random.random_range(0..4) {
            match consumer.pop(at) {
                Ok(item) => at = item.next,
                // The guest's slot has a false checksum: the span is skipped.
                Err(Error::Format(FormatError::Span { to, .. })) => at = to,
                Err(Error::Retry) => break,
                Err(e) => panic!("{e}"),
            }
        }
        consumer.advance(at).unwrap();
        return;
    }
    let mut producer = Producer::attach(disk.outside()(), "q", "host").unwrap();
    for _ in 0..random.random_range(0..4) {
        match producer.push(&vec![7u8; random.random_range(0..60)]) {
            Ok(end) => producer.advance(end).unwrap(),
            Err(Error::Retry | Error::Suspended) => break,
            Err(e) => panic!("{e}"),
        }
    }
}

/// Whatever the guard grants, the next backend finds pointers, framing and counts that it can start
/// with. Only the stream's checksum is not verified by the guard.
#[test]
fn granted_writes_never_prevent_a_backend_from_starting() {
    let seed = 11;
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut changes, mut lies) = (0, 0);
    for round in 0..600 {
        let guest = if round % 2 == 0 { Side::Producer } else { Side::Consumer };
        let shape =
            Shape { guest, size: UNIT, data_sectors: 2, identity: true, framing: 0, slots: (0, 0) };
        let mut disk = Disk::of(&ring(shape, 0, 0));
        for _ in 0..20 {
            host_moves(&disk, &mut random);
            let ring = Ring::new(guest, Some(UUID), UNIT, disk.bytes());
            let mut tries = Vec::new();
            writes::all(&ring, &mut |first, bytes| tries.push((first, bytes.to_vec())));
            for _ in 0..40 {
                let (first, bytes) = &tries[random.random_range(0..tries.len())];
                // Most of them are refused.
                let refused = answer(&disk.write(*first as u64, bytes)) == Some(Answer::FAILED);
                if refused || disk.bytes() == ring.bytes {
                    continue;
                }
                changes += 1;
                match check(disk.outside()()) {
                    Err(Error::Format(FormatError::Span { .. } | FormatError::Streams { .. })) => {
                        lies += 1;
                    }
                    checked => drop(checked.unwrap_or_else(|e| panic!("seed {seed}: {e}"))),
                }
                break;
            }
        }
    }
    println!("{changes} changes of a guest, {lies} with a wrong checksum");
    assert!(changes > 500 && lies > 10);
}
