//! Files: cut, grown, missing, read-only, without room, with odd names.

use super::cell::Cell::{Ends, Not, Tested, Then};
use super::cell::{Cell, Row};
use super::program::Program::{self, *};

const NO_RING: &str = "it takes no ring";
const NO_FILE: &str = "[ ! -e /dev/blockring-none ]";
const EXAMPLE: &str = "an example, to be read: its files are its own";

pub const ROWS: &[Row] = &[
    Row::new("files", "truncated", "truncate -s 20000 ring; exec \"$@\"", cut),
    Row::new("files", "grown", "truncate -s 128K ring; exec \"$@\"", grown),
    Row::new("files", "removed while it is used", "", removed),
    Row::new("files", "in /dev, and not there", "exec \"$@\"", no_device).at("/dev/blockring-none"),
    Row::new("files", "a folder in the ring's place", "mkdir folder; exec \"$@\"", folder).at("folder"),
    Row::new(
        "files",
        "a read-only file system",
        "mkdir m; private 'mount -t tmpfs t m && cp ring m && mount -o remount,ro m && cd m && exec \"$@\"' sh \"$@\"",
        read_only,
    ),
    Row::new(
        "files",
        "a file system with little room",
        "mkdir m; private 'mount -t tmpfs -o size=256k t m && cp ring m && cd m && \"$@\"; code=$?; \
         [ \"$(df --output=avail . | tail -n 1)\" -gt 100 ] || { echo what was taken was not given back; exit 99; }; exit $code' sh \"$@\"",
        little_room,
    )
    .size("64M"),
    Row::new(
        "files",
        "a name that is not UTF-8",
        "n=$(printf 'r\\377'); cp ring \"$n\"; for a; do shift; [ \"$a\" != NAME ] || a=$n; set -- \"$@\" \"$a\"; done; exec \"$@\"",
        odd_name,
    )
    .at("NAME"),
    Row::new("files", "a device that is mounted, swap, or in use", "", in_use),
    Row::new("files", "two disks with one serial", "", one_serial),
    Row::new("files", "without fallocate", "", no_fallocate),
    Row::new("files", "4096-byte sectors", "", large_sectors),
];

fn cut(program: Program) -> Cell {
    match program {
        Produce | Consume | Diagnostics | Check | Suspend | Resume | Bench => Ends(5, ""),
        Backend => Ends(1, ""),
        Repair => Ends(5, ""),
        Create | Journal => Not("it makes a ring of its own"),
        Bind | Unbind => Not(NO_RING),
        Transfer => Not(EXAMPLE),
    }
}

fn grown(program: Program) -> Cell {
    cut(program)
}

fn removed(program: Program) -> Cell {
    match program {
        Produce => Tested(
            "cli/tests/displaced.rs",
            "idle_produce_ends_when_its_ring_is_removed_and_names_items_in_doubt",
        ),
        Consume => Tested("cli/tests/displaced.rs", "idle_consume_ends_when_its_ring_is_replaced"),
        Backend => Tested(
            "vhost/tests/start_and_place.rs",
            "replaced_ring_file_is_logged_and_an_error_at_the_end",
        ),
        Journal => {
            Tested("cli/tests/displaced.rs", "waiting_journal_ends_when_its_ring_is_removed")
        }
        Create | Diagnostics | Check | Repair | Suspend | Resume | Bench => {
            Not("it ends within seconds, and opens the file anew each time")
        }
        Bind | Unbind => Not(NO_RING),
        Transfer => Not(EXAMPLE),
    }
}

fn no_device(program: Program) -> Cell {
    match program {
        Create | Journal => Then(1, "/dev", NO_FILE),
        Produce | Consume | Diagnostics | Check | Repair | Suspend | Resume | Bench => {
            Then(1, "No such file", NO_FILE)
        }
        Backend => Then(1, "/dev", NO_FILE),
        Bind | Unbind => Not(NO_RING),
        Transfer => Not(EXAMPLE),
    }
}

fn folder(program: Program) -> Cell {
    match program {
        Create | Journal | Produce | Consume | Diagnostics | Check | Repair | Suspend | Resume
        | Bench | Backend => Ends(1, "folder"),
        Bind | Unbind => Not(NO_RING),
        Transfer => Not(EXAMPLE),
    }
}

fn read_only(program: Program) -> Cell {
    match program {
        Create | Journal | Produce | Consume | Suspend | Resume | Bench | Backend => {
            Ends(1, "Read-only file system")
        }
        Diagnostics | Check | Repair => Ends(0, ""),
        Bind | Unbind => Not(NO_RING),
        Transfer => Ends(1, "Read-only file system"),
    }
}

fn little_room(program: Program) -> Cell {
    match program {
        Create | Journal => Ends(1, "no space"),
        Produce | Consume | Diagnostics | Check | Repair | Suspend | Resume | Bench => Ends(0, ""),
        Backend => {
            Tested("vhost/tests/start_and_place.rs", "start_without_free_space_allocates_nothing")
        }
        Bind | Unbind => Not(NO_RING),
        Transfer => Ends(1, "no space"),
    }
}

fn odd_name(program: Program) -> Cell {
    match program {
        Produce | Consume | Diagnostics | Check | Repair | Suspend | Bench | Backend => Ends(0, ""),
        Resume => Ends(0, ""),
        // The file is a ring, and has entries to perform.
        Journal => Ends(0, "one"),
        Create => Ends(1, "holds a ring already"),
        Bind | Unbind => Not(NO_RING),
        Transfer => Not(EXAMPLE),
    }
}

fn in_use(program: Program) -> Cell {
    match program {
        Create => Tested("cli/tests/in_use.rs", "mounted_device_is_refused"),
        Produce | Consume | Diagnostics | Check | Repair | Suspend | Resume | Bench => {
            Tested("cli/tests/in_use.rs", "producer_and_consumer_share_a_device")
        }
        Journal | Backend => Tested("cli/tests/in_use.rs", "exclusively_opened_device_is_refused"),
        Bind | Unbind => Not(NO_RING),
        Transfer => Not(EXAMPLE),
    }
}

fn one_serial(program: Program) -> Cell {
    match program {
        Produce | Consume | Diagnostics | Check | Repair | Suspend | Resume | Bench | Create
        | Journal => {
            Tested("src/device/serial.rs", "two_disks_with_one_serial_are_refused_by_name")
        }
        Backend => {
            Tested("vhost/tests/start_and_place.rs", "serial_numbers_differ_by_default_and_stay")
        }
        Bind | Unbind => Not(NO_RING),
        Transfer => Not(EXAMPLE),
    }
}

fn no_fallocate(program: Program) -> Cell {
    match program {
        Create | Journal | Backend => {
            Tested("cli/tests/new_files.rs", "file_system_without_fallocate_gets_zeros")
        }
        Produce | Consume | Diagnostics | Check | Repair | Suspend | Resume | Bench => {
            Not("it allocates nothing")
        }
        Bind | Unbind => Not(NO_RING),
        Transfer => Not("it makes its files by the library, as create does"),
    }
}

fn large_sectors(program: Program) -> Cell {
    match program {
        Create | Produce | Consume | Diagnostics | Check | Repair | Suspend | Resume | Bench
        | Journal => Tested("tests/vectors.rs", "images_of_the_ocaml_program_read_as_recorded"),
        Backend => Tested(
            "vhost/tests/front_end_of_our_own.rs",
            "items_pushed_on_the_host_are_popped_through_the_queue",
        ),
        Bind | Unbind => Not(NO_RING),
        Transfer => Not(EXAMPLE),
    }
}
