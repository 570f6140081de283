//! The documents' code blocks, for tests that run them as they are written.

use std::path::Path;

/// Returns the one code block of a page with these words. The test of the documents finds this call
/// in the source of a test that a block names (CONTRIBUTING.md, "Blocks of the documents").
///
/// # Panics
/// If there is no such block, or more than one.
pub fn documented(page: &str, words: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = text.split("\n```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.split_once('\n').map(|(_language, code)| code));
    let found: Vec<_> = blocks.filter(|code| code.contains(words)).collect();
    assert_eq!(found.len(), 1, "code blocks of {page} with {words:?}: {found:#?}");
    found[0].to_owned()
}
