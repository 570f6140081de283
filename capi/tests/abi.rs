//! The ABI: the functions of the version script, each with its version, are what the shared library
//! exports, what the static one shows, and what the header declares.
#![allow(clippy::unwrap_used)]

mod common;

use common::{here, link, run};
use std::collections::BTreeSet;
use std::process::Command;
use tempfile::TempDir;

/// Returns the functions of the version script with their versions, as `nm` writes them.
fn promised() -> BTreeSet<String> {
    let script = std::fs::read_to_string(here("blockring.map")).unwrap();
    let (mut functions, mut version) = (BTreeSet::new(), "");
    for line in script.lines() {
        if let Some(node) = line.strip_suffix(" {") {
            version = node;
        }
        if let Some(function) = line.trim().strip_suffix(';').filter(|name| name.len() > 1) {
            functions.insert(format!("{function}@@{version}"));
        }
    }
    functions.retain(|name| !name.starts_with('}'));
    functions
}

fn names(functions: &BTreeSet<String>) -> BTreeSet<&str> {
    functions.iter().map(|function| function.split('@').next().unwrap()).collect()
}

#[test]
fn shared_library_exports_the_promised_functions_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    link(folder.path());
    let library = folder.path().join("libblockring.so");
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let symbols = symbols.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        (words.next()? != "A").then(|| words.next().unwrap().to_owned())
    });
    assert_eq!(symbols.collect::<BTreeSet<_>>(), promised(), "left: exported, right: promised");
    let dynamic = run(Command::new("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains("Library soname: [libblockring.so.0]"), "{dynamic}");
}

#[test]
fn static_library_shows_the_promised_functions_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    link(folder.path());
    let library = folder.path().join("libblockring.a");
    let symbols = run(Command::new("nm").args(["-g", "--defined-only"]).arg(&library));
    let symbols = symbols.lines().filter_map(|line| line.split(' ').nth(2));
    assert_eq!(symbols.collect::<BTreeSet<_>>(), names(&promised()));
}

#[test]
fn header_declares_the_promised_functions_and_no_others() {
    let header = std::fs::read_to_string(here("include/blockring.h")).unwrap();
    let declared = header.lines().filter(|line| !line.starts_with(" *")).filter_map(|line| {
        let name = line.split_once('(')?.0.rsplit([' ', '*']).next()?;
        name.starts_with("blockring_").then_some(name)
    });
    assert_eq!(declared.collect::<BTreeSet<_>>(), names(&promised()));
}
