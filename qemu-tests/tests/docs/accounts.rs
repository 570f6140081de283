//! An account of all blocks, and the files beside the documents.

use crate::page::{Block, Notes, Treatment, all, blocks, commands};
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
                    let file = block.notes.run_by.clone().unwrap_or_default();
                    let path = binaries::workspace().join(&file);
                    let source = std::fs::read_to_string(path);
                    let source = source.unwrap_or_else(|e| panic!("{place}: {file}: {e}"));
                    expect_run_by(&source, &block, &page);
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

/// Another test, or a script, reads a block from its page and runs it, or has the words of all its
/// commands.
fn expect_run_by(source: &str, block: &Block, page: &str) {
    let is_read = source.split("documented ").chain(source.split("documented(")).any(|call| {
        let mut quoted = call.split('"').skip(1).step_by(2);
        quoted.next() == Some(page) && quoted.next().is_some_and(|words| block.text.contains(words))
    });
    if is_read {
        return;
    }
    for command in commands(&block.text) {
        let command = command.split('#').next().unwrap_or_default();
        for word in command.split_whitespace() {
            let (place, file) = (&block.place, block.notes.run_by.as_deref().unwrap_or_default());
            assert!(source.contains(word), "{place}: {file} neither reads this nor has {word}");
        }
    }
}

#[test]
fn block_is_run_by_a_test_that_reads_it_or_has_its_words() {
    let block = |text: &str| {
        let (place, language) = ("page.md:1".to_owned(), "sh".to_owned());
        let notes = Notes { run_by: Some("test.rs".to_owned()), ..Notes::default() };
        Block { place, language, text: text.to_owned(), notes }
    };
    let is_run = |source: &str, text: &str| {
        let run = || expect_run_by(source, &block(text), "page.md");
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_ok()
    };
    let text = "start --now one # at once\nsend two\n";
    assert!(is_run(r#"run(documented("page.md", "send two"))"#, text));
    assert!(is_run(r#"documented "page.md" "start --now" | run"#, text));
    assert!(is_run("start --now one; send two", text));
    assert!(!is_run(r#"run(documented("page.md", "send three"))"#, text));
    assert!(!is_run(r#"run(documented("other.md", "send two"))"#, text));
    assert!(!is_run("start one; send two", text));
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
        let built = binaries::programs().unwrap();
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
    let programs = binaries::programs().unwrap().blockring();
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
