//! Damage to a valid ring, at random and from the fuzzer's corpus: items that were really pushed,
//! or a typed error; never a panic, a hang, or an allocation above the ring's size.
//!
//! Ten million images with `BLOCKRING_LONG` set (`scripts/test.sh --long`); `BLOCKRING_CASES` and
//! `BLOCKRING_SEED` set how many, and from which seed on.
#![allow(clippy::unwrap_used)]

use arbitrary::{Arbitrary, Unstructured};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use ring_simulation::Watching;
use ring_simulation::corrupt::{Damage, LARGEST, Ring};
use std::path::Path;

#[global_allocator]
static WATCHING: Watching = Watching::new();

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn judge(ring: &Ring, input: &[u8]) {
    let damage = Damage::arbitrary(&mut Unstructured::new(input)).unwrap();
    ring.judge(&ring.damaged(&damage), &damage);
}

#[test]
fn damaged_ring_is_reported_or_delivers_what_was_pushed() {
    let usual = if std::env::var_os("BLOCKRING_LONG").is_some() { 10_000_000 } else { 500_000 };
    let (cases, seed) = (number("BLOCKRING_CASES", usual), number("BLOCKRING_SEED", 1));
    let ring = Ring::sound();
    WATCHING.reset();
    for case in 0..cases {
        let mut random = SmallRng::seed_from_u64(seed.wrapping_add(case));
        let mut input = vec![0; random.random_range(8..1000)];
        random.fill_bytes(&mut input);
        let outcome = std::panic::catch_unwind(|| judge(&ring, &input));
        assert!(outcome.is_ok(), "again with BLOCKRING_CASES=1 BLOCKRING_SEED={}", seed + case);
    }
    let largest = WATCHING.largest();
    assert!(largest <= LARGEST, "{largest} bytes in one piece");
    println!("{cases} damaged images from seed {seed} on, largest allocation {largest} bytes");
}

#[test]
fn damage_that_the_fuzzer_has_found_is_reported_or_does_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/image");
    let ring = Ring::sound();
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        let outcome = std::panic::catch_unwind(|| judge(&ring, &input));
        assert!(outcome.is_ok(), "{}", path.display());
        inputs += 1;
    }
    assert!(inputs > 20, "{inputs} inputs are no corpus");
}
