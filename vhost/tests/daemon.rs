//! The daemon as its operator and the processes on the host see it. No front end attaches.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{Daemon, Scene};
use nix::sys::signal::Signal;
use ring_simulation::unlocked;
use ring_test_support::assert_fails;
use ring_test_support::manual::Manual;
use ring_test_support::process::eventually;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{
    Consumer, Control, CreateOptions, Error, OpenOptions, Position, Producer, RingDevice,
    UnixDevice, create,
};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;
use virtio_blk_driver::VirtioDevice;

#[test]
fn capabilities_are_json() {
    let output = Scene::new().run(&["--print-capabilities"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["type"], "block");
    assert_eq!(json["features"], serde_json::json!(["read-only", "blk-file"]));
    // What management software finds the program by: a `VHostUserBackend` of QEMU's
    // vhost-user.json.
    let path = "../packaging/vhost-user/50-vhost-device-blockring.json";
    let descriptor = std::fs::read_to_string(path).unwrap();
    let descriptor: serde_json::Value = serde_json::from_str(&descriptor).unwrap();
    assert_eq!(descriptor["type"], json["type"]);
    let keys: Vec<_> = descriptor.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["binary", "description", "tags", "type"]);
    assert_eq!(descriptor["binary"], "/usr/bin/vhost-device-blockring");
}

#[test]
fn page_and_completions_have_each_option() {
    let manual = Manual::of(env!("CARGO_BIN_EXE_vhost-device-blockring"), "--generate");
    manual.expect_all_that_help_lists(&["EXIT STATUS", "EXAMPLES", "SEE ALSO"]);
    manual.expect_sound_files();
    assert_eq!(manual.completed(&["--guest", ""]), ["producer", "consumer"]);
    assert_eq!(manual.completed(&["--gen"]), [""; 0]);
    let scene = Scene::new();
    std::fs::write(scene.path("file"), "").unwrap();
    assert_fails(&scene.run(&["--generate", "file"]), 1, "man pages and completions");
}

#[test]
fn usage_errors_are_explained() {
    let scene = Scene::new();
    assert_fails(&scene.run(&["--blk-file", "ring"]), 2, "--socket-path");
    assert_fails(
        &scene.run(&["--socket-path", "s", "--blk-file", "ring"]),
        1,
        "vhost-device-blockring: ring: cannot open: No such file",
    );
    assert_fails(
        &scene.run(&["--socket-path", "s", "--blk-file", "ring"]),
        1,
        "--size 8M makes it",
    );
    std::fs::write(scene.path("ring"), vec![0; 65536]).unwrap();
    assert_fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "not a ring");
    assert_fails(
        &scene.run(&["--socket-path", "s", "--blk-file", "new", "--size", "1K"]),
        1,
        "too small",
    );
    assert!(!scene.path("new").exists() && !scene.path("s").exists());
    let nowhere = ["--socket-path", "s", "--blk-file", "nowhere/ring", "--size", "64K"];
    let output = scene.run(&nowhere);
    assert_fails(&output, 1, "nowhere/ring: cannot create: there is no folder nowhere");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("--size"), "a remedy that is none: {said}");
    assert_fails(
        &scene.run(&["--socket-path", "nowhere/s", "--blk-file", "new", "--size", "64K"]),
        1,
        "nowhere/s: there is no folder nowhere",
    );
    std::fs::write(scene.path("tiny"), [0; 1000]).unwrap();
    assert_fails(
        &scene.run(&["--socket-path", "s", "--blk-file", "tiny", "--size", "64K"]),
        1,
        "at least 4 (remove it if nobody needs it, and --size 8M makes a ring)",
    );
    assert_fails(
        &scene.run(&["--fd", "77", "--blk-file", "ring"]),
        1,
        "no such inherited descriptor",
    );
    assert_fails(
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
    assert_fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "not a socket");
    assert_eq!(std::fs::read(scene.path("s")).unwrap(), b"precious");
}

#[test]
fn second_daemon_is_refused_and_a_stale_socket_replaced() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    for (socket, words) in [("s", "in use"), ("other", "already has a producer")] {
        let second = scene.run(&["--socket-path", socket, "--blk-file", "ring"]);
        for words in [words, &format!("process {}", daemon.0.id()), "end", "SIGTERM"] {
            assert_fails(&second, 1, words);
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
fn region_is_handed_to_one_consumer_at_a_time() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let mut consumer =
        Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "first").unwrap();
    match scene.connect(Role::Consumer).err() {
        Some(Error::RoleTaken { holder, .. }) => {
            assert_eq!(holder, Some(std::process::id().cast_signed()));
        }
        other => panic!("{other:?}"),
    }
    let words = scene.connect(Role::Producer).err().unwrap().to_string();
    assert!(words.contains("the guest is the producer"), "{words}");
    // Nor on the file itself, past the backend.
    let file = || OpenOptions::default().open(scene.path("ring")).unwrap();
    assert!(matches!(Consumer::attach(file(), "q", "c"), Err(Error::RoleTaken { .. })));
    match Producer::attach(file(), "q", "p").err() {
        Some(Error::RoleTaken { holder, .. }) => {
            assert_eq!(holder, Some(daemon.0.id().cast_signed()));
        }
        other => panic!("{other:?}"),
    }
    consumer.detach();
    scene.connect(Role::Consumer).unwrap();
}

#[test]
fn role_ends_with_its_device_even_if_its_descriptors_live_on() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let device = scene.connect(Role::Consumer).unwrap();
    // The descriptors that a process which is started meanwhile would inherit.
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
fn client_without_a_role_can_read_and_suspend() {
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
fn consumer_of_a_guarded_guest_is_lent_items_in_place() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let file = unlocked(OpenOptions::default().open(scene.path("ring")).unwrap());
    let mut producer = Producer::attach(file, "q", "p").unwrap();
    let end = producer.push("item").unwrap();
    producer.advance(end).unwrap();
    let framed = b"\x04\0\0\0item";
    let lent = |device: Result<UnixDevice, Error>| {
        device.unwrap().lend(Position::ZERO, end).map(<[u8]>::to_vec)
    };
    assert_eq!(lent(scene.connect_in_place(Role::Consumer)), Some(framed.to_vec()));
    assert_eq!(lent(scene.connect_in_place(Role::Control)), None);
    assert_eq!(lent(scene.connect(Role::Consumer)), None, "nobody vouches for the backend");
}

/// The consumer gives its lock back to get it from the next daemon: until then another process may
/// consume.
#[test]
fn consumer_without_a_daemon_is_lent_nothing_and_can_read() {
    let scene = Scene::new();
    let mut daemon = scene.start(&[]);
    let file = unlocked(OpenOptions::default().open(scene.path("ring")).unwrap());
    let mut producer = Producer::attach(file, "q", "p").unwrap();
    let end = producer.push("item").unwrap();
    producer.advance(end).unwrap();
    let mut device = scene.connect_in_place(Role::Consumer).unwrap();
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
fn host_producer_is_served_for_a_guest_that_consumes() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--guest", "consumer"]);
    let mut producer = Producer::attach(scene.connect(Role::Producer).unwrap(), "q", "p").unwrap();
    let position = producer.push("to the guest").unwrap();
    producer.advance(position).unwrap();
    assert!(scene.connect(Role::Consumer).is_err());
    assert_eq!(
        shared_block_ring::check(OpenOptions::default().open(scene.path("ring")).unwrap())
            .unwrap()
            .items,
        1
    );
}

#[test]
fn consumer_finds_the_next_daemon_by_itself() {
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
        // The consumer has its role again, although its old mapping keeps the old lock's file open.
        assert!(matches!(scene.connect(Role::Consumer), Err(Error::RoleTaken { .. })));
    }
    drop(consumer);
}

#[test]
fn damaged_ring_is_not_served() {
    let scene = Scene::new();
    drop(scene.start(&[]));
    let damage = |at: usize, byte: u8| {
        let mut bytes = std::fs::read(scene.path("ring")).unwrap();
        bytes[at] = byte;
        std::fs::write(scene.path("ring"), bytes).unwrap();
    };
    damage(512, 8);
    damage(1536, 8);
    assert_fails(
        &scene.run(&["--socket-path", "s", "--blk-file", "ring"]),
        1,
        "item at position 0",
    );
    damage(512 + 8, 9);
    assert_fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "flag byte is 9");
    let size = std::fs::metadata(scene.path("ring")).unwrap().len();
    std::fs::File::options()
        .write(true)
        .open(scene.path("ring"))
        .unwrap()
        .set_len(size * 2)
        .unwrap();
    assert_fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "grown");
}

#[test]
fn size_that_the_ring_does_not_have_is_warned_of() {
    let scene = Scene::new();
    drop(scene.start(&["--size", "64K"]));
    drop(scene.start(&["--size", "65600"]));
    assert_eq!(scene.logged("does not change that"), 0, "it has all whole sectors of that size");
    let _daemon = scene.start(&["--size", "128K"]);
    let words = "ring: is there already, and has 65536 bytes: --size 131072 does not change that";
    eventually("the log says it", || scene.logged(words) == 1);
}

#[test]
fn unguarded_guest_makes_its_own_ring_and_consumers_are_told() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--guard", "off", "--size", "64K"]);
    let disk = VirtioDevice::connect(scene.path("s"), None).unwrap();
    create(&disk, CreateOptions::default()).unwrap();
    let mut producer = Producer::attach(disk, "queue", "guest").unwrap();
    let end = producer.push("item").unwrap();
    producer.advance(end).unwrap();
    let region = scene.connect(Role::Consumer).unwrap();
    let mut consumer = Consumer::attach(region, "queue", "host").unwrap();
    assert_eq!(consumer.pop(consumer.position()).unwrap().bytes, b"item");
}

#[test]
fn queue_thread_runs_on_the_given_processor() {
    let scene = Scene::new();
    let daemon = scene.start(&["--cpu", "1"]);
    let queue = daemon.queue_thread();
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.0.id())).unwrap() {
        let task = task.unwrap();
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
        let is_alone = line.split_whitespace().nth(1) == Some("1");
        assert_eq!(*task.file_name() == *queue, is_alone, "{status}");
    }
    let scene = Scene::new();
    let usual = ["--socket-path", "s", "--blk-file", "ring", "--size", "64K", "--cpu", "1000"];
    assert_fails(&scene.run(&usual), 1, "--cpu");
}

/// Returns a line of `smaps` for the mapping of the ring's file in that process, by the line's
/// name.
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
fn region_is_in_memory_before_the_first_request_in_huge_pages_if_asked_for() {
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
