//! The machine: no /proc, limits, signals, other users.

use super::cell::Cell::{Documented, Ends, Not, Tested, Then};
use super::cell::{Cell, Row};
use super::program::Program::{self, *};

pub const ROWS: &[Row] = &[
    Row::new(
        "machine",
        "no /proc",
        "private 'mount -t tmpfs none /proc && exec \"$@\"' sh \"$@\"",
        no_proc,
    ),
    Row::new(
        "machine",
        "a PID namespace",
        "unshare --pid --fork --kill-child=TERM \"$@\"",
        pid_namespace,
    ),
    Row::new("machine", "few descriptors", "ulimit -n 4; exec \"$@\"", few_descriptors),
    Row::new("machine", "little memory", "ulimit -v 60000; exec \"$@\"", any_documented),
    Row::new(
        "machine",
        "hardly any memory",
        "ulimit -v $(hardly_enough -v 500 \"$1\"); exec \"$@\"",
        hardly_any,
    ),
    Row::new(
        "machine",
        "hardly any memory for data",
        "ulimit -d $(hardly_enough -d 50 \"$1\"); exec \"$@\"",
        hardly_any,
    ),
    Row::new("machine", "a file size limit", "ulimit -f 1; exec \"$@\"", file_size),
    Row::new(
        "machine",
        "a storm of signals, stops and continuations",
        "exec 3<&0; \"$@\" <&3 & P=$!; i=0; \
         while [ $i -lt 100 ] && kill -WINCH $P 2>/dev/null; do kill -STOP $P; kill -CONT $P; i=$((i+1)); done 2>/dev/null; wait $P",
        storm,
    ),
    Row::new("machine", "umask 0", "umask 0; exec \"$@\"", umask),
    Row::new("machine", "a clock that is wrong", "", clock),
    Row::new("machine", "saved and restored", "", restored),
    Row::new("machine", "other users", "", users),
];

/// Programs go on undisturbed.
fn ordinary(program: Program) -> Cell {
    match program {
        Create | Produce | Consume | Journal | Diagnostics | Check | Repair | Suspend | Resume
        | Bench | Backend => Ends(0, ""),
        Transfer => Ends(0, "accepted 1"),
        Bind | Unbind => Ends(1, "0000:ff:1f.7"),
    }
}

fn no_proc(program: Program) -> Cell {
    match program {
        // The backend reaches its sockets and the region by their descriptors there.
        Backend => Ends(1, "mount -t proc proc /proc"),
        _ => ordinary(program),
    }
}

fn pid_namespace(program: Program) -> Cell {
    match program {
        Backend => {
            Not("the signal that ends it goes to its process id, which this shell does not know")
        }
        _ => ordinary(program),
    }
}

fn few_descriptors(program: Program) -> Cell {
    match program {
        Create | Produce | Consume | Journal | Diagnostics | Check | Repair | Suspend | Resume
        | Bench | Bind | Unbind | Transfer => Documented,
        Backend => Ends(1, "Too many open files"),
    }
}

fn any_documented(program: Program) -> Cell {
    match program {
        Create | Produce | Consume | Journal | Diagnostics | Check | Repair | Suspend | Resume
        | Bench | Bind | Unbind | Backend => Documented,
        Transfer => Not("an example, to be read: without memory it aborts, as Rust's programs do"),
    }
}

fn hardly_any(program: Program) -> Cell {
    match program {
        Backend => Not("the loader of shared libraries gives up before it begins"),
        _ => any_documented(program),
    }
}

fn file_size(program: Program) -> Cell {
    match program {
        Create | Journal | Produce | Consume | Suspend | Resume | Bench => {
            Ends(1, "File too large")
        }
        Diagnostics | Check | Repair => Ends(0, ""),
        Backend => Ends(1, "File too large"),
        Bind | Unbind => Ends(1, "0000:ff:1f.7"),
        Transfer => Not("an example, to be read: it leaves the signal as it is"),
    }
}

fn storm(program: Program) -> Cell {
    match program {
        Backend => {
            Not("the signal that ends it goes to its process id, which this shell does not know")
        }
        _ => ordinary(program),
    }
}

/// No other user can write a created file, or connect to a socket.
fn umask(program: Program) -> Cell {
    const NOTHING_OPEN: &str =
        r#"[ -z "$(find . -mindepth 1 -perm /022 ! -type d ! -name output)" ]"#;
    match program {
        Create | Journal | Backend => Then(0, "", NOTHING_OPEN),
        Produce | Consume | Diagnostics | Check | Repair | Suspend | Resume | Bench | Bind
        | Unbind => Not("it makes no file"),
        Transfer => Not("an example, to be read: its files are as the umask has them"),
    }
}

fn clock(program: Program) -> Cell {
    match program {
        Create | Produce | Consume | Journal | Diagnostics | Check | Repair | Suspend | Resume
        | Bench | Bind | Unbind | Backend | Transfer => {
            Not("times in the ring are for people; every wait goes by the monotonic clock")
        }
    }
}

fn restored(program: Program) -> Cell {
    match program {
        Produce | Consume | Backend => Tested(
            "qemu-tests/tests/snapshots.rs",
            "guest_restored_at_once_goes_on_and_so_does_its_clone_with_a_copy_of_the_ring",
        ),
        Journal => Tested("tests/superseded.rs", "superseded_journal_ends_its_waits_and_goes_on"),
        Create | Diagnostics | Check | Repair | Suspend | Resume | Bench | Bind | Unbind => {
            Not("it keeps nothing in memory that the ring could have gone on without")
        }
        Transfer => Not("an example, to be read: its journal is the library's"),
    }
}

fn users(program: Program) -> Cell {
    match program {
        Backend => Tested(
            "vhost/tests/confinement.rs",
            "region_is_handed_to_admitted_users_and_groups_alone",
        ),
        Produce => Tested(
            "qemu-tests/tests/container.rs",
            "container_producer_needs_nothing_but_the_socket_and_outlives_its_backend",
        ),
        Create | Consume | Journal | Diagnostics | Check | Repair | Suspend | Resume | Bench
        | Bind | Unbind | Transfer => {
            Not("what it may open is the file's permissions' to say; it changes no identity")
        }
    }
}
