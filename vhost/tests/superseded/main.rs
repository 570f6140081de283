//! A guest that is restored from an older snapshot, whose end of the ring is behind: nothing published changes, it is told, and goes on.
//!
//! The snapshot is taken between any two requests. A restored end is made by driving a second one through the same operations, with
//! the answers that the first one got up to that request; from there on it meets the ring as it is.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod consumer;
mod lives;
mod producer;
mod snapshotted;
mod stream;

/// Histories for each side of the ring.
const HISTORIES: u64 = 3000;

/// How many of the histories' restored ends were told. Names the seed of one that fails.
fn told(history: impl Fn(u64) -> u32 + std::panic::RefUnwindSafe) -> u64 {
    let told_of =
        |seed| std::panic::catch_unwind(|| history(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
    (0..HISTORIES).map(|seed| u64::from(told_of(seed))).sum()
}

#[test]
fn a_restored_producer_is_told_and_goes_on_and_nothing_published_changes() {
    let told = told(producer::history);
    println!("{told} of {HISTORIES} restored producers were told that they are superseded");
    assert!(told > HISTORIES / 4 && told < HISTORIES);
}

#[test]
fn a_restored_consumer_is_told_and_frees_nothing_twice() {
    let told = told(consumer::history);
    println!("{told} of {HISTORIES} restored consumers were told that they are superseded");
    assert!(told > HISTORIES / 4 && told < HISTORIES);
}
