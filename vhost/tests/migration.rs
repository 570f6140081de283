//! Two front ends of one disk: the VMM that a guest leaves, and the one that it goes to.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use crate::common::rings::Rings;
use nix::sys::signal::Signal;
use ring_test_support::front_end::FrontEnd;
use ring_test_support::messages::*;
use ring_test_support::process::eventually;
use shared_block_ring::device::bell::new_event;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

const GOES_ON: &str = "the guest goes on with another front end";

/// The second front end, and its guest's memory.
struct Next {
    messages: Messages,
    memory: File,
    kicks: OwnedFd,
    calls: OwnedFd,
}

impl Next {
    /// Connects, and is told of the disk, as a VMM is to which a guest will be migrated.
    fn connect(folder: &impl AsRef<Path>) -> Self {
        let socket = folder.as_ref().join("s");
        let messages = Messages::over(UnixStream::connect(socket).unwrap());
        let (kicks, calls) = (new_event().unwrap(), new_event().unwrap());
        let mut next = Self { messages, memory: memory(), kicks, calls };
        next.messages.answers();
        let call = 0u64.to_ne_bytes();
        next.messages.send(SET_VRING_CALL, &call, &[next.calls.as_fd()]);
        // CONFIG.
        let features = (1u64 << 30).to_ne_bytes();
        next.messages.send(SET_FEATURES, &features, &[]);
        next.messages.send(SET_PROTOCOL_FEATURES, &(1u64 << 9).to_ne_bytes(), &[]);
        next.messages.send(GET_CONFIG, &[words(&[0, 4, 0]), vec![0; 4]].concat(), &[]);
        assert_eq!(next.messages.answer().len(), 16);
        next
    }

    /// Starts its queue, with a request in it.
    fn start(&self) {
        ask(&self.memory, 0, 0);
        self.messages.start(&self.memory, &self.kicks, &self.calls);
        kick(&self.kicks);
    }

    fn is_answered(&self) -> bool {
        RINGS.used_index(&self.memory) > 0
    }
}

/// A daemon whose disk can be migrated, and a guest that has used it.
fn served() -> (Scene, Daemon, FrontEnd) {
    let scene = Scene::new();
    let daemon = scene.start(&["--migratable"]);
    let mut guest = FrontEnd::new(&scene);
    guest.honest(&scene);
    (scene, daemon, guest)
}

fn is_let_go(guest: &FrontEnd) -> bool {
    guest.wire.get_features().is_err()
}

#[test]
fn next_front_end_is_served_when_the_guest_has_left_the_first() {
    let (scene, _daemon, mut guest) = served();
    let next = Next::connect(&scene);
    for _ in 0..20 {
        guest.honest(&scene);
    }
    guest.stop();
    next.start();
    assert_eq!(status(&next.memory, 0), 0);
    eventually("it is logged", || scene.logged(GOES_ON) == 1);
    eventually("the first one is let go", || is_let_go(&guest));
    drop(guest);
    // It is served on, and the place of the first one is free.
    ask(&next.memory, 1, 0);
    kick(&next.kicks);
    assert_eq!(status(&next.memory, 1), 0);
    let after = Next::connect(&scene);
    after.start();
    drop(next);
    assert_eq!(status(&after.memory, 0), 0);
}

#[test]
fn next_front_end_that_starts_too_early_waits_until_the_first_has_left() {
    let (scene, _daemon, mut guest) = served();
    let next = Next::connect(&scene);
    next.start();
    eventually("it is logged", || scene.logged("it waits until that one has left") == 1);
    for _ in 0..20 {
        // A reboot.
        guest.reset();
        guest.honest(&scene);
    }
    guest.stop();
    assert!(!next.is_answered());
    drop(guest);
    assert_eq!(status(&next.memory, 0), 0);
    assert_eq!(scene.logged(GOES_ON), 0);
}

#[test]
fn queue_that_is_disabled_and_enabled_again_has_its_place_again() {
    let (scene, _daemon, mut guest) = served();
    guest.wire.set_vring_enable(0, false).unwrap();
    // Another queue, which is not started.
    guest.wire.get_vring_base(1).unwrap();
    guest.wire.set_vring_enable(0, true).unwrap();
    assert!(!is_let_go(&guest), "it has carried that out");
    let next = Next::connect(&scene);
    next.start();
    for _ in 0..20 {
        guest.honest(&scene);
    }
    assert!(!next.is_answered());
}

#[test]
fn next_front_end_that_starts_nothing_takes_nothing_from_the_first() {
    let (scene, _daemon, mut guest) = served();
    let next = Next::connect(&scene);
    for _ in 0..3 {
        // A guest that is stopped and goes on, or whose driver begins anew.
        guest.reset();
        guest.honest(&scene);
    }
    drop(next);
    let next = Next::connect(&scene);
    guest.honest(&scene);
    drop(guest);
    next.start();
    assert_eq!(status(&next.memory, 0), 0);
    assert_eq!(scene.logged(GOES_ON), 0);
}

#[test]
fn next_front_end_that_gives_up_leaves_nothing_behind() {
    let (scene, daemon, mut guest) = served();
    guest.stop();
    guest.reset();
    let before = daemon.footprint().descriptors;
    for _ in 0..20 {
        let next = Next::connect(&scene);
        next.start();
        drop(next);
        guest.honest(&scene);
    }
    eventually("nothing is left", || daemon.footprint().descriptors <= before);
    assert_eq!(scene.logged("let go"), 0, "{}", scene.log());
}

#[test]
fn third_front_end_waits_until_one_has_left() {
    let (scene, _daemon, mut guest) = served();
    let next = Next::connect(&scene);
    let third = UnixStream::connect(scene.path("s")).unwrap();
    let mut third = Messages::over(third);
    third.send(GET_FEATURES, &[], &[]);
    eventually("it is logged", || scene.logged("another front end waits: 2 are connected") == 1);
    guest.honest(&scene);
    drop(next);
    assert_eq!(third.answer().len(), 8);
    guest.honest(&scene);
}

#[test]
fn stop_ends_both() {
    for starts in [false, true] {
        let (scene, mut daemon, guest) = served();
        let next = Next::connect(&scene);
        if starts {
            next.start();
        }
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.code(), Some(0));
        next.messages.ends();
        assert!(is_let_go(&guest));
    }
}

#[test]
fn rings_of_one_daemon_have_a_next_front_end_each() {
    let names = ["one", "two"];
    let rings = Rings::new(&[]);
    for name in names {
        rings.configure(name, "migratable = true\n");
    }
    let _daemon = rings.start(&[]);
    let mut guests = names.map(|name| rings.guest(name));
    let next = names.map(|name| Next::connect(&rings.folder(name)));
    for (guest, name) in guests.iter_mut().zip(names) {
        rings.carries(name, guest, "before");
    }
    guests[0].stop();
    next.iter().for_each(Next::start);
    assert_eq!(status(&next[0].memory, 0), 0);
    rings.carries("two", &mut guests[1], "after");
    assert!(!next[1].is_answered());
}

#[test]
fn first_front_end_whose_memory_is_lost_is_let_go_alone() {
    let scene = Scene::new();
    let daemon = scene.start(&["--migratable", "--poll-us", "0"]);
    let mut first = Next::connect(&scene);
    first.start();
    // Often, since the next one is served by another thread than the one that the first one leaves.
    for _ in 0..50 {
        assert_eq!(status(&first.memory, 0), 0);
        daemon.queue_sleeps();
        let next = Next::connect(&scene);
        next.start();
        ask(&first.memory, 1, 0);
        first.memory.set_len(RINGS.used).unwrap();
        kick(&first.kicks);
        first.messages.ends();
        first = next;
    }
    assert_eq!(status(&first.memory, 0), 0);
}
