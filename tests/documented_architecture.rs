//! `docs/architecture.md` against the sources: functions, files, packages and modules with
//! `unsafe`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Top-level folders without product code.
const TEST_TOOLS: [&str; 5] = ["bench", "fuzz", "qemu-tests", "sim", "test-support"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// Returns the text below a heading of `docs/architecture.md`, up to the next one.
fn section(heading: &str) -> String {
    let text = page("docs/architecture.md");
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    rest.split("\n## ").next().unwrap().to_owned()
}

/// Returns what stands between single backquotes, without code blocks.
fn spans(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    prose.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the product's Rust files, without tests and benchmarks, as paths from the root.
fn sources() -> Vec<(String, String)> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "tests" && name != "benches" {
                    collect(&path, found);
                }
            } else if path.extension().is_some_and(|e| e == "rs") && name != "tests.rs" {
                found.push(path);
            }
        }
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_product =
            !name.starts_with('.') && !["benches", "target", "tests"].contains(&&*name);
        if path.is_dir() && is_product && !TEST_TOOLS.contains(&&*name) {
            collect(&path, &mut files);
        }
    }
    let relative = |path: &Path| path.strip_prefix(root()).unwrap().display().to_string();
    files.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

fn is_identifier(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn defines_function(text: &str, name: &str) -> bool {
    text.contains(&format!("fn {name}(")) || text.contains(&format!("fn {name}<"))
}

/// Whether a file implements or declares methods of `owner`.
fn has_methods_of(text: &str, owner: &str) -> bool {
    let words = |line: &str| line.split(|c: char| !c.is_alphanumeric()).any(|word| word == owner);
    text.lines()
        .map(str::trim_start)
        .any(|line| (line.starts_with("impl") || line.contains("trait ")) && words(line))
}

#[test]
fn functions_on_the_ways_of_a_request_and_of_an_item_exist() {
    let sources = sources();
    let mut functions = BTreeSet::new();
    for heading in ["The way of a request", "The way of an item"] {
        for span in spans(&section(heading)) {
            let Some((owner, name)) = span.split_once("::") else {
                if is_identifier(&span) && span.contains('_') {
                    let constant = format!("const {span}:");
                    let found = sources
                        .iter()
                        .any(|(_, text)| text.contains(&constant) || defines_function(text, &span));
                    assert!(found, "{heading}: no function or constant {span}");
                }
                continue;
            };
            let found = sources
                .iter()
                .any(|(_, text)| has_methods_of(text, owner) && defines_function(text, name));
            assert!(found, "{heading}: no function {span}");
            functions.insert(span);
        }
    }
    assert!(functions.len() >= 25, "{functions:?}");
}

/// Whether `path`, in which `*` stands for any characters of a file name, exists.
fn exists(path: &str) -> bool {
    let Some((before, after)) = path.split_once('*') else { return root().join(path).exists() };
    let (folder, start) = before.rsplit_once('/').unwrap();
    fs::read_dir(root().join(folder)).unwrap().any(|entry| {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        name.starts_with(start) && name.ends_with(after)
    })
}

/// Returns the pages that describe the present state, so without the changelog.
fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> =
        docs.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name)));
    pages
}

/// A type and one of its functions or variants: both words must still occur in the sources.
#[test]
fn types_and_their_members_in_the_documents_exist() {
    let sources = sources();
    let words: BTreeSet<&str> = sources
        .iter()
        .flat_map(|(_, text)| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .collect();
    let mut names = 0;
    for page in pages() {
        for span in spans(&fs::read_to_string(&page).unwrap()) {
            let path = span.split('(').next().unwrap();
            if path.contains("::") && path.split("::").all(is_identifier) {
                let missing = path.split("::").find(|part| !words.contains(part));
                assert!(missing.is_none(), "{}: no {span}", page.display());
                names += 1;
            }
        }
    }
    assert!(names >= 60, "{names}");
}

#[test]
fn files_and_folders_in_the_documents_exist() {
    let mut paths = 0;
    for page in pages() {
        for span in spans(&fs::read_to_string(&page).unwrap()) {
            let top = span.split('/').next().unwrap();
            let is_path = span.contains('/') && !span.contains(' ') && !span.contains("NAME");
            if is_path && top != "target" && !top.is_empty() && root().join(top).is_dir() {
                assert!(exists(&span), "{}: no {span}", page.display());
                paths += 1;
            }
        }
    }
    assert!(paths >= 60, "{paths}");
}

/// Returns the folders that a list of the workspace's manifest names.
fn listed(key: &str) -> Vec<String> {
    let manifest = page("Cargo.toml");
    let (_, folders) = manifest.split_once(&format!("\n{key} = [")).unwrap();
    let (folders, _) = folders.split_once(']').unwrap();
    folders.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_package_has_a_row_among_the_rooms() {
    let rooms = section("Rooms");
    for member in listed("members").iter().map(String::as_str).chain(["fuzz"]) {
        assert!(rooms.contains(&format!("\n| `{member}/`")), "no row for {member}/");
    }
}

#[test]
fn packages_that_are_no_tools_are_released_and_tested_while_one_edits() {
    let script = page("scripts/check-packages.sh");
    let (_, released) = script.split_once("\npackages=(").unwrap();
    let released: BTreeSet<_> =
        released.split(')').next().unwrap().split(' ').map(str::to_owned).collect();
    let name = |folder: &String| {
        let manifest = page(&format!("{folder}/Cargo.toml"));
        let (_, package) = manifest.split_once("[package]\nname = \"").unwrap();
        package.split('"').next().unwrap().to_owned()
    };
    let products = listed("default-members");
    assert_eq!(released, products.iter().map(name).collect(), "left: check-packages.sh");
    let contributing = page("CONTRIBUTING.md");
    let quick = contributing.lines().find(|line| line.contains("test.sh --quick")).unwrap();
    for folder in products.iter().filter(|folder| *folder != ".") {
        assert!(quick.contains(&format!("`{folder}/`")), "{quick} lacks {folder}/");
    }
}

/// Whether a line, without its comment, contains an `unsafe` block, function or implementation.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap();
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern"]
        .iter()
        .any(|word| code.contains(word))
        || code.trim_end().ends_with("unsafe")
}

#[test]
fn list_of_modules_with_unsafe_is_complete() {
    let section = section("Modules with unsafe");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let listed: BTreeSet<String> = rows.map(|row| spans(row).swap_remove(0)).collect();
    let with_unsafe: BTreeSet<String> = sources()
        .into_iter()
        .filter(|(_, text)| text.lines().any(is_unsafe))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(listed, with_unsafe, "left: docs/architecture.md, right: the sources");
}
