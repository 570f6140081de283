//! A guest that is restored from an older snapshot, whose pointer is behind the ring's: nothing
//! published changes, the guest's handle is superseded, and goes on.
//!
//! The snapshot is taken between any two requests. A restored instance is made by driving a second
//! one through the same operations, with the answers that the first one got up to that request;
//! from there on it meets the ring as it is.
#![allow(clippy::unwrap_used)]

mod consumer;
mod lives;
mod producer;
mod snapshotted;
mod stream;

/// Histories for each side of the ring.
const HISTORIES: u64 = 3000;

/// Runs the histories. Returns how many restored instances were superseded, and names the seed of
/// one that fails.
fn told(history: impl Fn(u64) -> u32 + std::panic::RefUnwindSafe) -> u64 {
    let told_of =
        |seed| std::panic::catch_unwind(|| history(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
    (0..HISTORIES).map(|seed| u64::from(told_of(seed))).sum()
}

#[test]
fn restored_producer_is_superseded_and_changes_nothing_published() {
    let told = told(producer::history);
    println!("{told} of {HISTORIES} restored producers were told that they are superseded");
    assert!(told > HISTORIES / 4 && told < HISTORIES);
}

#[test]
fn restored_consumer_is_superseded_and_frees_nothing_twice() {
    let told = told(consumer::history);
    println!("{told} of {HISTORIES} restored consumers were told that they are superseded");
    assert!(told > HISTORIES / 4 && told < HISTORIES);
}
