//! The parts of the backend refer to each other in one direction: the daemon to the front end's
//! side, both to the data path, and nothing the other way.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// The parts of `src/`, each of which may name itself and those in front of it.
const PARTS: [&str; 3] = ["data_path", "front_end", "daemon"];

/// Returns every source file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Returns the modules that a source names directly under `crate::`.
fn named(source: &str) -> Vec<&str> {
    let behind = source.split("crate::").skip(1);
    let end =
        |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    behind.map(|text| &text[..end(text)]).filter(|module| !module.is_empty()).collect()
}

#[test]
fn parts_refer_to_each_other_in_one_direction() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut checked, mut wrong) = (0, Vec::new());
    for (index, part) in PARTS.iter().enumerate() {
        for path in sources(&root.join(part)) {
            let source = std::fs::read_to_string(&path).unwrap();
            for module in named(&source) {
                checked += 1;
                if !PARTS[..=index].contains(&module) {
                    wrong.push(format!("{}: crate::{module}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 50, "{checked} imports are not those of three parts");
}

#[test]
fn program_starts_the_daemon_and_is_made_of_the_three_parts() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut names: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["daemon", "data_path", "front_end", "lib.rs", "main.rs"]);
}
