//! The tests that `docs/field-reports.md` names exist, and each report names one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn document() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/field-reports.md")).unwrap()
}

/// The rows of all tables, without their heads.
fn rows(document: &str) -> Vec<Vec<&str>> {
    let lines = document.lines().filter(|line| line.starts_with("| "));
    let cells = lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect());
    cells.filter(|cells: &Vec<&str>| cells[0] != "report").collect()
}

/// All Rust files below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let mut all: Vec<_> =
        files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).collect();
    all.extend(folders.iter().flat_map(|folder| sources(folder)));
    all
}

#[test]
fn field_reports_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["tests", "cli/tests", "vhost/tests", "sim/tests", "qemu-tests/tests"];
    let code: String = folders
        .iter()
        .flat_map(|folder| sources(&root.join(folder)))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let document = document();
    let is_test = |word: &&str| {
        word.matches('_').count() >= 3
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    // Every other piece is between two backquotes.
    let names: BTreeSet<&str> = document.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        assert!(code.contains(&format!("fn {name}(")), "{name} is no test");
    }
}

#[test]
fn field_reports_name_a_test_for_every_bug() {
    let document = document();
    let rows = rows(&document);
    assert!(rows.len() >= 30, "{}", rows.len());
    let sources: BTreeSet<&str> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(sources.len(), rows.len(), "a report stands there twice");
    for row in rows {
        assert_eq!(row.len(), 4, "{row:?}");
        assert!(row[0].contains('/') && row[0].contains('#'), "{row:?}");
        assert!(!row[3].contains("bug, mended") || row[3].contains('`'), "{row:?}");
    }
}
