//! Datagrams.

use super::senders::{Listening, while_moving};
use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use ring_test_support::process::{PATIENCE, ended, eventually, signal, state, until_asleep};
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Returns a socket that sends to `log`.
fn sender(scene: &Scene) -> UnixDatagram {
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(scene.path("log")).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Returns what the kernel says of this process.
fn prefix() -> String {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    format!("pid={} uid={uid} gid={gid} ", std::process::id())
}

#[test]
fn datagram_is_an_item_whatever_its_bytes() {
    let scene = Scene::with_ring("1M");
    let listening = Listening::start(&scene, &["--listen", "unixgram:log"]);
    let long = vec![b'x'; 100_000];
    let all: [&[u8]; 4] = [b"a\nb\0\xff\n", b"", b"a", &long];
    for bytes in all {
        sender(&scene).send(bytes).unwrap();
    }
    assert!(listening.stop().0.success());
    assert_eq!(scene.items(), all);
}

#[test]
fn datagrams_of_each_sender_stay_in_order_and_name_their_sender() {
    const SENDERS: usize = 16;
    const COUNT: usize = 300;
    let scene = Scene::with_ring("4M");
    let listening =
        Listening::start(&scene, &["--json", "--credentials", "--listen", "unixgram:log"]);
    thread::scope(|scope| {
        for number in 0..SENDERS {
            let socket = sender(&scene);
            scope.spawn(move || {
                for count in 0..COUNT {
                    // What looks like another sender is what this one has sent.
                    let text = format!("pid=1 uid=0 gid=0 {number} {count}");
                    socket.send(text.as_bytes()).unwrap();
                }
            });
        }
    });
    let report = listening.report();
    assert_eq!(report["datagrams"], SENDERS * COUNT);
    let mut next = [0; SENDERS];
    for item in scene.items() {
        let text = String::from_utf8(item).unwrap();
        let text = text.strip_prefix(&prefix()).unwrap().strip_prefix("pid=1 uid=0 gid=0 ");
        let (number, count) = text.unwrap().split_once(' ').unwrap();
        let next = &mut next[number.parse::<usize>().unwrap()];
        assert_eq!(count.parse(), Ok(*next));
        *next += 1;
    }
    assert_eq!(next, [COUNT; SENDERS]);
}

#[test]
fn logger_sends_to_a_socket_like_that_of_syslog() {
    let scene = Scene::with_ring("1M");
    let arguments = ["--credentials", "--socket-mode", "666", "--listen", "unixgram:log"];
    let listening = Listening::start(&scene, &arguments);
    scene.succeed("logger --socket-errors=on -u log -p user.info -t shop 'order 7'");
    assert!(listening.stop().0.success());
    let text = scene.rest();
    assert!(text.starts_with("pid=") && text.contains(" <14>"), "{text}");
    assert!(text.ends_with("shop: order 7\n"), "{text}");
}

#[test]
fn full_ring_makes_senders_wait_and_loses_no_datagram() {
    const COUNT: u64 = 3000;
    let scene = Scene::with_ring("64K");
    let listening = Listening::start(&scene, &["--json", "--listen", "unixgram:log"]);
    let (socket, sent) = (sender(&scene), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..COUNT {
                socket.send(format!("{number:050}").as_bytes()).unwrap();
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        while_moving(|| sent.load(Ordering::Relaxed), |count| count > 500);
        until_asleep(&listening.child);
        assert!(sent.load(Ordering::Relaxed) < COUNT, "the ring has no room for all");
        let count = COUNT.to_string();
        let consume =
            scene.without_input(&["consume", "--follow", "--count", &count, "ring"]).spawn();
        let output = ended(consume.unwrap(), "consume");
        let all = (0..COUNT).map(|number| format!("{number:050}\n"));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), all.collect::<String>());
    });
    let report = listening.report();
    assert_eq!([&report["items"], &report["dropped"]], [COUNT, 0]);
}

#[test]
fn full_ring_drops_datagrams_where_senders_must_not_wait() {
    const COUNT: u64 = 3000;
    let scene = Scene::with_ring("64K");
    let arguments = ["--json", "--on-full", "drop", "--listen", "unixgram:log"];
    let listening = Listening::start(&scene, &arguments);
    let socket = sender(&scene);
    for number in 0..COUNT {
        socket.send(format!("{number:050}").as_bytes()).unwrap();
    }
    let report = listening.report();
    let count = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(count("items") + count("dropped"), COUNT);
    assert_eq!(scene.items().len() as u64, count("items"));
}

#[test]
fn datagram_that_is_too_long_is_dropped_and_counted_or_split() {
    let scene = Scene::with_ring("64K");
    let arguments = ["--json", "--max-record", "1K", "--listen", "unixgram:log"];
    let listening = Listening::start(&scene, &arguments);
    let socket = sender(&scene);
    for length in [1024, 1025, 90_000, 3] {
        socket.send(&vec![b'x'; length]).unwrap();
    }
    let (status, words) = listening.stop();
    assert!(status.success());
    for length in [1025, 90_000] {
        let who = format!("process {} of user", std::process::id());
        let wanted = format!("has sent a datagram of {length} bytes, which is too long");
        assert!(words.lines().any(|line| line.contains(&who) && line.contains(&wanted)), "{words}");
    }
    assert!(words.contains(r#""too_large_dropped":2"#), "{words}");
    assert_eq!(scene.items().iter().map(Vec::len).collect::<Vec<_>>(), [1024, 3]);
    let arguments = ["--json", "--on-too-large", "split", "--listen", "unixgram:log"];
    let listening = Listening::start(&scene, &arguments);
    let consume = ["consume", "--framing", "whole", "--follow", "--count", "2", "ring"];
    let consume = scene.without_input(&consume).spawn().unwrap();
    sender(&scene).send(&vec![b'x'; 70_000]).unwrap();
    assert_eq!(ended(consume, "consume").stdout, vec![b'x'; 70_000]);
    let report = listening.report();
    assert_eq!([&report["too_large_split"], &report["items"]], [1, 2]);
}

#[test]
fn descriptors_that_are_sent_along_are_not_kept_and_hide_no_sender() {
    let scene = Scene::with_ring("1M");
    let arguments = ["--json", "--credentials", "--listen", "unixgram:log"];
    let listening = Listening::start(&scene, &arguments);
    let socket = sender(&scene);
    let open = || std::fs::read_dir(format!("/proc/{}/fd", listening.child.id())).unwrap().count();
    socket.send(b"first").unwrap();
    scene.wait_for_facts("ring", |facts| facts["producer_items"] == 1);
    let before = open();
    let descriptors = [socket.as_raw_fd(); 5];
    for _ in 0..10 {
        let control = [ControlMessage::ScmRights(&descriptors)];
        let parts = [IoSlice::new(b"hidden")];
        sendmsg::<UnixAddr>(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).unwrap();
    }
    socket.send(b"last").unwrap();
    scene.wait_for_facts("ring", |facts| facts["producer_items"] == 2);
    assert_eq!(open(), before);
    assert_eq!(listening.report()["unnamed"], 10);
    let expected = ["first", "last"].map(|text| format!("{}{text}", prefix()).into_bytes());
    assert_eq!(scene.items(), expected);
}

#[test]
fn sigterm_takes_the_datagrams_that_were_sent_and_names_those_that_it_cannot_take() {
    let scene = Scene::with_ring("64K");
    let listening = Listening::start(&scene, &["--listen", "unixgram:log"]);
    let socket = sender(&scene);
    signal(&listening.child, Signal::SIGSTOP);
    eventually("the producer is stopped", || state(listening.child.id()) == 'T');
    for number in 0..8 {
        socket.send(format!("{number}").as_bytes()).unwrap();
    }
    signal(&listening.child, Signal::SIGTERM);
    signal(&listening.child, Signal::SIGCONT);
    assert!(listening.ended().0.success());
    assert!(socket.send(b"late").is_err(), "the sender is told that nobody takes it");
    assert_eq!(scene.rest(), "0\n1\n2\n3\n4\n5\n6\n7\n");
    // A ring without room for all of them.
    let listening = Listening::start(&scene, &["--listen", "unixgram:log"]);
    let socket = sender(&scene);
    let (first, second) = (vec![b'x'; 60_000], vec![b'y'; 60_000]);
    socket.send(&first).unwrap();
    socket.send(&second).unwrap();
    until_asleep(&listening.child);
    let (status, words) = listening.stop();
    assert_eq!(status.code(), Some(1));
    for wanted in ["asked to stop while the ring was full", "accepted for sure: 1 item; what was"] {
        assert!(words.contains(wanted), "{words}");
    }
    assert_eq!(scene.items(), [first]);
}
