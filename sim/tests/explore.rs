//! After every crash of every short program all promises hold, and after many crashes of long ones.
//!
//! Runs more and longer programs with `BLOCKRING_LONG` set (`scripts/test.sh --long`).
#![allow(clippy::unwrap_used)]

mod common;

use common::{ordered, preludes, sectors, stores};
use ring_simulation::{Bounds, Explorer, Setting, wander};
use shared_block_ring::format::{Geometry, SectorSize};
use std::time::Instant;

fn long() -> bool {
    std::env::var_os("BLOCKRING_LONG").is_some()
}

/// Explores rings of `data` sectors. Returns the number of crash points examined.
fn explore(data: u64, setting: Setting, lengths: [usize; 4]) -> u64 {
    let start = Instant::now();
    let bounds = Bounds { lengths, crash_points: u64::MAX };
    let counts = Explorer::new(data + 3, setting, bounds).explore(&preludes());
    let counts = counts.unwrap_or_else(|failure| panic!("{data} sectors, {setting:?}: {failure}"));
    let way = if setting.mapped { "stores" } else { "sectors" };
    println!(
        "{data} data sectors, items of {} and {} bytes, by {way}, programs of {lengths:?} operations: {} crash points, \
         {} states after a crash, {} of a running ring, {} steps, from {:?} nodes, {:.1} s",
        setting.small,
        setting.large,
        counts.crash_points,
        counts.crash_states,
        counts.program_states,
        counts.steps,
        counts.nodes,
        start.elapsed().as_secs_f64(),
    );
    counts.crash_points
}

#[test]
fn short_programs_keep_their_promises_in_every_crash() {
    let mut visited = 0;
    for data in 1..=3 {
        for large in [300, 500, 700] {
            // Programs after zero, one and two power failures.
            let lengths = match (long(), data) {
                (false, _) => [3, 2, 0, 0],
                (true, 1) => [5, 3, 1, 0],
                (true, _) => [4, 2, 1, 0],
            };
            visited += explore(data, sectors(large), lengths);
        }
    }
    println!("{visited} crash points by sectors");
    assert!(visited >= if long() { 10_000_000 } else { 500_000 });
}

#[test]
fn short_programs_keep_their_promises_in_every_crash_between_two_stores() {
    let mut visited = 0;
    for data in 1..=3 {
        let lengths = if long() { [3, 2, 0, 0] } else { [3, 1, 0, 0] };
        visited += explore(data, stores(500), lengths);
    }
    println!("{visited} crash points by stores");
    assert!(visited >= 500_000);
}

#[test]
fn unflushed_batches_are_whole_and_in_order_after_every_crash() {
    let mut visited = 0;
    for data in 1..=3 {
        let lengths = if long() { [4, 2, 1, 0] } else { [3, 2, 0, 0] };
        for setting in [sectors(300), sectors(700)] {
            visited += explore(data, ordered(setting), lengths);
        }
        let lengths = if long() { [3, 2, 0, 0] } else { [3, 1, 0, 0] };
        visited += explore(data, ordered(stores(500)), lengths);
    }
    println!("{visited} crash points with flushes left for later");
    assert!(visited >= 500_000);
}

#[test]
fn long_programs_keep_their_promises_in_random_crashes() {
    let (seeds, lives) = if long() { (400, 40) } else { (24, 10) };
    let mut visited = 0;
    for seed in 0..seeds {
        let size = if seed % 2 == 0 { 512 } else { 4096 };
        let data = [7, 16, 61][usize::try_from(seed % 3).unwrap()];
        let geometry = Geometry::new(SectorSize::new(size).unwrap(), data + 3).unwrap();
        let large =
            usize::try_from(u64::from(size) * [1, 3][usize::from(seed % 4 > 1)] + 100).unwrap();
        let setting = if seed % 5 == 4 { stores(large) } else { sectors(large) };
        let setting = if seed % 3 == 2 { ordered(setting) } else { setting };
        let outcome = wander(seed, geometry, setting, lives, 60);
        visited += outcome.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    println!("{visited} crash points of random programs, seeds 0 to {seeds}");
}
