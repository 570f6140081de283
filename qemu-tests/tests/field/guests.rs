//! Guests of other kinds and sizes.

use super::cell::Cell::{Not, Tested};
use super::cell::{Cell, Row};
use super::program::Program::{self, *};

const HOST: &str = "it meets a guest only by the backend";

pub const ROWS: &[Row] = &[
    Row::new("guests", "several processors, default options", "", processors),
    Row::new("guests", "old drivers, other queue sizes", "", drivers),
];

/// Kinds that affect the backend, and ends of a ring in the guest.
fn in_a_guest(program: Program, backend: Cell, ends: Cell) -> Cell {
    match program {
        Backend => backend,
        Produce | Consume => ends,
        Create | Journal | Diagnostics | Check | Repair | Suspend | Resume | Bench | Bind
        | Unbind | Transfer => Not(HOST),
    }
}

fn processors(program: Program) -> Cell {
    let documented = Tested(
        "tests/documented_commands.rs",
        "disk_of_a_documented_guest_has_the_vmms_number_of_queues",
    );
    // All tests' guests have two processors.
    let stream =
        Tested("qemu-tests/tests/stream.rs", "hundred_thousand_random_items_leave_the_guest");
    in_a_guest(program, documented, stream)
}

fn drivers(program: Program) -> Cell {
    let queue =
        Tested("vhost/tests/hostile_queue.rs", "memory_replaced_under_load_loses_no_request");
    in_a_guest(program, queue, Not("the driver is the guest's kernel"))
}
