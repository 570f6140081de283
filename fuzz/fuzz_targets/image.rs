//! Damage to a valid ring: see `ring_simulation::corrupt`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ring_simulation::Watching;
use ring_simulation::corrupt::{Damage, LARGEST, Ring};
use std::sync::LazyLock;

#[global_allocator]
static WATCHING: Watching = Watching::new();

static RING: LazyLock<Ring> = LazyLock::new(Ring::sound);

fuzz_target!(|damage: Damage| {
    let image = RING.damaged(&damage);
    WATCHING.reset();
    RING.judge(&image, &damage);
    let largest = WATCHING.largest();
    assert!(largest <= LARGEST, "{largest} bytes in one piece");
});
