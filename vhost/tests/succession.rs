//! The state that one backend leaves to the next: a front end that outlives it goes on from the
//! used index, and from nothing else.
#![allow(clippy::unwrap_used)]

use crate::common::attack::writes;
use crate::common::daemon::Scene;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use ring_test_support::front_end::{DATA, FrontEnd, RINGS};
use ring_test_support::process::eventually;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use vhost::VhostBackend;

/// Requests in flight at a time.
const DEPTH: u16 = 80;

/// Whether the backend has closed the connection.
fn is_over(guest: &FrontEnd) -> bool {
    // SAFETY: the front end's own, open for as long as this borrow of it.
    let wire = unsafe { BorrowedFd::borrow_raw(guest.wire.as_raw_fd()) };
    let mut polled = [PollFd::new(wire, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).unwrap() > 0
}

#[test]
fn nothing_is_answered_after_the_connection_has_ended() {
    for _ in 0..10 {
        let scene = Scene::new();
        let mut daemon = scene.start(&[]);
        let mut guest = FrontEnd::new(&scene);
        guest.honest(&scene);
        daemon.signal(Signal::SIGTERM);
        // The queue is busy to the last moment.
        while !is_over(&guest) {
            if guest.available() == guest.used_index() {
                writes(&mut guest, DEPTH, DATA);
            }
        }
        // From here on the front end takes the used index for final. Its guest does not know that,
        // and goes on.
        let seen = guest.used_index();
        writes(&mut guest, 1, DATA);
        assert!(daemon.0.wait().unwrap().success());
        assert_eq!(guest.used_index(), seen, "answered behind the front end's back");
    }
}

#[test]
fn kernel_waits_for_nothing_at_the_exit_that_can_end_while_the_guest_is_served() {
    let scene = Scene::new();
    let mut daemon = scene.start(&[]);
    let mut guest = FrontEnd::new(&scene);
    guest.honest(&scene);
    let maps = format!("/proc/{}/maps", daemon.0.id());
    // The context of asynchronous reads: its end takes the kernel tens of milliseconds.
    let has_context = || std::fs::read_to_string(&maps).is_ok_and(|maps| maps.contains("[aio]"));
    assert!(has_context());
    daemon.signal(Signal::SIGTERM);
    while !is_over(&guest) {
        if guest.available() == guest.used_index() {
            writes(&mut guest, DEPTH, DATA);
        }
    }
    assert!(!has_context(), "the next backend waits for its end");
    assert!(daemon.0.wait().unwrap().success());
}

/// A message of the vhost-user protocol: a request's number, flags (version 1), and a payload.
fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [request, 1, len].iter().flat_map(|word| word.to_ne_bytes()).chain(payload.to_vec()).collect()
}

#[test]
fn handshake_that_has_begun_is_answered_before_a_stop() {
    const GET_FEATURES: u32 = 1;
    const SET_FEATURES: u32 = 2;
    let scene = Scene::new();
    let mut daemon = scene.start(&[]);
    let mut wire = UnixStream::connect(scene.path("s")).unwrap();
    let mut answer = [0; 20];
    wire.write_all(&message(GET_FEATURES, &[])).unwrap();
    wire.read_exact(&mut answer).unwrap();
    daemon.halt();
    // They take longer than anything else that a stop waits for.
    wire.write_all(&message(SET_FEATURES, &answer[12..]).repeat(4000)).unwrap();
    wire.write_all(&message(GET_FEATURES, &[])).unwrap();
    daemon.signal(Signal::SIGTERM);
    daemon.signal(Signal::SIGCONT);
    wire.read_exact(&mut answer).unwrap();
    assert_eq!(wire.read(&mut answer).unwrap(), 0, "the connection has ended");
    assert_eq!(daemon.code(), Some(0));
}

#[test]
fn front_end_that_never_pauses_does_not_keep_the_backend_from_a_stop() {
    let scene = Scene::new();
    let mut daemon = scene.start(&[]);
    let guest = FrontEnd::new(&scene);
    daemon.signal(Signal::SIGTERM);
    eventually("the connection is ended", || guest.wire.get_features().is_err());
    assert_eq!(daemon.code(), Some(0));
}

#[test]
fn guest_is_interrupted_for_answers_of_the_last_backend() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let mut guest = FrontEnd::connect(&scene);
    guest.place(RINGS).unwrap();
    guest.wire.set_vring_base(0, 0).unwrap();
    assert_eq!(guest.interrupts(), 0);
    guest.change_call();
    eventually("an interrupt", || guest.interrupts() == 1);
}
