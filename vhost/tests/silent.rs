//! Connections that say nothing: none of them takes the place of one that does.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use ring_test_support::front_end::FrontEnd;
use ring_test_support::process::{PATIENCE, eventually};
use shared_block_ring::handover::Role;
use shared_block_ring::wait::wait_readable;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn dial(scene: &Scene) -> OwnedFd {
    let kind = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
    let client = socket(AddressFamily::Unix, kind.0, kind.1, None).unwrap();
    connect(client.as_raw_fd(), &UnixAddr::new(&scene.path("c")).unwrap()).unwrap();
    client
}

#[test]
fn consumer_attaches_beside_any_number_of_clients_that_ask_for_nothing() {
    const WORDS: &str = "it asked for nothing, and more than 32 clients of its kind have come";
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let consumer = scene.connect(Role::Consumer).unwrap();
    let idle: Vec<_> = (0..40).map(|_| scene.connect(Role::Control).unwrap()).collect();
    eventually("it is logged", || scene.logged(WORDS) > 0);
    // One a second at most.
    assert!(scene.logged(WORDS) <= 8);
    drop(consumer);
    let _consumer = scene.connect(Role::Consumer).unwrap();
    // Those that have made way, without the one that looks.
    assert!(scene.counter("turned_away") >= 8);
    drop(idle);
}

#[test]
fn connections_that_send_nothing_keep_no_client_out() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let silent: Vec<_> = (0..100).map(|_| dial(&scene)).collect();
    let _consumer = scene.connect(Role::Consumer).unwrap();
    let words = "it said nothing, and more than 32 such connections";
    eventually("it is logged", || scene.logged(words) > 0);
    // Each of them is given up, by others or by its time.
    for client in &silent {
        assert!(wait_readable(&[client.as_fd()], Some(PATIENCE)).unwrap().is_some());
    }
    eventually("they are counted", || scene.counter("turned_away") >= 100);
}

#[test]
fn front_ends_that_send_nothing_hold_up_no_other() {
    const SILENT: usize = 10;
    const WORDS: &str = "a front end that says nothing was let go";
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let silent: Vec<_> =
        (0..SILENT).map(|_| UnixStream::connect(scene.path("s")).unwrap()).collect();
    let start = Instant::now();
    FrontEnd::new(&scene).honest(&scene);
    // It was five seconds for each of them.
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    eventually("it is logged", || scene.logged(WORDS) > 0);
    let lines = scene.logged(WORDS);
    assert!(lines < SILENT, "{lines}");
    for mut stream in silent {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}
