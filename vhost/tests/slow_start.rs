//! A start that takes long, since the ring's file is slow: a stop ends it soon, and leaves nothing
//! behind.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use crate::common::fuse::FuseFile;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use ring_test_support::process::eventually;
use shared_block_ring::{BlockDevice, CreateOptions, Error, OpenOptions, Producer, create};
use std::fs::File;
use std::time::Duration;

/// Bytes of the ring: with a page at a time, more than four thousand reads.
const BYTES: u64 = 16 << 20;

/// Of a read, so that a start takes longer than anything is waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// The bytes of a ring, with so much in it.
fn ring(scene: &Scene, full: bool) -> Vec<u8> {
    let path = scene.path("image");
    File::create(&path).unwrap().set_len(BYTES).unwrap();
    let device = OpenOptions::default().open(&path).unwrap();
    create(&device, CreateOptions::default()).unwrap();
    assert_eq!(device.geometry().total_bytes(), BYTES);
    let mut producer = Producer::attach(device, "q", "p").unwrap();
    let item = vec![7; 60_000];
    let mut has_room = full;
    while has_room {
        has_room = match producer.push(&item) {
            Ok(_) => true,
            Err(Error::Retry) => false,
            Err(e) => panic!("{e}"),
        };
    }
    producer.advance(producer.position()).unwrap();
    drop(producer);
    std::fs::read(&path).unwrap()
}

fn ends_at_a_stop(full: bool) {
    if !geteuid().is_root() {
        // Only root can mount.
        return;
    }
    let scene = Scene::new();
    let bytes = ring(&scene, full);
    let slow = FuseFile::mount_slow(&scene.path("ring"), bytes, PAUSE);
    let log = File::create(scene.path("log")).unwrap();
    let arguments = ["--socket-path", "s", "--consumer-socket", "c", "--blk-file", "ring"];
    let mut daemon = Daemon(scene.command(&arguments).stderr(log).spawn().unwrap());
    eventually("the ring is read", || slow.reads() > 20);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(0));
    assert!(slow.reads() < BYTES / 4096 / 2, "the walk went on: {} reads", slow.reads());
    assert_eq!(scene.logged("asked to stop before the ring was served"), 1);
    assert!(!scene.path("s").exists() && !scene.path("c").exists());
}

#[test]
fn walk_over_a_full_ring_ends_at_a_stop() {
    ends_at_a_stop(true);
}

#[test]
fn reading_ahead_of_an_empty_ring_ends_at_a_stop() {
    ends_at_a_stop(false);
}
