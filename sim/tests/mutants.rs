//! Every step of the protocol is needed: without it, the exploration finds a broken promise.
#![allow(clippy::unwrap_used)]

mod common;

use common::{ordered, preludes, sectors, stores};
use ring_simulation::{Bounds, Explorer, Last, Mutant, Setting};

/// Bounds far above what any mutant needs.
const BOUNDS: Bounds = Bounds { lengths: [4, 0, 0, 0], crash_points: 5_000_000 };

fn caught(mutant: Mutant, setting: Setting, words: &str) {
    let setting = Setting { mutant: Some(mutant), ..setting };
    let outcome = Explorer::new(5, setting, BOUNDS).explore(&preludes());
    let failure = match outcome {
        Err(failure) => failure.to_string(),
        Ok(counts) => panic!("{mutant:?} survives {counts:?}"),
    };
    println!("{mutant:?}: {failure}");
    assert!(failure.contains(words), "{failure}");
}

fn without_flush(operation: &'static str, nth: u32, words: &str) {
    let mutant = Mutant::NoFlush { operation, nth };
    caught(mutant, sectors(500), words);
    caught(mutant, stores(500), words);
}

fn without_flush_behind(last: Last) {
    let mutant = Mutant::NoFlushBehind(last);
    caught(mutant, sectors(500), "");
    caught(mutant, stores(500), "");
}

#[test]
fn unflushed_batches_still_need_the_flushes_between() {
    caught(Mutant::NoFlushBehind(Last::Nothing), ordered(sectors(500)), "");
    caught(Mutant::NoFlushBehind(Last::Data), ordered(sectors(500)), "");
    caught(Mutant::NoFlush { operation: "consume", nth: 0 }, ordered(sectors(500)), "");
}

#[test]
fn create_flushes_pointers_before_the_signature() {
    without_flush("create", 0, "");
}

#[test]
fn create_flushes_the_signature() {
    without_flush("create", 1, "the ring is gone");
}

#[test]
fn producer_flushes_what_it_attaches_to() {
    let mutant = Mutant::NoFlush { operation: "attach producer", nth: 0 };
    caught(mutant, sectors(500), "check: item at position");
}

#[test]
fn freed_space_is_reused_only_behind_a_flush() {
    without_flush_behind(Last::Nothing);
}

#[test]
fn items_are_flushed_before_their_pointer() {
    without_flush_behind(Last::Data);
}

#[test]
fn pointer_of_the_producer_is_flushed_before_advance_returns() {
    without_flush_behind(Last::Pointer);
}

#[test]
fn producer_pointer_is_flushed_before_the_consumer_pointer() {
    without_flush("consume", 0, "ahead of producer");
}

#[test]
fn pointer_of_the_consumer_is_flushed_before_advance_returns() {
    without_flush("consume", 1, "");
}

#[test]
fn suspend_is_flushed_before_it_returns() {
    without_flush("suspend", 0, "suspend is");
}

#[test]
fn pointer_is_written_behind_its_items() {
    caught(Mutant::PointerBeforeData, sectors(500), "");
}

#[test]
fn tail_sector_is_kept() {
    caught(Mutant::TailNotKept, sectors(500), "");
}

#[test]
fn slot_is_stored_before_its_position() {
    caught(Mutant::SlotAfterPosition, stores(500), "");
}
