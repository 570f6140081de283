//! An account of all blocks, and the files beside the documents.

use crate::page::{Treatment, all, blocks, commands};
use qemu_tests::binaries;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Blocks that are not run. One more needs a better reason than that it is tedious.
const NOT_RUN_AT_MOST: usize = 5;

#[test]
fn every_block_is_read_by_a_test_or_says_why_not() {
    let mut counts = BTreeMap::new();
    for page in all() {
        for block in blocks(&page) {
            let treatment = block.treatment();
            *counts.entry(treatment).or_insert(0) += 1;
            let place = &block.place;
            match treatment {
                Treatment::Shown => {}
                Treatment::RunElsewhere => {
                    let test = block.notes.run_by.unwrap_or_default();
                    assert!(binaries::workspace().join(&test).exists(), "{place}: no {test}");
                }
                Treatment::Compiled => expect_compiled(place, &block.text),
                Treatment::NotRun => {
                    println!("not run: {place}: {}", block.notes.not_run.unwrap_or_default());
                    for line in commands(&block.text) {
                        expect_options(place, &line);
                    }
                }
                _ => {
                    let is_read = crate::READ.contains(&page.as_str());
                    assert!(is_read, "{place}: no session reads this page (tests/docs/main.rs)");
                }
            }
        }
    }
    println!("{counts:?}");
    let not_run = counts.get(&Treatment::NotRun).copied().unwrap_or_default();
    assert!(not_run <= NOT_RUN_AT_MOST, "{not_run} blocks are not run");
}

/// The lines of code in a page are those of a test, whatever their indentation and comments.
fn expect_compiled(place: &str, code: &str) {
    let lines = |text: &str| -> Vec<String> {
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
        code.filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    let test = std::fs::read_to_string(binaries::workspace().join("tests/readme.rs")).unwrap();
    let (test, code) = (lines(&test), lines(code));
    let mut rest = test.iter();
    for line in &code {
        assert!(rest.any(|found| found == line), "{place}: tests/readme.rs lacks: {line}");
    }
}

/// The options of a command that is not run are those that its program knows.
fn expect_options(place: &str, line: &str) {
    let line = line.split('#').next().unwrap_or_default();
    for command in line.split(['|', ';', '&']) {
        let words: Vec<_> = command.split_whitespace().collect();
        let built = binaries::release().unwrap();
        let mut help = match words.as_slice() {
            ["blockring", subcommand, ..] => {
                let mut command = Command::new(built.blockring());
                command.arg(subcommand);
                command
            }
            ["vhost-device-blockring", ..] => Command::new(built.vhost_device_blockring()),
            [script, ..] if script.starts_with("scripts/") => {
                Command::new(binaries::workspace().join(script))
            }
            _ => continue,
        };
        let output = help.arg("--help").output().unwrap();
        assert!(output.status.success(), "{place}: {command}: {output:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        let known: Vec<_> = help.split(|c: char| !c.is_alphanumeric() && c != '-').collect();
        for option in words.iter().filter(|word| word.starts_with("--")) {
            let name = option.split('=').next().unwrap_or_default();
            assert!(known.contains(&name), "{place}: {} has no option {name}", words[0]);
        }
    }
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Other files have tests of their own: units in a system that has the packages
/// (scripts/test-packages.sh), alert rules with promtool (metrics/tests/contrib.rs), programs.
#[test]
fn files_beside_the_documents_are_accepted_by_their_programs() {
    let mut files = Vec::new();
    for folder in ["examples", "packaging/etc", "packaging/vhost-user", "contrib"] {
        files_below(&binaries::workspace().join(folder), &mut files);
    }
    let scratch = tempfile::tempdir().unwrap();
    let programs = binaries::release().unwrap().blockring();
    let mut path = vec![programs.parent().unwrap().to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    let mut checked = 0;
    for file in files {
        let place = file.display().to_string();
        let kind = file.extension().unwrap_or_default().to_string_lossy().into_owned();
        if matches!(kind.as_str(), "rs" | "yml") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        // Folders of a host that has the packages.
        let text =
            text.replace("/var/lib/blockring/forward", &scratch.path().display().to_string());
        let copy = scratch.path().join(file.file_name().unwrap());
        std::fs::write(&copy, &text).unwrap();
        if let Some(command) = crate::files::check(&place, &kind, &copy, &text) {
            let mut shell = Command::new("bash");
            shell.args(["-euc", &command]).env("PATH", std::env::join_paths(&path).unwrap());
            let output = shell.output().unwrap();
            assert!(output.status.success(), "{place}: {output:?}");
        }
        checked += 1;
    }
    println!("{checked} files");
    assert!(checked >= 5, "{checked}");
}
