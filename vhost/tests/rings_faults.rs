//! What goes wrong at one ring of many, or with the daemon's processes, is no other ring's matter.
#![allow(clippy::unwrap_used)]

use crate::common::fuse::FuseFile;
use crate::common::rings::{Rings, data_process, ends_well, leaves_nothing};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use ring_test_support::front_end::MEMORY;
use ring_test_support::process::eventually;
use serde_json::json;
use std::fs::{self, File};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

#[test]
fn ring_that_cannot_be_served_keeps_no_other_from_it() {
    let rings = Rings::new(&["good", "bad"]);
    rings.configure("unreadable", "poll-us = \"often\"\n");
    nix::unistd::mkfifo(&rings.file("pipe"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs::write(rings.file("-odd name"), "").unwrap();
    fs::write(rings.folder("bad").join("ring"), vec![7; 65536]).unwrap();
    let daemon = rings.start(&[]);
    let state = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    let states =
        [("bad", "failed"), ("good", "serving"), ("pipe", "failed"), ("unreadable", "failed")];
    assert_eq!(rings.states(), states.map(|(name, is)| state(name, is)));
    let shown = rings.done("Show", &json!({ "name": "unreadable" }));
    assert!(shown["ring"]["reason"].as_str().unwrap().contains("poll-us"), "{shown}");
    assert_eq!(rings.scene.logged("not read: a ring's name begins with"), 1);
    leaves_nothing(&rings, "bad");
    let shown = rings.done("Show", &json!({ "name": "bad" }));
    let reason = shown["ring"]["reason"].as_str().unwrap();
    assert!(reason.contains("bad/ring"), "{reason}");
    fs::remove_file(rings.folder("bad").join("ring")).unwrap();
    rings.done("Add", &json!({ "name": "bad" }));
    rings.carries("bad", &mut rings.guest("bad"), "mended");
    rings.carries("good", &mut rings.guest("good"), "good");
    ends_well(daemon);
}

#[test]
fn ring_whose_file_is_truncated_is_lost_and_no_other() {
    let rings = Rings::new(&["lost", "sound"]);
    let mut daemon = rings.start(&["--workers", "1"]);
    let (mut lost, mut sound) = (rings.guest("lost"), rings.guest("sound"));
    rings.carries("lost", &mut lost, "before");
    File::options()
        .write(true)
        .open(rings.folder("lost").join("ring"))
        .unwrap()
        .set_len(512)
        .unwrap();
    assert_ne!(lost.write(100, &[1; 512]), 0);
    for round in 0..10 {
        rings.carries("sound", &mut sound, &format!("item {round}"));
    }
    let shown = rings.done("Show", &json!({ "name": "lost" }));
    assert!(shown["ring"]["fault"].as_str().unwrap().contains("truncated"));
    eventually("the log names the ring", || rings.scene.logged("lost: ") > 0);
    assert!(rings.refused("Drain", &json!({ "name": "lost" })).contains("truncated"));
    let removed = rings.refused("Remove", &json!({ "name": "lost" }));
    assert!(removed.contains("truncated"), "{removed}");
    rings.carries("sound", &mut sound, "in the end");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(0));
}

#[test]
fn data_process_that_is_killed_is_replaced_and_every_ring_goes_on() {
    let names = ["one", "two", "three"];
    let rings = Rings::new(&names);
    let daemon = rings.start(&[]);
    rings.carry_over(&names, || {
        let before = data_process(&daemon);
        kill(before, Signal::SIGKILL).unwrap();
        eventually("another process serves all rings", || {
            rings.states().iter().all(|(_, state)| state == "serving")
                && data_process(&daemon) != before
        });
    });
    ends_well(daemon);
}

#[test]
fn stop_that_reaches_both_processes_is_the_control_processs_matter() {
    let rings = Rings::new(&["vm"]);
    let daemon = rings.start(&[]);
    let mut guest = rings.guest("vm");
    let data = data_process(&daemon);
    // As a service manager, or a terminal, sends it.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(data, signal).unwrap();
        rings.carries("vm", &mut guest, "goes on");
    }
    assert_eq!(data_process(&daemon), data);
    guest.publish("the last item");
    kill(data, Signal::SIGTERM).unwrap();
    ends_well(daemon);
    assert_eq!(rings.scene.logged("has died"), 0);
}

#[test]
fn stop_ends_a_daemon_whose_data_process_stands_still() {
    let rings = Rings::new(&["vm"]);
    let mut daemon = rings.start(&[]);
    kill(data_process(&daemon), Signal::SIGSTOP).unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(1));
    assert_eq!(rings.scene.logged("the data process does not end: it is killed"), 1);
    leaves_nothing(&rings, "vm");
}

#[test]
fn daemon_that_is_killed_is_followed_by_another_at_once() {
    let names = ["one", "two", "three"];
    let rings = Rings::new(&names);
    let metrics = format!("unix:{}", rings.scene.path("metrics").display());
    let options = ["--metrics", &metrics];
    let mut daemon = rings.start(&options);
    rings.carry_over(&names, || {
        // The data process lets the guests go before it ends.
        daemon.0.kill().unwrap();
        daemon.0.wait().unwrap();
        daemon = rings.start(&options);
    });
    ends_well(daemon);
}

#[test]
fn daemon_is_upgraded_and_every_ring_goes_on() {
    let names = ["one", "two", "three"];
    let rings = Rings::new(&names);
    let daemon = rings.start(&[]);
    rings.carry_over(&names, || {
        let before = data_process(&daemon);
        rings.done("Upgrade", &json!({}));
        assert_ne!(data_process(&daemon), before);
    });
    ends_well(daemon);
}

#[test]
fn ring_that_ends_while_the_daemon_is_upgraded_is_made_durable() {
    let rings = Rings::new(&["kept"]);
    let daemon = rings.start(&[]);
    for _ in 0..10 {
        let text = rings.text("gone", "");
        rings.done("Add", &json!({ "name": "gone", "configuration": text }));
        rings.guest("gone").publish("an item");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // It is refused while the next process takes the ring over.
                while let Some(error) =
                    rings.call("Remove", &json!({ "name": "gone" })).get("error")
                {
                    assert_eq!(error, "io.blockring.Rings.Refused");
                }
            });
            scope.spawn(|| rings.done("Upgrade", &json!({})));
        });
    }
    assert_eq!(rings.states(), [("kept".to_owned(), "serving".to_owned())]);
    ends_well(daemon);
}

#[test]
fn ring_in_whose_turn_a_thread_hangs_is_given_up_and_the_others_go_on() {
    let rings = Rings::new(&["sound"]);
    rings.configure("stuck", "migratable = true\n");
    let mut fuse = FuseFile::mount(&rings.scene.path("log-on-fuse"));
    let daemon = rings.start(&["--workers", "1"]);
    let mut stuck = rings.guest("stuck");
    let region = VhostUserDirtyLogRegion {
        mmap_size: MEMORY / 4096 / 8,
        mmap_offset: 0,
        mmap_handle: fuse.open(),
    };
    stuck.wire.set_log_base(0, Some(region)).unwrap();
    fuse.stall();
    stuck.offer(0);
    stuck.kick();
    // The only thread waits for the log's first page.
    eventually("the ring is given up", || {
        rings.states().contains(&("stuck".to_owned(), "failed".to_owned()))
    });
    eventually("the other one is served", || {
        rings.states().contains(&("sound".to_owned(), "serving".to_owned()))
    });
    rings.carries("sound", &mut rings.guest("sound"), "after all");
    rings.done("Add", &json!({ "name": "stuck" }));
    rings.carries("stuck", &mut rings.guest("stuck"), "again");
    ends_well(daemon);
}
