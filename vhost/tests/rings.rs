//! A daemon of many rings: each has its own guest and its own host, and none is in another one's
//! way.
#![allow(clippy::unwrap_used)]

use crate::common::rings::{LONG, Rings, answer, data_process, ends_well, leaves_nothing, send};
use crate::confinement::cannot_truncate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring_test_support::process::eventually;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

fn threads(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

#[test]
fn each_ring_carries_its_own_items() {
    let names: Vec<_> = (0..20).map(|number| format!("vm{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let rings = Rings::new(&names);
    let daemon = rings.start(&["--workers", "2"]);
    let mut guests: Vec<_> = names.iter().map(|name| rings.guest(name)).collect();
    for round in 0..3 {
        for (name, guest) in names.iter().zip(&mut guests) {
            rings.carries(name, guest, &format!("item {round} of {name}"));
        }
    }
    // One thread for each connection, two for the queues, and a few for all.
    let count = threads(data_process(&daemon));
    assert!(count <= names.len() + 2 + 6, "{count} threads for {} rings", names.len());
    drop(guests);
    ends_well(daemon);
    for name in names {
        leaves_nothing(&rings, name);
    }
}

/// How often the threads that drive queues have gone to sleep.
fn sleeps(pid: Pid) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_queues = threads.filter_map(|thread| {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let is_one = field("Name:\t")?.starts_with("queues ");
        is_one.then(|| field("voluntary_ctxt_switches:\t").unwrap().parse::<u64>().unwrap())
    });
    of_queues.sum()
}

#[test]
fn idle_rings_wake_no_thread() {
    let names: Vec<_> = (0..20).map(|number| format!("vm{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let rings = Rings::new(&names);
    let daemon = rings.start(&["--workers", "2"]);
    let mut guests: Vec<_> = names.iter().map(|name| rings.guest(name)).collect();
    for (name, guest) in names.iter().zip(&mut guests) {
        rings.carries(name, guest, "an item");
    }
    let data = data_process(&daemon);
    let mut before = 0;
    eventually("the threads sleep for a while", || {
        std::thread::sleep(Duration::from_secs(1));
        std::mem::replace(&mut before, sleeps(data)) == sleeps(data)
    });
    ends_well(daemon);
}

#[test]
fn rings_come_and_go_while_others_are_served() {
    let rings = Rings::new(&["one", "two"]);
    let daemon = rings.start(&["--workers", "1"]);
    let (mut one, mut two) = (rings.guest("one"), rings.guest("two"));
    rings.carries("one", &mut one, "before");
    rings.done("Remove", &json!({ "name": "two" }));
    leaves_nothing(&rings, "two");
    assert_eq!(two.completion_within(Duration::from_millis(10)), None);
    drop(two);
    assert!(rings.refused("Remove", &json!({ "name": "two" })).contains("NoSuchRing"));
    rings.carries("one", &mut one, "meanwhile");
    rings.done("Add", &json!({ "name": "two" }));
    assert!(rings.refused("Add", &json!({ "name": "two" })).contains("there already"));
    rings.carries("two", &mut rings.guest("two"), "after");
    let text = rings.text("three", "");
    rings.done("Add", &json!({ "name": "three", "configuration": text }));
    rings.carries("three", &mut rings.guest("three"), "of a text");
    rings.carries("one", &mut one, "in the end");
    ends_well(daemon);
}

#[test]
fn folder_is_read_again() {
    let rings = Rings::new(&["kept", "gone", "changed", "broken"]);
    let daemon = rings.start(&[]);
    let mut kept = rings.guest("kept");
    fs::remove_file(rings.file("gone")).unwrap();
    rings.configure("changed", "read-only = true\n");
    rings.configure("broken", "poll-us = \"often\"\n");
    rings.configure("new", "");
    let answer = rings.done("Reload", &json!({}));
    assert_eq!(answer["added"], json!(["new"]));
    assert_eq!(answer["removed"], json!(["gone"]));
    assert_eq!(answer["changed"], json!(["changed"]));
    assert_eq!(answer["failed"][0]["name"], "broken");
    let shown = |name: &str| rings.done("Show", &json!({ "name": name }))["ring"].take();
    assert_eq!(shown("broken")["state"], "serving", "as it was");
    let served = |name: &str| (name.to_owned(), "serving".to_owned());
    assert_eq!(rings.states(), ["broken", "changed", "kept", "new"].map(served));
    assert_ne!(rings.guest("changed").write(100, &[1; 512]), 0, "it is read-only now");
    rings.carries("kept", &mut kept, "all the time");
    // By a signal, too.
    fs::remove_file(rings.file("new")).unwrap();
    daemon.signal(Signal::SIGHUP);
    eventually("the ring is gone", || rings.states().len() == 3);
    ends_well(daemon);
}

#[test]
fn folder_is_read_again_while_a_ring_is_being_started() {
    let nothing: fn(&Rings) = |_| {};
    let change: fn(&Rings) = |rings| rings.configure("vm", "poll-us = 7\n");
    let remove: fn(&Rings) = |rings| fs::remove_file(rings.file("vm")).unwrap();
    for (edit, is_changed, is_removed) in
        [(nothing, false, false), (change, true, false), (remove, false, true)]
    {
        let rings = Rings::new(&[]);
        // A ring that is started anew has its own room.
        let daemon = rings.start(&["--max-rings", "1", "--max-memory", "64K"]);
        rings.configure("vm", "");
        let data = data_process(&daemon);
        kill(data, Signal::SIGSTOP).unwrap();
        std::thread::scope(|scope| {
            let added = scope.spawn(|| rings.done("Add", &json!({ "name": "vm" })));
            let starting = ("vm".to_owned(), "starting".to_owned());
            eventually("it is being started", || rings.states() == [starting.clone()]);
            edit(&rings);
            let reload = send(&rings.scene.path("control"), "Reload", &json!({}));
            // A call that came later is answered: the folder was read.
            assert_eq!(rings.states(), [starting]);
            kill(data, Signal::SIGCONT).unwrap();
            added.join().unwrap();
            let answer = answer(reload)["parameters"].take();
            let changes = |is: bool| if is { json!(["vm"]) } else { json!([]) };
            assert_eq!(answer["changed"], changes(is_changed), "{answer}");
            assert_eq!(answer["removed"], changes(is_removed), "{answer}");
            assert_eq!((&answer["added"], &answer["failed"]), (&json!([]), &json!([])), "{answer}");
        });
        assert_eq!(rings.states().len(), usize::from(!is_removed));
        if !is_removed {
            rings.carries("vm", &mut rings.guest("vm"), "then");
        }
        ends_well(daemon);
    }
}

#[test]
fn client_with_the_region_cannot_truncate_it() {
    let rings = Rings::new(&["vm"]);
    let daemon = rings.start(&[]);
    cannot_truncate(&rings.folder("vm"));
    ends_well(daemon);
}

#[test]
fn drain_waits_for_the_consumer() {
    let rings = Rings::new(&["vm"]);
    let daemon = rings.start(&[]);
    let mut guest = rings.guest("vm");
    rings.done("Drain", &json!({ "name": "vm" }));
    guest.publish("an item");
    let timeout = json!({ "name": "vm", "timeout_ms": 50 });
    assert!(rings.refused("Drain", &timeout).contains("TimedOut"));
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| rings.done("Drain", &json!({ "name": "vm" })));
        assert_eq!(rings.take("vm"), ["an item"]);
        drained.join().unwrap();
    });
    rings.done("Suspend", &json!({ "name": "vm" }));
    assert_eq!(rings.done("Show", &json!({ "name": "vm" }))["ring"]["suspended"], true);
    rings.done("Resume", &json!({ "name": "vm" }));
    assert_eq!(rings.done("Show", &json!({ "name": "vm" }))["ring"]["suspended"], false);
    let counters = rings.done("Stats", &json!({}))["rings"][0]["counters"].take();
    assert_eq!(counters["published"], 1);
    ends_well(daemon);
}

#[test]
fn control_socket_takes_no_nonsense() {
    let rings = Rings::new(&["vm"]);
    let daemon = rings.start(&[]);
    let endless = vec![b'x'; 2 << 20];
    for nonsense in [&b"\0"[..], b"hello\0", b"{}\0", b"[1,2]\0", &endless] {
        let mut stream = UnixStream::connect(rings.scene.path("control")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // It may be closed before all of that is sent.
        let _ = stream.write_all(nonsense);
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "nothing is answered");
    }
    for (method, parameters) in [
        ("Nothing", json!({})),
        ("Remove", json!({})),
        ("Add", json!({ "name": "../vm" })),
        ("Add", json!({ "name": "a", "configuration": "socket-path = 1.5" })),
        ("Drain", json!({ "name": "vm", "timeout_ms": "long" })),
    ] {
        rings.refused(method, &parameters);
    }
    // Silent clients take nobody's place.
    let _silent: Vec<_> =
        (0..200).map(|_| UnixStream::connect(rings.scene.path("control")).unwrap()).collect();
    assert_eq!(rings.states().len(), 1);
    ends_well(daemon);
}

#[test]
fn wrong_command_line_is_refused() {
    let rings = Rings::new(&["vm"]);
    let words = |arguments: &[&str]| {
        let output = rings.scene.run(arguments);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = words(&["--config", "rings.d", "--blk-file", "ring"]);
    assert!(code == Some(2) && text.contains("--blk-file is about one ring"), "{text}");
    let (code, text) = words(&["--socket-path", "s", "--blk-file", "r", "--workers", "2"]);
    assert!(code == Some(2) && text.contains("--config has to name a folder"), "{text}");
    let (code, text) = words(&["--config", "rings.d", "--control", "/run/control"]);
    assert!(code == Some(2) && text.contains("unix:PATH"), "{text}");
    let checked = rings.scene.run(&["--config", "rings.d", "--check-config"]);
    assert_eq!(checked.stdout, b"the configuration is sound; rings: 1\n");
    rings.configure("wrong", "sise = 1\n");
    let (code, text) = words(&["--config", "rings.d", "--check-config"]);
    assert!(code == Some(1) && text.contains("wrong.toml") && text.contains("sise"), "{text}");
    assert!(!Path::new(&rings.folder("vm").join("s")).exists());
}
