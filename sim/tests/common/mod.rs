//! Rings to explore from.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use ring_simulation::Op::{
    self, AdvanceAll, AttachConsumer, AttachProducer, ConsumeAll, ConsumeOne, Create, Push,
};
use ring_simulation::{Setting, Size};
use shared_block_ring::Durability;

const SMALL: Op = Push(Size::Small);
const LARGE: Op = Push(Size::Large);

/// Settings by sectors, with items of 40 bytes and of `large`.
pub fn sectors(large: usize) -> Setting {
    let durability = Durability::Flush;
    Setting { mapped: false, small: 40, large, durability, mutant: None }
}

/// Settings whose pointers are durable only when something is flushed after them.
pub fn ordered(setting: Setting) -> Setting {
    Setting { durability: Durability::Ordered, ..setting }
}

/// Settings by stores.
pub fn stores(large: usize) -> Setting {
    Setting { mapped: true, ..sectors(large) }
}

/// Programs that lead to an empty ring at its start, one within its first sector, one with items
/// across the wrap point, and one nearly full.
pub fn preludes() -> Vec<Vec<Op>> {
    let empty = vec![Create];
    let within =
        [&empty[..], &[AttachProducer, LARGE, AdvanceAll, AttachConsumer, ConsumeAll]].concat();
    let across =
        [&within[..], &[LARGE, AdvanceAll, SMALL, AdvanceAll, SMALL, AdvanceAll, ConsumeOne]]
            .concat();
    // More items than fit: the rest is not pushed.
    let full = [&across[..], &[SMALL, AdvanceAll].repeat(40)].concat();
    vec![empty, within, across, full]
}
