//! Requests of a guest while its host moves: see `ring_simulation::requests`.
#![no_main]

#[path = "../../vhost/tests/common/disk.rs"]
#[allow(dead_code)]
mod disk;

use disk::Disk;
use libfuzzer_sys::fuzz_target;
use ring_simulation::requests::Sequence;

fuzz_target!(|sequence: Sequence| {
    sequence.judge(&mut Disk::of(&sequence.ring()));
});
