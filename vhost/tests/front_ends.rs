//! Hostile front ends, written as raw messages: none of them ends the daemon, and the next one is
//! served.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use arbitrary::{Arbitrary, Unstructured};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use ring_test_support::conversation::Conversation;
use ring_test_support::front_end::FrontEnd;
use ring_test_support::messages::*;
use ring_test_support::process::{PATIENCE, eventually};
use shared_block_ring::device::bell::new_event;
use shared_block_ring::handover::Role;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn connect(scene: &Scene) -> Messages {
    Messages::over(UnixStream::connect(scene.path("s")).unwrap())
}

/// Checks that a correct front end is served.
fn works(scene: &Scene) {
    FrontEnd::connect(scene).works();
}

fn ends_well(daemon: Daemon) {
    ends_with(daemon, 0);
}

fn ends_with(mut daemon: Daemon, code: i32) {
    daemon.signal(Signal::SIGTERM);
    eventually("it ends", || daemon.0.try_wait().unwrap().is_some());
    assert_eq!(daemon.0.wait().unwrap().code(), Some(code));
}

#[test]
fn malformed_messages_end_their_connection_alone() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let garbage: &[&[u8]] = &[
        &[0xff; 12],
        &[0xff; 400],
        &[0; 12],
        // Another version; a reply; a size beyond every message; an incomplete body.
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
        front_end.leaves();
    }
    // Well formed, and wrong. The connection is shut down behind each, since some get no answer.
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
        front_end.leaves();
    }
    works(&scene);
    ends_well(daemon);
}

#[test]
fn unexpected_descriptors_of_a_message_are_closed() {
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
        // A file is no event.
        (SET_VRING_KICK, 0u64.to_ne_bytes().to_vec(), one),
    ];
    for (code, body, files) in cases {
        let front_end = connect(&scene);
        front_end.send(SET_OWNER, &[], &[]);
        front_end.send(*code, body, files);
        front_end.leaves();
    }
    works(&scene);
    // A descriptor counted before may have been that of a client which had just gone.
    eventually("the descriptors are closed", || open_files() <= before);
    ends_well(daemon);
}

#[test]
fn addresses_that_overflow_end_their_connection_alone() {
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
            front_end.leaves();
        }
    }
    works(&scene);
    ends_well(daemon);
}

#[test]
fn memory_that_is_taken_back_ends_its_connection_alone() {
    let scene = Scene::new();
    // Without polling nothing is looked at before the kick.
    let daemon = scene.start(&["--poll-us", "0"]);
    for left in [0, DATA, HEADER, RINGS.used] {
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
fn region_that_is_truncated_fails_the_ring_and_not_the_daemon() {
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
    // The client finds the file too short; the daemon still hands it over.
    assert!(scene.connect(Role::Consumer).is_err());
    // Data that was answered before may not be in the file any more.
    ends_with(daemon, 1);
    eventually("it is logged", || scene.logged("ring: the file was truncated") > 0);
}

#[test]
fn front_end_that_does_not_read_blocks_no_other() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let (memory, kicks, calls) = (memory(), new_event().unwrap(), new_event().unwrap());
    let front_end = connect(&scene);
    front_end.start(&memory, &kicks, &calls);
    front_end.0.set_nonblocking(true).unwrap();
    let question = words(&[GET_FEATURES, VERSION, 0]);
    let start = Instant::now();
    // Until both directions of the socket are full, and stay full.
    let mut refused = 0;
    while refused < 20 {
        assert!(start.elapsed() < PATIENCE, "it reads and reads");
        if front_end.raw(&question, &[]).is_err() {
            refused += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    // The queue is still served, and the host gets the region.
    ask(&memory, 0, 0);
    kick(&kicks);
    assert_eq!(status(&memory, 0), 0);
    scene.connect(Role::Consumer).unwrap();
    ends_well(daemon);
}

#[test]
fn second_front_end_is_served_after_the_first_has_left() {
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
    second.0.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(second.answer().len(), 8);
    ends_well(daemon);
}

#[test]
fn silent_front_end_is_replaced_by_a_waiting_one() {
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
fn blocking_descriptors_of_a_front_end_block_no_other() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let blocking = || OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
    // An event whose counter is full, and which blocks.
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
        front_end.leaves();
        works(&scene);
    }
    ends_well(daemon);
}

#[test]
fn front_ends_are_served_on_an_inherited_socket() {
    let scene = Scene::new();
    let listener = std::os::unix::net::UnixListener::bind(scene.path("s")).unwrap();
    let daemon = scene.start_inherited(listener.into());
    works(&scene);
    works(&scene);
    ends_well(daemon);
    assert!(scene.path("s").exists(), "it is whose who made it");
}

#[test]
fn conversations_of_no_sense_leave_the_daemon_serving() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    for seed in 0..200 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut input = vec![0; random.random_range(20..600)];
        random.fill_bytes(&mut input);
        let lead = || {
            let conversation = Conversation::arbitrary(&mut Unstructured::new(&input)).unwrap();
            conversation.lead(connect(&scene));
        };
        let outcome = std::panic::catch_unwind(lead);
        assert!(outcome.is_ok(), "with seed {seed}");
    }
    works(&scene);
    ends_well(daemon);
}
