//! The daemon as its operator and the processes on the host meet it; no front end attaches.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{Daemon, Scene, eventually, fails};
use nix::sys::signal::Signal;
use ring_simulation::Unlocked;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{
    BlockDevice, Consumer, Control, CreateOptions, Error, OpenOptions, Position, Producer,
    VirtioDevice, create,
};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

#[test]
fn capabilities_are_json() {
    let output = Scene::new().run(&["--print-capabilities"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["type"], "block");
    assert_eq!(json["features"], serde_json::json!(["read-only", "blk-file"]));
}

#[test]
fn wrong_use_is_answered_in_words() {
    let scene = Scene::new();
    fails(&scene.run(&["--blk-file", "ring"]), 2, "--socket-path");
    fails(
        &scene.run(&["--socket-path", "s", "--blk-file", "ring"]),
        1,
        "ring: cannot open: No such file",
    );
    fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "--size 8M makes it");
    std::fs::write(scene.path("ring"), vec![0; 65536]).unwrap();
    fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "not a ring");
    fails(&scene.run(&["--socket-path", "s", "--blk-file", "new", "--size", "1K"]), 1, "too small");
    assert!(!scene.path("new").exists() && !scene.path("s").exists());
    fails(&scene.run(&["--fd", "77", "--blk-file", "ring"]), 1, "no such inherited descriptor");
    fails(
        &scene.run(&[
            "--socket-path",
            "s",
            "--blk-file",
            "ring",
            "--serial",
            "much too long for a serial",
        ]),
        2,
        "20",
    );
    std::fs::write(scene.path("s"), "precious").unwrap();
    fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "not a socket");
    assert_eq!(std::fs::read(scene.path("s")).unwrap(), b"precious");
}

#[test]
fn a_second_daemon_is_refused_and_a_stale_socket_replaced() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    for (socket, words) in [("s", "in use"), ("other", "already has a producer")] {
        let second = scene.run(&["--socket-path", socket, "--blk-file", "ring"]);
        for words in [words, &format!("process {}", daemon.0.id()), "end", "SIGTERM"] {
            fails(&second, 1, words);
        }
    }
    drop(daemon);
    assert!(scene.path("s").exists(), "SIGKILL leaves its sockets behind");
    let mut daemon = scene.start(&[]);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.0.wait().unwrap().success());
    assert!(!scene.path("s").exists() && !scene.path("c").exists());
}

#[test]
fn the_region_goes_to_one_consumer_at_a_time() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let mut consumer =
        Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "first").unwrap();
    match scene.connect(Role::Consumer).err() {
        Some(Error::Held { holder, .. }) => {
            assert_eq!(holder, Some(std::process::id().cast_signed()));
        }
        other => panic!("{other:?}"),
    }
    let words = scene.connect(Role::Producer).err().unwrap().to_string();
    assert!(words.contains("the guest is the producer"), "{words}");
    // Also around the backend, on the file itself.
    let file = || OpenOptions::default().open(&scene.path("ring")).unwrap();
    assert!(matches!(Consumer::attach(file(), "q", "c"), Err(Error::Held { .. })));
    match Producer::attach(file(), "q", "p").err() {
        Some(Error::Held { holder, .. }) => assert_eq!(holder, Some(daemon.0.id().cast_signed())),
        other => panic!("{other:?}"),
    }
    consumer.detach();
    scene.connect(Role::Consumer).unwrap();
}

#[test]
fn a_role_ends_with_its_device_whoever_has_its_descriptors() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let device = scene.connect(Role::Consumer).unwrap();
    // As a process has them that is being started meanwhile.
    let ring = scene.path("ring").canonicalize().unwrap();
    let inherited: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|descriptor| std::fs::read_link(descriptor).is_ok_and(|target| target == ring))
        .map(|descriptor| {
            let number = descriptor.file_name().unwrap().to_str().unwrap().parse().unwrap();
            // SAFETY: it is open as long as the device, and only duplicated here.
            let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
            borrowed.try_clone_to_owned().unwrap()
        })
        .collect();
    assert!(!inherited.is_empty());
    drop(device);
    scene.connect(Role::Consumer).unwrap();
}

#[test]
fn who_stands_beside_can_look_and_suspend() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "c").unwrap();
    let device = scene.connect(Role::Control).unwrap();
    assert_eq!(device.counters()["connections"], 0);
    let mut control = Control::open(device).unwrap();
    control.suspend().unwrap();
    assert!(consumer.debug_info().unwrap().suspend);
}

#[test]
fn a_ring_for_a_guest_that_produces_is_lent_to_its_consumer_in_place() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let file = Unlocked(OpenOptions::default().open(&scene.path("ring")).unwrap());
    let mut producer = Producer::attach(file, "q", "p").unwrap();
    let end = producer.push("item").unwrap();
    producer.advance(end).unwrap();
    let framed = b"\x04\0\0\0item";
    let lent = |role| scene.connect(role).unwrap().lend(Position::ZERO, end).map(<[u8]>::to_vec);
    assert_eq!(lent(Role::Consumer), Some(framed.to_vec()));
    assert_eq!(lent(Role::Control), None);
}

/// Its lock is given back to be taken again from the next daemon: until then somebody else may consume.
#[test]
fn a_consumer_that_looks_for_its_daemon_is_lent_nothing_and_can_read() {
    let scene = Scene::new();
    let mut daemon = scene.start(&[]);
    let file = Unlocked(OpenOptions::default().open(&scene.path("ring")).unwrap());
    let mut producer = Producer::attach(file, "q", "p").unwrap();
    let end = producer.push("item").unwrap();
    producer.advance(end).unwrap();
    let mut device = scene.connect(Role::Consumer).unwrap();
    daemon.signal(Signal::SIGKILL);
    daemon.0.wait().unwrap();
    assert!(device.lend(Position::ZERO, end).is_some(), "the lock is still ours");
    let mut wait = Wait::new(Side::Producer, Some(Duration::from_millis(10)));
    while wait.pause(&device, &[]).unwrap() != Woken::TimedOut {}
    assert_eq!(device.lend(Position::ZERO, end), None);
    let mut consumer = Consumer::attach(device, "q", "c").unwrap();
    assert_eq!(consumer.pop(Position::ZERO).unwrap().bytes, b"item");
    let _daemon = scene.start(&[]);
    let mut wait = Wait::new(Side::Producer, None);
    wait.pause(consumer.device(), &[]).unwrap();
    wait.pause(consumer.device(), &[]).unwrap();
    assert_eq!(consumer.pop(Position::ZERO).unwrap().bytes, b"item");
}

#[test]
fn a_ring_for_a_guest_that_consumes_takes_a_host_producer() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--guest", "consumer"]);
    let mut producer = Producer::attach(scene.connect(Role::Producer).unwrap(), "q", "p").unwrap();
    let position = producer.push("to the guest").unwrap();
    producer.advance(position).unwrap();
    assert!(scene.connect(Role::Consumer).is_err());
    assert_eq!(
        shared_block_ring::check(OpenOptions::default().open(&scene.path("ring")).unwrap())
            .unwrap()
            .items,
        1
    );
}

#[test]
fn a_consumer_finds_the_next_daemon_by_itself() {
    let scene = Scene::new();
    let mut daemon = scene.start(&[]);
    let mut consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "c").unwrap();
    for end in [Signal::SIGKILL, Signal::SIGTERM] {
        daemon.signal(end);
        daemon.0.wait().unwrap();
        let waiting = std::thread::spawn(move || {
            let mut wait = Wait::new(Side::Producer, Some(Duration::from_secs(20)));
            assert_eq!(
                wait.pause(consumer.device(), &[]).unwrap(),
                Woken::Elapsed,
                "to look once more"
            );
            let woken = wait.pause(consumer.device(), &[]).unwrap();
            (consumer, woken)
        });
        daemon = scene.start(&[]);
        let woken;
        (consumer, woken) = waiting.join().unwrap();
        assert_eq!(woken, Woken::Elapsed);
        // It has the role again, although its own old mapping kept the lock on it.
        assert!(matches!(scene.connect(Role::Consumer), Err(Error::Held { .. })));
    }
    drop(consumer);
}

#[test]
fn a_damaged_ring_is_not_served() {
    let scene = Scene::new();
    drop(scene.start(&[]));
    let damage = |at: usize, byte: u8| {
        let mut bytes = std::fs::read(scene.path("ring")).unwrap();
        bytes[at] = byte;
        std::fs::write(scene.path("ring"), bytes).unwrap();
    };
    damage(512, 8);
    damage(1536, 8);
    fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "item at position 0");
    damage(512 + 8, 9);
    fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "flag byte is 9");
    let size = std::fs::metadata(scene.path("ring")).unwrap().len();
    std::fs::File::options()
        .write(true)
        .open(scene.path("ring"))
        .unwrap()
        .set_len(size * 2)
        .unwrap();
    fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "grown");
}

#[test]
fn without_a_guard_the_guest_makes_its_own_ring_and_consumers_are_told() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--guard", "off", "--size", "64K"]);
    let disk = VirtioDevice::connect(&scene.path("s"), None).unwrap();
    create(&disk, CreateOptions::default()).unwrap();
    let mut producer = Producer::attach(disk, "queue", "guest").unwrap();
    let end = producer.push("item").unwrap();
    producer.advance(end).unwrap();
    let region = scene.connect(Role::Consumer).unwrap();
    let mut consumer = Consumer::attach(region, "queue", "host").unwrap();
    assert_eq!(consumer.pop(consumer.position()).unwrap().bytes, b"item");
}

#[test]
fn the_queue_runs_where_it_is_told_to() {
    let scene = Scene::new();
    let daemon = scene.start(&["--cpu", "1"]);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.0.id())).unwrap();
    let allowed = |path: std::path::PathBuf| {
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let name = status.lines().next().unwrap().to_owned();
        let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
        (name, line.split_whitespace().nth(1).unwrap().to_owned())
    };
    for (name, cpus) in tasks.map(|task| allowed(task.unwrap().path())) {
        assert_eq!(name.ends_with("queue"), cpus == "1", "{name}: {cpus}");
    }
    let scene = Scene::new();
    let usual = ["--socket-path", "s", "--blk-file", "ring", "--size", "64K", "--cpu", "1000"];
    fails(&scene.run(&usual), 1, "--cpu");
}

/// What the kernel says of the mapping of the ring's file in this process: a line of `smaps` by its name.
fn mapping(pid: u32, ring: &Path) -> impl Fn(&str) -> String + use<> {
    let all = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let ring = ring.to_str().unwrap().to_owned();
    let from = all.lines().skip_while(|line| !line.ends_with(&ring)).skip(1);
    let lines: Vec<_> = from.map(str::to_owned).take(30).collect();
    move |name| {
        let line = lines.iter().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    }
}

#[test]
fn the_region_is_in_memory_before_the_first_request_in_huge_pages_if_asked_for() {
    let scene = Scene::new();
    let daemon = scene.start(&["--size", "4M"]);
    assert_eq!(mapping(daemon.0.id(), &scene.path("ring"))("Rss"), "4096 kB");
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    for (more, asked) in [(&[][..], false), (&["--hugepages"], true)] {
        let scene = Scene::new();
        let ring = dir.path().join(format!("ring-{asked}"));
        let usual = ["--socket-path", "s", "--consumer-socket", "c", "--size", "4M", "--blk-file"];
        let mut command = scene.command(&usual);
        let daemon = Daemon(command.arg(&ring).args(more).spawn().unwrap());
        eventually("the daemon comes up", || scene.connect(Role::Control).is_ok());
        let fact = mapping(daemon.0.id(), &ring);
        assert_eq!(fact("Rss"), "4096 kB");
        assert_eq!(fact("VmFlags").split(' ').any(|flag| flag == "hg"), asked);
    }
}
