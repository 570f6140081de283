//! `include/blockring.h` is what cbindgen makes of the sources, and its functions are those that the
//! library exports.
//!
//! After a change of the sources: `BLOCKRING_WRITE=1 cargo test -p libblockring --test header`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// The files with what the header has, in its order; cbindgen finds their modules.
const SOURCES: [&str; 7] = [
    "code.rs",
    "types.rs",
    "position.rs",
    "ring.rs",
    "producer/mod.rs",
    "consumer/mod.rs",
    "control.rs",
];

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Compares a file with what it must be, or writes it if that is asked for.
fn expect_file(name: &str, text: &str) {
    let path = here(name);
    if std::env::var_os("BLOCKRING_WRITE").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "{name} is not what the sources make of it: BLOCKRING_WRITE=1 writes it"
    );
}

#[test]
fn header_is_made_from_the_sources() {
    let config = cbindgen::Config::from_file(here("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(here("src").join(source));
    }
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    expect_file("include/blockring.h", &String::from_utf8(header).unwrap());
}
