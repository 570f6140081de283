//! Input: closed, of the wrong kind, of any bytes and lengths.

use super::cell::Cell::{Ends, Not, Tested, Then};
use super::cell::{Cell, Row};
use super::program::Program::{self, *};

const READS_NOTHING: &str = "it reads no standard input";
const EXAMPLE: &str = "an example, to be read: orders are short lines";
const UNCHANGED: &str = r#"[ "$($RING consume ring)" = "$(printf 'one\ntwo')" ]"#;

pub const ROWS: &[Row] = &[
    Row::new("input", "closed", "exec \"$@\" <&-", closed),
    Row::new("input", "open for writing only", "exec \"$@\" 0>file", write_only),
    Row::new("input", "a folder", "exec \"$@\" </", folder),
    Row::new("input", "a terminal", "", terminal),
    Row::new(
        "input",
        "CR LF, NUL, no UTF-8, no final newline",
        "printf 'a\\r\\nb\\0c\\n\\377x' | \"$@\"",
        bytes,
    ),
    Row::new("input", "one line of gigabytes", "", long),
    Row::new(
        "input",
        "a record that can never fit",
        "{ echo first; head -c 100000 /dev/zero | tr '\\0' x; } | \"$@\"",
        too_large,
    ),
    Row::new("input", "records that contain the separator", "", separator),
];

/// Returns the words of a program's refusal of an input that it cannot read.
fn refused(program: Program, words: &'static str) -> Cell {
    match program {
        Produce => Then(1, words, UNCHANGED),
        Journal => Ends(1, words),
        Create | Consume | Diagnostics | Check | Repair | Suspend | Resume | Bench | Backend => {
            Ends(0, "")
        }
        Bind | Unbind => Ends(1, ""),
        Transfer => Not("an example, to be read: what it cannot read ends it, and is no order"),
    }
}

fn closed(program: Program) -> Cell {
    refused(program, "closed")
}

fn write_only(program: Program) -> Cell {
    refused(program, "writing only")
}

fn folder(program: Program) -> Cell {
    refused(program, "folder")
}

/// Kinds that affect only programs that read records.
fn records(program: Program, produce: Cell, journal: Cell) -> Cell {
    match program {
        Produce => produce,
        Journal => journal,
        Create | Consume | Diagnostics | Check | Repair | Suspend | Resume | Bench | Bind
        | Unbind | Backend => Not(READS_NOTHING),
        Transfer => Not(EXAMPLE),
    }
}

fn terminal(program: Program) -> Cell {
    let test = Tested("cli/tests/standard_input.rs", "terminal_input_is_announced");
    records(program, test, test)
}

fn bytes(program: Program) -> Cell {
    const WHOLE: &str =
        r"printf 'one\ntwo\na\r\nb\0c\n\377x\n' >wanted; $RING consume ring | cmp - wanted";
    // The command gets each item without a separator.
    const PRINTED: &str = r"printf 'a\rb\0c\377x' >wanted; cmp output wanted";
    records(program, Then(0, "", WHOLE), Then(0, "", PRINTED))
}

fn long(program: Program) -> Cell {
    let test = Tested("cli/tests/long_items.rs", "computing_for_a_line_is_linear_in_its_length");
    records(program, test, test)
}

fn too_large(program: Program) -> Cell {
    records(program, Ends(1, "--on-too-large"), Ends(1, "--on-too-large"))
}

fn separator(program: Program) -> Cell {
    match program {
        Consume => {
            Tested("cli/tests/separators.rs", "item_with_a_separator_ends_consume_and_stays")
        }
        Journal => Tested("cli/tests/separators.rs", "journal_does_not_set_aside_an_item_as_two"),
        Produce => {
            Not("the input's framing says where its records end; --framing length takes any bytes")
        }
        Create | Diagnostics | Check | Repair | Suspend | Resume | Bench | Bind | Unbind
        | Backend => Not("it neither reads nor prints records"),
        Transfer => Not(EXAMPLE),
    }
}
