//! Crash campaigns that must fail: a checker that accepts everything would prove nothing.
#![allow(clippy::unwrap_used)]

use std::fs;

use qemu_tests::campaign::{Failure, Flushes, Kind, Plan, run};

/// Runs a few power cuts with a fixed seed.
fn cut(cuts: u32, flushes: Flushes) -> Result<u64, Failure> {
    let plan = Plan { deaths: vec![(Kind::Cuts, cuts)], seed: 20, jobs: 1, flushes };
    let mut delivered = 0;
    run(&plan, &|_, _, _| {}, |report| delivered = report.tally.delivered)
        .map(|()| delivered)
        .map_err(|(_, failure)| failure)
}

#[test]
fn disk_that_ignores_flushes_is_found_out_by_a_few_power_cuts() {
    let Err(Failure::Kept { failure, folder }) = cut(4, Flushes::Lies) else {
        panic!("four power cuts of a disk that makes nothing durable went unnoticed");
    };
    fs::remove_dir_all(folder).unwrap();
    println!("{failure}");
    // The checker has found it, or an end of the ring has, in the pointers or the checksums that
    // are left.
    let found = match &*failure {
        Failure::Violation(_) => true,
        Failure::Unsound(text) => text.contains("has given up"),
        _ => false,
    };
    assert!(found, "{failure}");
    // The same cuts of an honest disk lose nothing.
    assert!(cut(2, Flushes::Honest).unwrap() > 0);
}
