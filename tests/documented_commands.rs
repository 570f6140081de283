//! Commands and configurations in the documents, which fail with one wrong word.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the paths of README, `docs/*.md`, and the source with the backend's own examples.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = vec![root.join("README.md"), root.join("vhost/src/daemon/config.rs")];
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    all.extend(docs.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    all
}

/// Returns the lines of all documents that contain `words`, each behind its document's name.
fn lines_with(words: &str) -> Vec<String> {
    let lines = documents().into_iter().flat_map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let found = text.lines().filter(|line| line.contains(words)).map(str::to_owned);
        found.map(|line| format!("{}: {line}", path.display())).collect::<Vec<_>>()
    });
    lines.collect()
}

/// The backend serves as many queues as VMMs ask for by default: one for each processor of the
/// guest.
#[test]
fn disk_of_a_documented_guest_has_the_vmms_number_of_queues() {
    let by_command_line = lines_with("-device vhost-user-blk-pci");
    assert!(by_command_line.len() >= 4, "{by_command_line:?}");
    let by_protocol = lines_with("\"driver\": \"vhost-user-blk-pci\"");
    assert!(!by_protocol.is_empty());
    for line in by_command_line.iter().chain(&by_protocol) {
        assert!(!line.contains("num-queues"), "{line}");
    }
    let texts: Vec<_> = documents().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let disks: Vec<_> =
        texts.iter().flat_map(|text| text.split("<disk type='vhostuser'").skip(1)).collect();
    assert!(!disks.is_empty());
    for disk in disks {
        let (disk, _) = disk.split_once("</disk>").unwrap();
        assert!(!disk.contains("queues="), "{disk}");
    }
}

/// The backend cannot reach memory that is not shared.
#[test]
fn memory_of_a_documented_guest_is_shared() {
    for line in lines_with("memory-backend-") {
        assert!(line.contains("share=on"), "{line}");
    }
}

/// Returns the anchor that a heading gets where Markdown is shown: lower case, spaces as hyphens,
/// without punctuation.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Returns the headings of a Markdown text, without those in code blocks.
fn headings(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2).flat_map(str::lines);
    prose.filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#')).collect()
}

#[test]
fn links_of_the_documents_lead_to_files_and_headings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"].map(|page| root.join(page));
    let mut links = 0;
    for page in documents().into_iter().chain(pages) {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: no file for {link}", page.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let found = headings(&text).into_iter().any(|line| anchor(line) == heading);
                assert!(found, "{}: no heading for {link}", page.display());
            }
            links += 1;
        }
    }
    assert!(links >= 40, "{links}");
}
