//! Requests of a guest while its host moves the ring: see `ring_simulation::requests`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ring_simulation::requests::Sequence;
use ring_test_support::executor_disk::Disk;

fuzz_target!(|sequence: Sequence| {
    sequence.judge(&mut Disk::of(&sequence.ring()));
});
