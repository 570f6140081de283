//! Random operations on a ring that a backend hands over (`unix:`), compared with a queue of
//! vectors. The guest's side is played on the file itself, past the lock that the backend holds for
//! the guest.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use ring_simulation::model::{follow, operations};
use ring_simulation::unlocked;
use shared_block_ring::format::{SectorSize, Side};
use shared_block_ring::handover::Role;
use shared_block_ring::{OpenOptions, RingDevice};

/// Rings of one data sector and of four. One daemon serves all cases of a ring; each begins where
/// the one before has ended.
fn is_a_queue(guest: Side, guest_word: &str, host: Role) {
    for (bytes, sectors) in [(512, 4), (512, 7), (4096, 4), (4096, 7)] {
        let sector_size = SectorSize::new(bytes).unwrap();
        let scene = Scene::new();
        let size = (u64::from(bytes) * sectors).to_string();
        let bytes = bytes.to_string();
        let _daemon =
            scene.start(&["--size", &size, "--sector-size", &bytes, "--guest", guest_word]);
        let file = OpenOptions::default().sector_size(sector_size);
        let open = |side| -> Box<dyn RingDevice> {
            if side == guest {
                Box::new(unlocked(file.open(scene.path("ring")).unwrap()))
            } else {
                Box::new(scene.connect(host).unwrap())
            }
        };
        let config = ProptestConfig { cases: 25, failure_persistence: None, ..Default::default() };
        let outcome = TestRunner::new(config).run(&operations(sector_size), |operations| {
            follow(open, operations);
            Ok(())
        });
        outcome.unwrap_or_else(|e| panic!("{sectors} sectors of {bytes} bytes: {e}"));
    }
}

#[test]
fn ring_of_a_host_consumer_behaves_as_a_queue() {
    is_a_queue(Side::Producer, "producer", Role::Consumer);
}

#[test]
fn ring_of_a_host_producer_behaves_as_a_queue() {
    is_a_queue(Side::Consumer, "consumer", Role::Producer);
}
