//! The library's dependencies: few, and none that only a program or a driver needs.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

/// The most crates that the library with default features may consist of, itself included. What
/// only the build scripts of some of them need is not linked, and not counted.
const MOST: usize = 25;

/// Beginnings of the names of crates that belong to command lines, backends or drivers.
const NOT_HERE: [&str; 11] = [
    "clap",
    "env_logger",
    "indicatif",
    "signal-hook",
    "tokio",
    "vfio-",
    "vhost",
    "virtio-",
    "vm-memory",
    "vmm-sys-util",
    "seccompiler",
];

/// Returns the names of all crates behind edges of these kinds, the package itself included.
fn crates_of(package: &str, edges: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--prefix", "none", "--format", "{p}"])
        .args(["--edges", edges, "--package", package])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn assert_without(package: &str, crates: &BTreeSet<String>, beginnings: &[&str]) {
    for name in crates {
        let unwanted = beginnings.iter().any(|beginning| name.starts_with(beginning));
        assert!(!unwanted, "{package} depends on {name}");
    }
}

#[test]
fn library_needs_few_crates_and_none_of_programs_or_drivers() {
    let linked = crates_of("shared-block-ring", "normal");
    assert!(linked.contains("ring-os"), "{linked:?}");
    assert!(linked.len() <= MOST, "{} crates: {linked:?}", linked.len());
    let crates = crates_of("shared-block-ring", "normal,build");
    assert_without("shared-block-ring", &crates, &NOT_HERE);
}

#[test]
fn virtio_driver_needs_no_ring() {
    let crates = crates_of("virtio-blk-driver", "normal,build");
    assert!(crates.contains("vhost"), "{crates:?}");
    assert_without("virtio-blk-driver", &crates, &["shared-block-ring", "clap", "tokio"]);
}
