//! Output: closed, full, limited, stalled, gone.

use super::cell::Cell::{Ends, Not, Tested, Then};
use super::cell::{Cell, Row};
use super::program::Program::{self, *};

const STILL_THERE: &str = r#"[ "$($RING consume ring)" = "$(printf 'one\ntwo')" ]"#;
const NO_DEVICE: &str = "0000:ff:1f.7";
/// A shell's status for a process that SIGTERM ended.
const BY_SIGTERM: i32 = 128 + 15;
const PRINTS_NOTHING: &str = "it prints nothing";

pub const ROWS: &[Row] = &[
    Row::new("output", "closed before the start", "exec \"$@\" >&-", closed),
    Row::new("output", "full disk", "exec \"$@\" >/dev/full", full),
    Row::new(
        "output",
        "file size limit",
        "head -c 102400 /dev/zero >out; ulimit -f 200; exec \"$@\" >>out",
        limited,
    ),
    Row::new("output", "a reader that stalls", "stalled \"$@\"", stalled),
    Row::new("output", "does not block", "exec \"$@\"", non_blocking),
    Row::new(
        "output",
        "a reader that is gone",
        "mkfifo f; exec 4<>f 3>f 4>&-; exec \"$@\" >&3",
        gone,
    ),
    Row::new(
        "output",
        "standard error that nobody reads",
        "full_pipe; exec \"$@\" 2>full",
        unread_messages,
    ),
];

/// Refusals before any item is taken.
fn closed(program: Program) -> Cell {
    match program {
        Consume => Then(1, "standard output", STILL_THERE),
        Diagnostics | Check | Repair | Bench => Ends(1, "standard output"),
        Create | Produce | Suspend | Resume | Backend => Ends(0, ""),
        Journal => Ends(0, ""),
        Bind | Unbind => Ends(1, ""),
        // Commands answer there.
        Transfer => Not("an example, to be read; the library knows no output"),
    }
}

fn full(program: Program) -> Cell {
    match program {
        Consume => Then(1, "No space left on device", STILL_THERE),
        Diagnostics | Check | Repair | Bench => Ends(1, "No space left on device"),
        Create | Produce | Suspend | Resume | Backend => Ends(0, ""),
        Journal => Not("it hands its output to the command, whose own this is"),
        Bind | Unbind => Ends(1, NO_DEVICE),
        Transfer => Ends(1, "No space left on device"),
    }
}

fn limited(program: Program) -> Cell {
    match program {
        Consume => Then(1, "File too large", STILL_THERE),
        Diagnostics | Check | Repair | Bench => Ends(1, "File too large"),
        Create | Produce | Suspend | Resume | Backend => Ends(0, ""),
        Journal => Not("it hands its output to the command, whose own this is"),
        Bind | Unbind => Ends(1, NO_DEVICE),
        Transfer => Not("an example, to be read; its journal is larger than the limit"),
    }
}

fn stalled(program: Program) -> Cell {
    match program {
        Consume => Then(0, "", STILL_THERE),
        // They have nothing to finish: the signal itself ends them.
        Diagnostics | Check | Repair => Ends(BY_SIGTERM, ""),
        Bench => Ends(1, "standard output"),
        Create | Produce | Suspend | Resume => Ends(0, ""),
        Backend => Not(PRINTS_NOTHING),
        Journal => Tested(
            "cli/tests/stalled.rs",
            "journal_leaves_a_running_command_behind_after_its_timeout",
        ),
        Bind | Unbind => Ends(1, NO_DEVICE),
        Transfer => Not("an example, to be read: it has no handler for signals, which end it"),
    }
}

fn non_blocking(program: Program) -> Cell {
    match program {
        Consume => Tested("cli/tests/full_output.rs", "consume_waits_for_a_non_blocking_output"),
        Diagnostics | Check | Repair | Bench => {
            Not("a report is one write of less than a pipe holds, by the writer that consume has")
        }
        Create | Produce | Suspend | Resume | Bind | Unbind | Backend => Not(PRINTS_NOTHING),
        Journal => Not("it hands its output to the command, whose own this is"),
        Transfer => Not("an example, to be read: its answers are short"),
    }
}

fn gone(program: Program) -> Cell {
    match program {
        Consume => Then(1, "Broken pipe", STILL_THERE),
        Diagnostics | Check | Repair | Bench => Ends(1, "Broken pipe"),
        Create | Produce | Suspend | Resume | Backend => Ends(0, ""),
        Journal => Not("it hands its output to the command, whose own this is"),
        Bind | Unbind => Ends(1, NO_DEVICE),
        Transfer => Ends(1, "Broken pipe"),
    }
}

/// Rows where messages are dropped: the exit code is that of an ordinary run.
fn unread_messages(program: Program) -> Cell {
    match program {
        Create | Produce | Consume | Journal | Diagnostics | Check | Repair | Suspend | Resume
        | Bench => Ends(0, ""),
        Backend => Tested(
            "vhost/tests/log.rs",
            "log_without_a_reader_stops_neither_front_ends_nor_clients_nor_the_end",
        ),
        Bind | Unbind => Ends(1, ""),
        Transfer => Ends(0, "accepted 1"),
    }
}
