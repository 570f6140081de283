//! Front ends of bad faith, by their bare messages: none of them ends the daemon, and the next one is served.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod random;

use common::daemon::{Daemon, Scene, eventually};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use ring_simulation::front_end::*;
use shared_block_ring::device::bell::new_event;
use shared_block_ring::handover::Role;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn connect(scene: &Scene) -> FrontEnd {
    FrontEnd::over(UnixStream::connect(scene.path("s")).unwrap())
}

/// An honest one gets an honest answer.
fn works(scene: &Scene) {
    connect(scene).works();
}

fn ends_well(mut daemon: Daemon) {
    daemon.signal(Signal::SIGTERM);
    eventually("it ends", || daemon.0.try_wait().unwrap().is_some());
    assert!(daemon.0.wait().unwrap().success());
}

#[test]
fn malformed_messages_end_their_connection_and_nothing_else() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let garbage: &[&[u8]] = &[
        &[0xff; 12],
        &[0xff; 400],
        &[0; 12],
        // Another version; a reply; a size beyond every message; a body that does not come whole.
        &words(&[GET_FEATURES, 2, 0]),
        &words(&[GET_FEATURES, VERSION | 4, 0]),
        &words(&[GET_FEATURES, VERSION, u32::MAX]),
        &words(&[GET_FEATURES, VERSION, 8, 1, 1]),
        &words(&[SET_FEATURES, VERSION, 4, 1]),
        &words(&[SET_VRING_NUM, VERSION, 8, 1]),
        &words(&[1000, VERSION, 0]),
        b"GET / HTTP/1.1\r\n\r\n",
    ];
    for bytes in garbage {
        let front_end = connect(&scene);
        let _ = front_end.raw(bytes, &[]);
        front_end.0.shutdown(std::net::Shutdown::Write).unwrap();
        front_end.ends();
    }
    // Well formed, and wrong: each with a stop behind it, since some are answered by silence alone.
    let many = words(&[9, 0]);
    let wrong: &[(u32, Vec<u8>)] = &[
        (SET_MEM_TABLE, table(&[])),
        (SET_MEM_TABLE, many),
        (SET_MEM_TABLE, table(&[(0, MEMORY)])),
        (ADD_MEM_REG, [&[0; 8][..], &table(&[(u64::MAX - 4095, 8192)])[8..]].concat()),
        (SET_VRING_NUM, words(&[0, 0])),
        (SET_VRING_NUM, words(&[0, 3])),
        (SET_VRING_NUM, words(&[7, 8])),
        (SET_VRING_BASE, words(&[0, 77])),
        (SET_VRING_ADDR, [words(&[0, 0]), vec![0xff; 32]].concat()),
        (SET_VRING_ENABLE, words(&[9, 1])),
        (GET_VRING_BASE, words(&[u32::MAX, 0])),
        (GET_CONFIG, words(&[u32::MAX, 4, 0, 0])),
        (GET_CONFIG, words(&[250, 100, 0, 0])),
        (SET_VRING_KICK, 0u64.to_ne_bytes().to_vec()),
    ];
    for (code, body) in wrong {
        let front_end = connect(&scene);
        front_end.send(SET_OWNER, &[], &[]);
        front_end.send(*code, body, &[]);
        front_end.send(GET_FEATURES, &[], &[]);
        front_end.0.shutdown(std::net::Shutdown::Write).unwrap();
        front_end.ends();
    }
    works(&scene);
    ends_well(daemon);
}

#[test]
fn descriptors_that_do_not_belong_there_are_closed() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let open_files = || daemon.footprint().descriptors;
    let before = open_files();
    let (file, event) = (memory(), new_event().unwrap());
    let one = &[file.as_fd()][..];
    let many: Vec<_> = std::iter::repeat_n(file.as_fd(), 32).collect();
    let cases: &[(u32, Vec<u8>, &[BorrowedFd<'_>])] = &[
        (GET_FEATURES, vec![], one),
        (SET_OWNER, vec![], &many),
        (SET_MEM_TABLE, table(&[(0, MEMORY)]), &many[..2]),
        (SET_MEM_TABLE, table(&[(0, MEMORY), (MEMORY, MEMORY)]), one),
        // Overlapping; larger than its file; not memory at all.
        (SET_MEM_TABLE, table(&[(0, MEMORY), (4096, MEMORY)]), &many[..2]),
        (SET_MEM_TABLE, table(&[(0, 2 * MEMORY)]), one),
        (SET_MEM_TABLE, table(&[(0, MEMORY)]), &[event.as_fd()]),
        (SET_VRING_KICK, 0u64.to_ne_bytes().to_vec(), &many[..2]),
        (SET_VRING_KICK, 9u64.to_ne_bytes().to_vec(), one),
        // A file is nothing to wait for.
        (SET_VRING_KICK, 0u64.to_ne_bytes().to_vec(), one),
    ];
    for (code, body, files) in cases {
        let front_end = connect(&scene);
        front_end.send(SET_OWNER, &[], &[]);
        front_end.send(*code, body, files);
        front_end.0.shutdown(std::net::Shutdown::Write).unwrap();
        front_end.ends();
    }
    works(&scene);
    // One of those before was that of a client which had just gone, perhaps.
    eventually("the descriptors are closed", || open_files() <= before);
    ends_well(daemon);
}

#[test]
fn addresses_that_overflow_end_their_connection_and_nothing_else() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let file = memory();
    let region = |address: u64, user: u64, offset: u64| {
        [address, MEMORY, user, offset].map(u64::to_ne_bytes).concat()
    };
    let last = u64::MAX - 4095;
    for region in [
        region(last, USER_ADDRESS, 0),
        region(0, last, 0),
        region(0, USER_ADDRESS, last),
        region(0, USER_ADDRESS, 1),
        region(last, last, last),
    ] {
        let table = [words(&[1, 0]), region.clone()].concat();
        let addition = [vec![0; 8], region].concat();
        for (code, body) in [(SET_MEM_TABLE, &table), (ADD_MEM_REG, &addition)] {
            let front_end = connect(&scene);
            front_end.send(SET_OWNER, &[], &[]);
            front_end.send(SET_FEATURES, &(1u64 << 32 | 1 << 30).to_ne_bytes(), &[]);
            // CONFIG and CONFIGURE_MEM_SLOTS.
            front_end.send(SET_PROTOCOL_FEATURES, &(1u64 << 9 | 1 << 15).to_ne_bytes(), &[]);
            front_end.send(code, body, &[file.as_fd()]);
            let addresses = [last, 0, u64::MAX].map(u64::to_ne_bytes).concat();
            let addresses = [&words(&[0, 0]), &addresses, &[0; 8][..]].concat();
            front_end.send(SET_VRING_ADDR, &addresses, &[]);
            front_end.send(GET_FEATURES, &[], &[]);
            front_end.0.shutdown(std::net::Shutdown::Write).unwrap();
            front_end.ends();
        }
    }
    works(&scene);
    ends_well(daemon);
}

#[test]
fn memory_that_is_taken_back_ends_the_connection_alone() {
    let scene = Scene::new();
    // Nothing is looked at before the kick.
    let daemon = scene.start(&["--poll-us", "0"]);
    for left in [0, DATA, HEADER, USED] {
        let (memory, kicks, calls) = (memory(), new_event().unwrap(), new_event().unwrap());
        let front_end = connect(&scene);
        front_end.start(&memory, &kicks, &calls);
        ask(&memory, 0, 0);
        kick(&kicks);
        assert_eq!(status(&memory, 0), 0);
        daemon.queue_sleeps();
        ask(&memory, 1, 0);
        memory.set_len(left).unwrap();
        kick(&kicks);
        front_end.ends();
    }
    works(&scene);
    ends_well(daemon);
}

#[test]
fn a_region_that_is_cut_short_fails_the_ring_and_not_the_daemon() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let (memory, kicks, calls) = (memory(), new_event().unwrap(), new_event().unwrap());
    let front_end = connect(&scene);
    front_end.start(&memory, &kicks, &calls);
    ask(&memory, 0, 8);
    kick(&kicks);
    assert_eq!(status(&memory, 0), 0);
    File::options().write(true).open(scene.path("ring")).unwrap().set_len(4096).unwrap();
    for (index, sector) in [(1, 8), (2, 0), (3, 64)] {
        ask(&memory, index, sector);
        kick(&kicks);
        assert_eq!(status(&memory, index), 1, "VIRTIO_BLK_S_IOERR for sector {sector}");
    }
    // The client finds the file too short; the daemon is there to give it.
    assert!(scene.connect(Role::Consumer).is_err());
    ends_well(daemon);
    assert!(scene.logged("ring: the file was cut short") > 0);
}

#[test]
fn a_front_end_that_does_not_read_keeps_nobody_from_anything() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let (memory, kicks, calls) = (memory(), new_event().unwrap(), new_event().unwrap());
    let front_end = connect(&scene);
    front_end.start(&memory, &kicks, &calls);
    front_end.0.set_nonblocking(true).unwrap();
    let question = words(&[GET_FEATURES, VERSION, 0]);
    let start = Instant::now();
    // Until both directions are full, and stay so.
    let mut refused = 0;
    while refused < 20 {
        assert!(start.elapsed() < SOON, "it reads and reads");
        if front_end.raw(&question, &[]).is_err() {
            refused += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    // The queue goes on without it, and the host gets the region.
    ask(&memory, 0, 0);
    kick(&kicks);
    assert_eq!(status(&memory, 0), 0);
    scene.connect(Role::Consumer).unwrap();
    ends_well(daemon);
}

#[test]
fn a_second_front_end_waits_for_the_first_to_leave() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let mut first = connect(&scene);
    first.send(SET_OWNER, &[], &[]);
    first.send(SET_FEATURES, &0u64.to_ne_bytes(), &[]);
    first.answers();
    let mut second = connect(&scene);
    second.send(GET_FEATURES, &[], &[]);
    second.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(second.0.read(&mut [0]).is_err());
    first.answers();
    drop(first);
    second.0.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(second.answer().len(), 8);
    ends_well(daemon);
}

#[test]
fn who_connects_and_says_nothing_makes_way() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let silent = connect(&scene);
    let mut half = connect(&scene);
    half.send(SET_OWNER, &[], &[]);
    half.answers();
    silent.ends();
    works(&scene);
    half.ends();
    ends_well(daemon);
}

#[test]
fn descriptors_that_block_hold_nobody_up() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let blocking = || OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
    // No interrupt fits into it any more.
    let full = blocking();
    nix::unistd::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let (pipe, one_byte) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&one_byte, &[1]).unwrap();
    for (kicks, calls) in [(blocking(), full), (pipe, blocking())] {
        let memory = memory();
        let front_end = connect(&scene);
        ask(&memory, 0, 0);
        front_end.start(&memory, &kicks, &calls);
        let _ = nix::unistd::write(&kicks, &1u64.to_ne_bytes());
        front_end.0.shutdown(std::net::Shutdown::Write).unwrap();
        front_end.ends();
        works(&scene);
    }
    ends_well(daemon);
}

#[test]
fn front_ends_come_by_an_inherited_socket_too() {
    let scene = Scene::new();
    let listener = std::os::unix::net::UnixListener::bind(scene.path("s")).unwrap();
    let daemon = scene.command(&["--fd", "3", "--blk-file", "ring", "--size", "64K"]);
    // As systemd passes it: by number.
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"exec "$@" 3<&0 </dev/null"#, "sh"]).arg(daemon.get_program());
    shell.args(daemon.get_args()).current_dir(scene.path(".")).stdin(OwnedFd::from(listener));
    let daemon = Daemon(shell.stderr(Stdio::null()).spawn().unwrap());
    works(&scene);
    works(&scene);
    ends_well(daemon);
    assert!(scene.path("s").exists(), "it is whose who made it");
}
