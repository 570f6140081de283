//! Limits of a daemon of many rings, and of each of its rings.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Daemon;
use crate::common::rings::{Rings, data_process, ends_well};
use crate::rates::wait_in_vain;
use nix::unistd::Pid;
use ring_test_support::process::eventually;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};
use vhost_device_blockring::daemon::rings::room::{KEPT, SERVED};

/// The state of a ring, and why it is so.
fn shown(rings: &Rings, name: &str) -> (String, String) {
    let ring = rings.done("Show", &json!({ "name": name }))["ring"].take();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&ring["state"]), text(&ring["reason"]))
}

fn is_served(rings: &Rings, name: &str) {
    assert_eq!(shown(rings, name), ("serving".to_owned(), String::new()));
}

fn has_failed(rings: &Rings, name: &str, words: &str) {
    let (state, reason) = shown(rings, name);
    assert!(state == "failed" && reason.contains(words), "{name} is {state}: {reason}");
}

#[test]
fn limit_of_one_ring_is_no_other_rings_and_a_reload_changes_it() {
    let start = Instant::now();
    let rings = Rings::new(&["free"]);
    rings.configure("slow", "max-bytes-per-second = 1\nguard = \"off\"\n");
    let daemon = rings.start(&["--workers", "1"]);
    let mut slow = rings.guest("slow");
    wait_in_vain(&mut slow);
    let mut free = rings.guest("free");
    rings.carries("free", &mut free, "beside it");
    let counters = rings.done("Stats", &json!({ "name": "slow" }))["rings"][0]["counters"].take();
    assert_eq!((&counters["served"], &counters["rests"]), (&json!(1), &json!(1)));
    let shown = rings.done("Show", &json!({ "name": "slow" }))["ring"].take();
    let limits = (&shown["max_bytes_per_second"], &shown["max_requests_per_second"]);
    assert_eq!(limits, (&json!(1), &json!(null)));
    for method in ["Suspend", "Resume"] {
        rings.done(method, &json!({ "name": "slow" }));
    }
    rings.configure("slow", "max-bytes-per-second = \"1G\"\nguard = \"off\"\n");
    assert_eq!(rings.done("Reload", &json!({}))["changed"], json!(["slow"]));
    let mut slow = rings.guest("slow");
    for _ in 0..10 {
        assert_eq!(slow.read(3, &mut [0; 512]), 0);
    }
    wait_until_removed(&rings);
    rings.carries("free", &mut free, "all the time");
    assert!(start.elapsed() < Duration::from_secs(300));
    ends_well(daemon);
}

/// Has the limited ring rest again, and be removed meanwhile.
fn wait_until_removed(rings: &Rings) {
    rings.configure("slow", "max-bytes-per-second = 1\nguard = \"off\"\n");
    rings.done("Reload", &json!({}));
    let mut slow = rings.guest("slow");
    wait_in_vain(&mut slow);
    rings.done("Remove", &json!({ "name": "slow" }));
}

#[test]
fn ring_beyond_the_most_rings_is_refused_with_the_remedy() {
    let rings = Rings::new(&["a", "b", "c"]);
    let daemon = rings.start(&["--max-rings", "2"]);
    is_served(&rings, "a");
    is_served(&rings, "b");
    has_failed(&rings, "c", "--max-rings 2 is reached (remove a ring");
    let text = rings.text("d", "");
    let refused = rings.refused("Add", &json!({ "name": "d", "configuration": text }));
    assert!(refused.contains("--max-rings 2"), "{refused}");
    assert!(!rings.folder("d").join("ring").exists(), "nothing of it is made");
    // One whose name is free again, in the same step.
    fs::remove_file(rings.file("a")).unwrap();
    let answer = rings.done("Reload", &json!({}));
    assert_eq!((&answer["removed"], &answer["failed"]), (&json!(["a"]), &json!([])));
    is_served(&rings, "c");
    // A ring that is started anew keeps its place.
    rings.configure("c", "read-only = true\n");
    rings.configure("a", "");
    let answer = rings.done("Reload", &json!({}));
    assert_eq!(answer["failed"][0]["name"], "a");
    is_served(&rings, "c");
    has_failed(&rings, "a", "--max-rings 2");
    rings.done("Remove", &json!({ "name": "b" }));
    // In the order of their names.
    rings.done("Reload", &json!({}));
    is_served(&rings, "a");
    has_failed(&rings, "b", "--max-rings 2");
    rings.carries("a", &mut rings.guest("a"), "an item");
    ends_well(daemon);
}

#[test]
fn ring_beyond_the_most_memory_is_refused_with_the_remedy() {
    let rings = Rings::new(&["a", "b", "c"]);
    let daemon = rings.start(&["--max-memory", "128K"]);
    // In the order of their names.
    is_served(&rings, "a");
    is_served(&rings, "b");
    has_failed(&rings, "c", "--max-memory is 131072 (remove a ring");
    assert!(!rings.folder("c").join("ring").exists(), "nothing of it is left");
    rings.done("Remove", &json!({ "name": "a" }));
    rings.done("Add", &json!({ "name": "c" }));
    is_served(&rings, "c");
    // One that says nothing of its size is known when its file is open.
    rings.done("Remove", &json!({ "name": "b" }));
    fs::copy(rings.folder("c").join("ring"), rings.folder("b").join("ring")).unwrap();
    let text = rings.text("b", "").replace("size = \"64K\"\n", "");
    fs::write(rings.file("b"), &text).unwrap();
    rings.done("Add", &json!({ "name": "b" }));
    let answer = rings.done("Reload", &json!({}));
    assert_eq!((&answer["added"], &answer["changed"]), (&json!([]), &json!([])), "{answer}");
    assert_eq!(answer["failed"][0]["name"], "a", "{answer}");
    ends_well(daemon);
}

/// The number of descriptors that a process has open, once that does not change.
fn settled(pid: Pid) -> u64 {
    let open = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    let mut last = 0;
    eventually("it opens and closes nothing", || {
        std::thread::sleep(Duration::from_millis(100));
        std::mem::replace(&mut last, open()) == last
    });
    last
}

#[test]
fn ring_has_as_many_descriptors_as_is_reckoned() {
    const COUNT: u64 = 8;
    let names: Vec<_> = (0..COUNT).map(|number| format!("vm{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let rings = Rings::new(&names);
    let metrics = format!("unix:{}", rings.scene.path("m").display());
    let daemon = rings.start(&["--workers", "1", "--metrics", &metrics]);
    let control = Pid::from_raw(daemon.0.id().cast_signed());
    let processes = [(control, KEPT), (data_process(&daemon), SERVED)];
    let before = processes.map(|(pid, _)| settled(pid));
    for name in &names {
        rings.done("Remove", &json!({ "name": name }));
    }
    for ((pid, reckoned), before) in processes.into_iter().zip(before) {
        assert_eq!(before - settled(pid), COUNT * reckoned);
    }
    ends_well(daemon);
}

#[test]
fn ring_without_room_for_its_descriptors_is_refused_with_the_remedy() {
    let rings = Rings::new(&["a", "b", "c"]);
    let control = format!("unix:{}", rings.scene.path("control").display());
    let log = File::create(rings.scene.path("log")).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 224; exec \"$@\"", "sh"]);
    command.arg(env!("CARGO_BIN_EXE_vhost-device-blockring"));
    command.args(["--config", "rings.d", "--control", &control, "--workers", "1"]);
    command.current_dir(rings.scene.path(".")).stderr(log);
    let daemon = Daemon(command.spawn().unwrap());
    eventually("the rings are served", || rings.scene.logged("threads; the") == 1);
    let words = "its limit RLIMIT_NOFILE is 224 (raise it: LimitNOFILE= in the service";
    has_failed(&rings, "c", words);
    let text = rings.text("d", "");
    let refused = rings.refused("Add", &json!({ "name": "d", "configuration": text }));
    assert!(refused.contains(words), "{refused}");
    for name in ["a", "b"] {
        rings.carries(name, &mut rings.guest(name), "an item");
    }
    rings.done("Remove", &json!({ "name": "a" }));
    rings.done("Add", &json!({ "name": "c" }));
    ends_well(daemon);
}

#[test]
fn limits_of_many_rings_are_for_the_command_line_of_a_folder() {
    let rings = Rings::new(&[]);
    let words = |arguments: &[&str]| {
        let output = rings.scene.run(arguments);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for [option, value] in [["--max-rings", "2"], ["--max-memory", "1G"]] {
        let (code, text) = words(&["--socket-path", "s", "--blk-file", "r", option, value]);
        assert!(code == Some(2) && text.contains("--config has to name a folder"), "{text}");
        rings.configure("vm", &format!("{} = {value:?}\n", &option[2..]));
        let (code, text) = words(&["--config", "rings.d", "--check-config"]);
        assert!(code == Some(1) && text.contains("for the whole daemon"), "{text}");
    }
    for [option, value, wanted] in [
        ["--max-rings", "0", "1 to 1000000"],
        ["--max-memory", "much", "not a size"],
        ["--max-memory", "0", "must be at least 1"],
        ["--max-memory", "18446744073709551615", "larger than anything"],
        ["--max-bytes-per-second", "0", "at least 1"],
        ["--max-bytes-per-second", "1.5M", "not a size"],
        ["--max-requests-per-second", "0", "1 to 1000000000"],
        ["--max-requests-per-second", "10M", "1 to 1000000000"],
    ] {
        let (code, text) = words(&["--config", "rings.d", option, value]);
        assert!(code == Some(2) && text.contains(wanted), "{option} {value}: {text}");
    }
}
