//! Conversations of no sense, over descriptors of every kind.

use crate::bare::{FrontEnd, MEMORY, USER_ADDRESS, memory, words};
use crate::common::daemon::Scene;
use crate::{ends_well, works};
use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One message: its code, 32-bit words of its body, and which of our descriptors go with it.
type Message = (u32, Vec<u32>, Vec<usize>);

/// Numbers that mean something somewhere, and others.
fn word() -> impl Strategy<Value = u32> {
    let small = 0..10u32;
    let known = prop::sample::select(vec![
        u32::try_from(MEMORY).unwrap(),
        u32::try_from(USER_ADDRESS).unwrap(),
        4096,
        256,
        1 << 30,
        u32::MAX,
        1 << 31,
    ]);
    prop_oneof![4 => small, 3 => known, 1 => any::<u32>()]
}

fn message() -> impl Strategy<Value = Message> {
    let body = prop_oneof![
        2 => prop::collection::vec(word(), 0..=2),
        2 => prop::collection::vec(word(), 10..=12),
        1 => prop::collection::vec(word(), 0..80),
    ];
    (1..46u32, body, prop::collection::vec(0..4usize, 0..3))
}

#[test]
fn conversations_of_no_sense_leave_the_daemon_serving() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let file = memory();
    let event = OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let descriptors = [file.as_fd(), event.as_fd(), reader.as_fd(), writer.as_fd()];
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    let talks = (any::<bool>(), prop::collection::vec(message(), 1..30));
    let outcome = TestRunner::new(config).run(&talks, |(begun, messages)| {
        let front_end = FrontEnd::connect(&scene);
        if begun {
            front_end.start(&file, &event, &event);
        }
        for (code, body, which) in messages {
            let files: Vec<BorrowedFd<'_>> = which.iter().map(|&at| descriptors[at]).collect();
            front_end.send(code, &words(&body), &files);
        }
        // It has dealt with everything when it hangs up, and is there for the next.
        let _ = front_end.0.shutdown(std::net::Shutdown::Write);
        front_end.ends();
        Ok(())
    });
    outcome.unwrap();
    works(&scene);
    ends_well(daemon);
}
