//! Limits on what a guest can make the backend spend: time in a turn, memory, lines of the log.
#![allow(clippy::unwrap_used)]

use crate::common::attack::{BROKEN, start};
use crate::common::daemon::Scene;
use ring_test_support::beside::beside;
use ring_test_support::front_end::{DATA, FrontEnd, HEADER, RINGS, STATUS, described, region};
use ring_test_support::process::{PATIENCE, eventually};
use ring_test_support::split_ring::{linked, readable, writable};
use shared_block_ring::handover::Role;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion};

#[test]
fn storm_of_kicks_costs_a_bounded_time() {
    let (scene, _daemon, mut guest) = start();
    let served = scene.counter("served");
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        for _ in 0..100 {
            guest.kick();
        }
    }
    // No request was offered, none was served, and the next one is not delayed.
    assert_eq!(scene.counter("served"), served);
    guest.honest(&scene);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn busy_guest_does_not_keep_its_front_end_waiting() {
    let (scene, _daemon, mut guest) = start();
    guest.header(VIRTIO_BLK_T_IN, 3);
    let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
    guest.describe(RINGS.descriptors, 0, &linked(0, &chain));
    for _ in 0..RINGS.size {
        guest.offer(0);
    }
    // Another processor of the guest, which keeps the queue full.
    let memory = guest.memory.clone();
    let kick = guest.kick_event.try_clone().unwrap();
    let busy = || {
        let used: u16 = memory.load(GuestAddress(RINGS.used + 2), Ordering::Acquire).unwrap();
        let at = GuestAddress(RINGS.available + 2);
        memory.store(used.wrapping_add(RINGS.size), at, Ordering::Release).unwrap();
        kick.write(1).unwrap();
    };
    beside(busy, || {
        eventually("the guest is busy", || scene.counter("reads") > 1000);
        let before = scene.counter("reads");
        let mut longest = Duration::ZERO;
        let (begun, mut messages) = (Instant::now(), 0);
        // On a busy machine the guest's other processor may not run for a while.
        while messages < 20 || scene.counter("reads") == before {
            assert!(begun.elapsed() < PATIENCE, "the guest is not busy any more");
            let start = Instant::now();
            guest.change_call();
            longest = longest.max(start.elapsed());
            messages += 1;
        }
        let start = Instant::now();
        guest.stop();
        println!(
            "a message {longest:?}, the stop {:?}, {} reads",
            start.elapsed(),
            scene.counter("reads")
        );
        assert!(longest < Duration::from_secs(1) && start.elapsed() < Duration::from_secs(1));
    });
    guest.start(RINGS);
    guest.honest(&scene);
}

/// Guest address of the memory that a front end adds.
const ADDED: u64 = 1 << 30;

#[test]
fn largest_request_over_memory_that_is_gone_ends_its_front_end_alone() {
    let scene = Scene::new();
    let mut daemon = scene.start(&["--size", "32M"]);
    let mut guest = FrontEnd::new(&scene);
    let memory = region(ADDED, 32 << 20);
    guest.wire.add_mem_region(&described(&memory)).unwrap();
    guest.header(VIRTIO_BLK_T_IN, 3);
    // Data that begins in the middle of a page: it touches one page more than its bytes fill.
    let chain = [readable(HEADER, 16), writable(ADDED + 2048, 16 << 20), writable(STATUS, 1)];
    guest.describe(RINGS.descriptors, 0, &linked(0, &chain));
    memory.file_offset().unwrap().file().set_len(0).unwrap();
    guest.offer(0);
    guest.kick();
    eventually("it is let go", || guest.wire.get_features().is_err());
    drop(guest);
    assert!(daemon.0.try_wait().unwrap().is_none(), "the daemon has ended");
    assert_eq!(FrontEnd::new(&scene).read(3, &mut [0; 512]), 0);
}

#[test]
fn front_end_cannot_use_up_the_descriptors_of_the_consumer() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let mut guest = FrontEnd::new(&scene);
    let page = region(ADDED, 4096);
    let place = |number: u64| {
        let mut place = described(&page);
        place.guest_phys_addr += number * 4096;
        place.userspace_addr += number * 4096;
        place
    };
    let added = (0..2000).take_while(|n| guest.wire.add_mem_region(&place(*n)).is_ok()).count();
    // Besides the region that the front end has from the start.
    assert_eq!(added, 508);
    scene.connect(Role::Consumer).unwrap();
}

#[test]
fn turn_ends_although_every_request_is_of_the_largest_size() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--size", "64M"]);
    let mut guest = FrontEnd::new(&scene);
    let mut chain = vec![readable(HEADER, 16)];
    chain.extend(vec![writable(DATA, 1 << 20); 16]);
    chain.push(writable(STATUS, 1));
    guest.header(VIRTIO_BLK_T_IN, 3);
    guest.describe(RINGS.descriptors, 0, &linked(0, &chain));
    // 4 GiB in all.
    for _ in 0..RINGS.size {
        guest.offer(0);
    }
    guest.kick();
    guest.completion().expect("no answer");
    let start = Instant::now();
    guest.change_call();
    let message = start.elapsed();
    let done = guest.stop();
    println!("a message {message:?}, the stop {:?}, {done} requests by then", start.elapsed());
    assert!(done < RINGS.size.into(), "the backend was done before it was asked to stop");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    guest.start(RINGS);
    assert_eq!(guest.read(0, &mut [0; 512]), 0);
}

#[test]
fn log_and_memory_do_not_grow_with_a_guests_requests() {
    let (scene, daemon, mut guest) = start();
    let before = daemon.footprint().own_kib;
    let start = Instant::now();
    for _ in 0..2000 {
        assert_eq!(u32::from(guest.write(0, &[0; 512])), VIRTIO_BLK_S_IOERR);
    }
    for times in 0..150 {
        let before = scene.counter("broken");
        if times % 2 == 0 {
            guest.reset();
            guest.set_available(guest.available().wrapping_add(1000));
            guest.kick();
        } else {
            // Masking an interrupt restarts a broken queue like a reset, and the bad index is still
            // there.
            guest.change_call();
        }
        eventually("the queue is stopped", || scene.counter("broken") > before);
    }
    guest.reset();
    guest.honest(&scene);
    drop(guest);
    for _ in 0..50 {
        drop(FrontEnd::new(&scene));
    }
    FrontEnd::new(&scene).honest(&scene);
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap() + 1;
    assert_eq!(scene.counter("refused.signature"), 2000);
    let (refused, broken) = (scene.logged("refused a request"), scene.logged(BROKEN));
    let after = daemon.footprint().own_kib;
    println!("{before} KiB before, {after} KiB after");
    assert!(after < before + 2048, "memory grows: {before} KiB, {after} KiB");
    println!("in {seconds} s: {refused} and {broken} lines, {} in all", scene.logged(""));
    assert!((1..=seconds).contains(&refused), "{refused}");
    assert!((1..=seconds).contains(&broken), "{broken}");
    assert!(scene.logged("") < 6 * seconds + 5, "{}", scene.logged(""));
    assert!(start.elapsed() < 3 * PATIENCE);
}

/// Two million empty items are published at once: the first try is reset in the middle, the second
/// one is carried out.
#[test]
fn long_batch_does_not_keep_the_front_end_waiting() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--size", "8M"]);
    let mut guest = FrontEnd::new(&scene);
    let mut sector = [0; 512];
    sector[..8].copy_from_slice(&(8_000_000u64).to_le_bytes());
    sector[8] = 2;
    guest.memory.write_slice(&sector, GuestAddress(DATA)).unwrap();
    let chain = [readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)];
    let begin = |guest: &mut FrontEnd| {
        guest.header(VIRTIO_BLK_T_OUT, 1);
        guest.describe(RINGS.descriptors, 0, &linked(0, &chain));
        guest.offer(0);
        guest.kick();
    };
    begin(&mut guest);
    let start = Instant::now();
    guest.change_call();
    guest.reset();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(scene.counter("published"), 0, "two million items in no time");
    begin(&mut guest);
    guest.completion().expect("no answer");
    assert_eq!((guest.status(), scene.counter("published")), (0, 1));
}
