//! The configurations in `docs/front-ends.md`, compared with the scripted front ends: the programs
//! themselves need KVM, which the tests do without.

use super::cloud_hypervisor::V53;
use super::crosvm::CROSVM;
use super::firecracker::{UNSAFE, WRITEBACK};
use serde_json::Value;
use std::collections::BTreeMap;
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

/// Returns the text below the heading of a front end, and its first block.
fn section(name: &str) -> (String, String) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/front-ends.md");
    let text = std::fs::read_to_string(path).unwrap();
    let heading = format!("\n### {name}\n");
    let (_, rest) = text.split_once(&heading).unwrap();
    let section = rest.split("\n### ").next().unwrap();
    let block = section.split("```").nth(1).unwrap();
    // Behind the block's language.
    let (_, block) = block.split_once('\n').unwrap();
    (section.to_owned(), block.replace("\\\n", " "))
}

/// Returns the value of an option, as keys and their values.
fn option<'a>(line: &'a str, name: &str) -> BTreeMap<&'a str, &'a str> {
    let mut words = line.split_whitespace().skip_while(|word| *word != name);
    let value = words.nth(1).unwrap();
    value.split(',').map(|part| part.split_once('=').unwrap_or((part, ""))).collect()
}

#[test]
fn cloud_hypervisor_is_configured_as_its_script_has_it() {
    let (text, line) = section("Cloud Hypervisor");
    assert_eq!(option(&line, "--memory")["shared"], "on");
    let disk = option(&line, "--disk");
    let keys: Vec<_> = disk.keys().copied().collect();
    assert_eq!(keys, ["num_queues", "queue_size", "socket", "vhost_user"]);
    assert_eq!(disk["vhost_user"], "on");
    let size = V53.queue_size.to_string();
    assert_eq!(disk["queue_size"], size);
    assert!(text.contains(&format!("and `queue_size` {size}.")), "{text}");
}

#[test]
fn firecracker_is_configured_as_its_script_has_it() {
    let (text, json) = section("Firecracker");
    let config: Value = serde_json::from_str(&json).unwrap();
    let drives = config["drives"].as_array().unwrap();
    let drive = drives.iter().find(|drive| drive["socket"].is_string());
    let drive = drive.unwrap().as_object().unwrap();
    // Firecracker refuses other keys, such as `path_on_host`, beside `socket`.
    let keys: Vec<_> = drive.keys().map(String::as_str).collect();
    assert_eq!(keys, ["cache_type", "drive_id", "is_root_device", "socket"]);
    let is_offered = |features: u64| features & 1 << VIRTIO_BLK_F_FLUSH != 0;
    assert_eq!(drive["cache_type"], "Writeback");
    assert!(is_offered(WRITEBACK.features));
    assert!(text.contains("`\"Unsafe\"` if it is left out"), "{text}");
    assert!(!is_offered(UNSAFE.features));
}

#[test]
fn crosvm_is_configured_as_its_script_has_it() {
    let (text, line) = section("crosvm");
    let disk = option(&line, "--vhost-user");
    assert_eq!(disk.keys().copied().collect::<Vec<_>>(), ["block", "socket"]);
    assert!(text.contains(&format!("`max-queue-size={}`", CROSVM.queue_size)), "{text}");
}
