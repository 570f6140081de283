//! Peers: stopped, slow, of another version, two at once.

use super::cell::Cell::{Ends, Not, Tested};
use super::cell::{Cell, Row};
use super::program::Program::{self, *};

const NO_BACKEND: &str = "it works on no backend's ring";

/// A backend that serves the ring at `c`, as `$B`.
macro_rules! backend {
    ($rest:literal) => {
        concat!(
            "$BACKEND --socket-path s --blk-file ring --consumer-socket c 2>/dev/null & B=$!; ",
            "until $RING diagnostics unix:c >/dev/null 2>&1; do kill -0 $B || exit 99; sleep 0.05; done; ",
            $rest,
            "\"$@\"; code=$?; kill -KILL $B; exit $code"
        )
    };
}

pub const ROWS: &[Row] = &[
    Row::new(
        "peers",
        "a backend that is stopped",
        // The signal stops one thread after the other: a thread that still runs could answer.
        backend!(
            "kill -STOP $B; until [ $(cat /proc/$B/task/*/status | grep -c '^State:.T') = \
             $(ls /proc/$B/task | wc -l) ]; do sleep 0.01; done; "
        ),
        stopped,
    )
    .at("unix:c"),
    Row::new(
        "peers",
        "a backend that is gone",
        backend!("kill -KILL $B; wait $B 2>/dev/null; "),
        gone,
    )
    .at("unix:c"),
    Row::new("peers", "half a handshake", "", half),
    Row::new("peers", "another version", "", version),
    Row::new(
        "peers",
        "two at once: a producer is there",
        "mkfifo f; $RING produce ring <f & exec 5>f; echo x >&5; \
         until [ \"$($RING diagnostics --json ring | grep -c '\"used\":24')\" = 1 ]; do sleep 0.05; done; exec \"$@\"",
        two_producers,
    ),
    Row::new(
        "peers",
        "two at once: a consumer is there",
        "$RING consume --follow ring >o & until [ -s o ]; do sleep 0.05; done; exec \"$@\"",
        two_consumers,
    ),
];

fn stopped(program: Program) -> Cell {
    match program {
        Consume | Diagnostics | Check | Suspend | Resume => Ends(3, "no answer within"),
        // The producer's end is the guest's here.
        Produce | Bench => Tested(
            "vhost/tests/stopped.rs",
            "connect_to_stopped_backend_without_limits_gives_up_by_itself",
        ),
        Create | Journal | Repair | Bind | Unbind | Transfer => Not(NO_BACKEND),
        Backend => {
            Tested("vhost/tests/daemon.rs", "second_daemon_is_refused_and_a_stale_socket_replaced")
        }
    }
}

fn gone(program: Program) -> Cell {
    match program {
        Consume | Diagnostics | Check | Suspend | Resume => Ends(1, "Connection refused"),
        Produce | Bench => Ends(1, ""),
        Create | Journal | Repair | Bind | Unbind | Transfer => Not(NO_BACKEND),
        Backend => {
            Tested("vhost/tests/daemon.rs", "second_daemon_is_refused_and_a_stale_socket_replaced")
        }
    }
}

fn half(program: Program) -> Cell {
    match program {
        Consume | Diagnostics | Check | Suspend | Resume | Produce | Bench => {
            Tested("cli/tests/stalled.rs", "silent_backend_is_given_up")
        }
        Backend => Tested(
            "vhost/tests/confinement.rs",
            "region_is_handed_to_admitted_users_and_groups_alone",
        ),
        Create | Journal | Repair | Bind | Unbind | Transfer => Not(NO_BACKEND),
    }
}

fn version(program: Program) -> Cell {
    match program {
        Consume | Diagnostics | Check | Suspend | Resume | Produce | Bench => {
            Not("the hand-over's words may be added to, and unknown ones are ignored")
        }
        Backend => Tested(
            "qemu-tests/tests/restarts.rs",
            "backend_is_replaced_by_another_build_under_a_producing_guest",
        ),
        Create | Journal | Repair | Bind | Unbind | Transfer => Not(NO_BACKEND),
    }
}

fn two_producers(program: Program) -> Cell {
    match program {
        Produce | Bench => Ends(1, "already has a producer"),
        Consume | Diagnostics | Check | Suspend => Ends(0, ""),
        Resume => Not("there is nothing to resume: the ring is not suspended"),
        Repair => Ends(0, ""),
        Backend => Ends(1, "already has a producer"),
        Create | Journal => Not("it makes a ring of its own"),
        Bind | Unbind | Transfer => Not("it takes no ring"),
    }
}

fn two_consumers(program: Program) -> Cell {
    match program {
        Consume => Ends(1, "already has a consumer"),
        Produce | Bench | Diagnostics | Check | Suspend | Resume | Repair | Backend => Ends(0, ""),
        Create | Journal => Not("it makes a ring of its own"),
        Bind | Unbind | Transfer => Not("it takes no ring"),
    }
}
