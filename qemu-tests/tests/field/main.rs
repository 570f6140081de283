//! The programs under all kinds of trouble: every kind against every program.
//!
//! The table is complete by construction: each [`Row`] has an answer for every [`Program`]: a run
//! of it, the test that shows it in more detail, or the reason why the kind cannot affect the
//! program. Needs root, for mounts of its own.
// A row has an answer for each program: equal answers are no duplicates.
#![allow(clippy::unwrap_used, clippy::match_same_arms)]

mod cell;
mod files;
mod guests;
mod input;
mod machine;
mod output;
mod peers;
mod program;

use cell::{Cell, Row};
use program::Program;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Number of cells that run at a time. Most of them wait.
const AT_A_TIME: usize = 4;

/// Outcome of a cell.
enum Verdict {
    Passed(char),
    Failed(String),
}

fn judge(row: &Row, program: Program) -> Verdict {
    let outcome = match row.cell(program) {
        Cell::Not(reason) => {
            assert!(!reason.is_empty(), "{} × {program:?} gives no reason", row.kind);
            Ok('-')
        }
        Cell::Tested(file, test) => cell::expect_test(file, test).map(|()| 't'),
        Cell::Ends(code, words) => row.run(program, Some(code), words, "").map(|()| digit(code)),
        Cell::Then(code, words, check) => {
            row.run(program, Some(code), words, check).map(|()| digit(code))
        }
        Cell::Documented => row.run(program, None, "", "").map(|()| '*'),
    };
    outcome.map_or_else(Verdict::Failed, Verdict::Passed)
}

/// Returns an exit code, or `s` for the end by a signal that the script has sent.
fn digit(code: i32) -> char {
    char::from_digit(code.unsigned_abs(), 10).unwrap_or('s')
}

#[test]
fn every_kind_of_trouble_meets_every_program() {
    assert!(nix::unistd::geteuid().is_root(), "mounts, limits and users of its own need root");
    let rows: Vec<Row> =
        [output::ROWS, input::ROWS, peers::ROWS, files::ROWS, machine::ROWS, guests::ROWS].concat();
    let cells: Vec<_> =
        rows.iter().flat_map(|row| Program::ALL.map(|program| (row, program))).collect();
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(&(row, program)) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = judge(row, program);
                    verdicts.lock().unwrap().push((row, program, verdict));
                }
            });
        }
    });
    let verdicts = verdicts.into_inner().unwrap();
    assert_eq!(verdicts.len(), cells.len(), "a cell has no verdict");
    println!("{}", table(&rows, &verdicts));
    let failures: Vec<_> = verdicts
        .iter()
        .filter_map(|(row, program, verdict)| match verdict {
            Verdict::Failed(why) => {
                Some(format!("{}: {} × {}: {why}", row.field, row.kind, program.name()))
            }
            Verdict::Passed(_) => None,
        })
        .collect();
    assert!(failures.is_empty(), "{} cells failed:\n{}", failures.len(), failures.join("\n"));
}

/// Returns the matrix as text, and how many cells there are of each sort.
fn table(rows: &[Row], verdicts: &[(&Row, Program, Verdict)]) -> String {
    let mut text = String::new();
    let (mut run, mut tested, mut not, mut failed) = (0, 0, 0, 0);
    for program in Program::ALL {
        writeln!(text, "{:>58} {}", "", program.name()).unwrap();
    }
    for row in rows {
        write!(text, "{:<8} {:<48} ", row.field, row.kind).unwrap();
        for program in Program::ALL {
            let of_it = |(of, by, _): &&(&Row, Program, Verdict)| {
                (of.field, of.kind, *by) == (row.field, row.kind, program)
            };
            let (_, _, verdict) = verdicts.iter().find(of_it).unwrap();
            let (sign, count) = match verdict {
                Verdict::Failed(_) => ('!', &mut failed),
                Verdict::Passed('-') => ('-', &mut not),
                Verdict::Passed('t') => ('t', &mut tested),
                Verdict::Passed(sign) => (*sign, &mut run),
            };
            *count += 1;
            write!(text, " {sign}").unwrap();
        }
        text.push('\n');
    }
    writeln!(
        text,
        "a digit: run, with that exit code (*: any documented one, s: by the SIGTERM that was sent); t: a test of its own; -: cannot be; !: failed\n\
         {} kinds, {} programs: {run} cells run, {tested} tested elsewhere, {not} not applicable, {failed} failed",
        rows.len(),
        Program::ALL.len(),
    )
    .unwrap();
    text
}

/// A matrix that accepts everything would prove nothing.
#[test]
fn cell_with_a_wrong_expectation_fails() {
    let row = Row::new("test", "nothing is wrong", "exec \"$@\"", |_| Cell::Ends(0, ""));
    row.run(Program::Diagnostics, Some(0), "", "").unwrap();
    row.run(Program::Diagnostics, Some(0), "", "[ -e ring ]").unwrap();
    for (code, words, check) in [(1, "", ""), (0, "no such words", ""), (0, "", "[ ! -e ring ]")] {
        row.run(Program::Diagnostics, Some(code), words, check).unwrap_err();
    }
    let panics = "echo \"thread 'main' panicked at\" >&2; exit 1";
    let row = Row::new("test", "a panic", panics, |_| Cell::Documented);
    row.run(Program::Diagnostics, None, "", "").unwrap_err();
    let row = Row::new("test", "a signal", "kill -KILL $$", |_| Cell::Documented);
    row.run(Program::Diagnostics, None, "", "").unwrap_err();
    cell::expect_test("qemu-tests/tests/field/main.rs", "no_such_test").unwrap_err();
    cell::expect_test("no/such/file.rs", "judge").unwrap_err();
}
