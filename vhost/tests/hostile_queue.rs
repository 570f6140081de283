//! Queues, memory and messages that no driver and no front end of good faith makes: the daemon lives, says so once, and serves honest
//! requests after the reset.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{Daemon, PATIENCE, Scene, eventually};
use common::front_end::{
    DATA, FrontEnd, HEADER, MEMORY, RINGS, Rings, STATUS, described, linked, readable, region,
    writable,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// What is said of a queue that is stopped.
const BROKEN: &str = "the queue is broken";

fn start() -> (Scene, Daemon, FrontEnd) {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let mut guest = FrontEnd::new(&scene);
    guest.honest(&scene);
    (scene, daemon, guest)
}

/// The queue is stopped and reported; a kick changes nothing; after a reset it works.
fn broken(scene: &Scene, guest: &mut FrontEnd) {
    eventually("the queue is stopped", || scene.counter("broken") == 1);
    let used = guest.used_index();
    guest.kick();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((scene.counter("broken"), scene.logged(BROKEN)), (1, 1));
    assert_eq!(guest.used_index(), used);
    guest.reset();
    guest.honest(scene);
}

#[test]
fn an_available_index_that_jumps() {
    for jump in [257, 1000, 32_768, 65_000] {
        let (scene, _daemon, mut guest) = start();
        guest.set_available(guest.available().wrapping_add(jump));
        guest.kick();
        broken(&scene, &mut guest);
    }
}

#[test]
fn an_available_index_that_goes_back() {
    let (scene, _daemon, mut guest) = start();
    guest.set_available(guest.available() - 1);
    guest.kick();
    broken(&scene, &mut guest);
}

#[test]
fn a_head_outside_the_table() {
    let (scene, _daemon, mut guest) = start();
    guest.offer(256);
    guest.kick();
    broken(&scene, &mut guest);
    assert_eq!(scene.counter("refused.malformed"), 1);
}

#[test]
fn rings_that_end_outside_memory() {
    for rings in [
        Rings { descriptors: MEMORY - 16, ..RINGS },
        Rings { available: MEMORY - 4, ..RINGS },
        Rings { used: MEMORY - 4, ..RINGS },
    ] {
        let (scene, _daemon, mut guest) = start();
        guest.stop();
        guest.start(rings);
        guest.set_available(1);
        guest.kick();
        broken(&scene, &mut guest);
    }
}

#[test]
fn rings_that_begin_outside_memory() {
    let (scene, _daemon, mut guest) = start();
    guest.stop();
    assert!(guest.place(Rings { available: MEMORY + 4096, ..RINGS }).is_err());
    // The front end that asked for it is let go; another is served.
    drop(guest);
    FrontEnd::new(&scene).honest(&scene);
}

#[test]
fn overlapping_rings() {
    let (scene, _daemon, mut guest) = start();
    guest.stop();
    guest.start(Rings { available: 0x1000, used: 0x1000, ..RINGS });
    for _ in 0..100 {
        guest.offer(0);
        guest.kick();
    }
    std::thread::sleep(Duration::from_millis(20));
    guest.reset();
    guest.honest(&scene);
}

/// One write after the other to the first sector of the free part, from `data`: those in the queue now.
fn writes(guest: &mut FrontEnd, count: u16, data: u64) {
    guest.header(VIRTIO_BLK_T_OUT, 20);
    for request in 0..count {
        let head = request * 3;
        let chain = [readable(HEADER, 16), readable(data, 512), writable(STATUS, 1)];
        guest.describe(RINGS.descriptors, head, &linked(head, &chain));
        guest.offer(head);
    }
    guest.kick();
}

#[test]
fn memory_removed_under_load() {
    let (scene, _daemon, mut guest) = start();
    let more = Arc::new(region(1 << 28, 1 << 20));
    let with = guest.memory.insert_region(Arc::clone(&more)).unwrap();
    guest.wire.add_mem_region(&described(&more)).unwrap();
    for round in 0..20u8 {
        guest.memory.write_slice(&[round; 64], GuestAddress(DATA)).unwrap();
        with.write_slice(&[round; 512], GuestAddress(1 << 28)).unwrap();
        writes(&mut guest, 60, 1 << 28);
        guest.wire.remove_mem_region(&described(&more)).unwrap();
        for _ in 0..60 {
            guest.completion().expect("no answer");
        }
        guest.wire.add_mem_region(&described(&more)).unwrap();
    }
    let failed = scene.counter("failed");
    guest.wire.remove_mem_region(&described(&more)).unwrap();
    writes(&mut guest, 1, 1 << 28);
    guest.completion().expect("no answer");
    assert_eq!(u32::from(guest.status()), VIRTIO_BLK_S_IOERR);
    assert_eq!(scene.counter("failed"), failed + 1);
    guest.honest(&scene);
    assert_eq!(scene.counter("broken"), 0);
}

#[test]
fn memory_replaced_under_load() {
    let (scene, _daemon, mut guest) = start();
    for _ in 0..20 {
        writes(&mut guest, 60, DATA);
        // The same memory at the same place, mapped anew.
        guest.set_memory();
        for _ in 0..60 {
            guest.completion().expect("no answer");
        }
    }
    guest.honest(&scene);
    assert_eq!(scene.counter("broken"), 0);
}

#[test]
fn memory_with_the_rings_in_it_removed() {
    let (scene, _daemon, mut guest) = start();
    let rings = guest.memory.clone();
    let elsewhere = GuestMemoryMmap::from_regions(vec![region(1 << 30, 1 << 20)]).unwrap();
    guest.memory = elsewhere;
    guest.set_memory();
    guest.memory = rings;
    guest.kick();
    eventually("the queue is stopped", || scene.counter("broken") == 1);
    guest.set_memory();
    broken(&scene, &mut guest);
}

#[test]
fn memory_that_no_address_space_holds() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    for (start, size, user) in [
        (u64::MAX - 4096, 8192, 0x7000_0000),
        (1 << 30, 8192, u64::MAX - 4096),
        (1 << 30, 1 << 60, 0x7000_0000),
        (1 << 30, 0, 0x7000_0000),
        (0, MEMORY, 0x7000_0000),
    ] {
        let mut guest = FrontEnd::new(&scene);
        let more = region(1 << 29, 8192);
        let mut info = described(&more);
        (info.guest_phys_addr, info.memory_size, info.userspace_addr) = (start, size, user);
        // Whatever comes of it, the daemon serves the next one.
        let _ = guest.wire.add_mem_region(&info);
        drop(guest);
        FrontEnd::new(&scene).honest(&scene);
    }
    println!("{} panics of the crate's, contained", scene.logged("panicked"));
}

#[test]
fn features_that_were_not_offered() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    for bit in [0, 5, 14, 25, 26, 33, 34, 35, 40, 63] {
        let guest = FrontEnd::connect(&scene);
        let offered = guest.wire.get_features().unwrap();
        assert_eq!(offered & (1 << bit), 0, "bit {bit}");
        assert!(guest.wire.set_features(offered | 1 << bit).is_err(), "bit {bit}");
    }
    FrontEnd::new(&scene).honest(&scene);
}

#[test]
fn the_configuration_space_is_read_in_any_piece_and_written_in_one_place() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let mut guest = FrontEnd::new(&scene);
    let flags = VhostUserConfigFlags::empty();
    for (offset, len) in [(0, 60), (0, 1), (31, 2), (34, 2), (60, 100), (255, 1), (0, 256)] {
        let buffer = vec![0; usize::try_from(len).unwrap()];
        let (_, bytes) = guest.wire.get_config(offset, len, flags, &buffer).unwrap();
        assert_eq!(bytes.len(), buffer.len());
    }
    guest.wire.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).unwrap();
    guest.honest(&scene);
    drop(guest);
    for (offset, bytes) in [(0, &[0xff; 8][..]), (12, &[0xff; 4]), (20, &[1; 4]), (32, &[1; 2])] {
        let mut guest = FrontEnd::new(&scene);
        assert!(guest.wire.set_config(offset, VhostUserConfigFlags::WRITABLE, bytes).is_err());
        drop(guest);
        let mut guest = FrontEnd::new(&scene);
        let (_, space) = guest.wire.get_config(0, 8, flags, &[0; 8]).unwrap();
        assert_eq!(space[..], 128u64.to_le_bytes());
        guest.honest(&scene);
    }
}

#[test]
fn a_storm_of_kicks() {
    let (scene, _daemon, mut guest) = start();
    let served = scene.counter("served");
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        for _ in 0..100 {
            guest.kick();
        }
    }
    // Nothing was asked for, nothing came of it, and nobody waits longer for it.
    assert_eq!(scene.counter("served"), served);
    guest.honest(&scene);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_busy_guest_does_not_keep_its_front_end_waiting() {
    let (scene, _daemon, mut guest) = start();
    guest.header(VIRTIO_BLK_T_IN, 3);
    let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
    guest.describe(RINGS.descriptors, 0, &linked(0, &chain));
    for _ in 0..RINGS.size {
        guest.offer(0);
    }
    // Another processor of the guest, which never lets the queue run dry.
    let memory = guest.memory.clone();
    let kick = guest.kick_event.try_clone().unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let busy = std::thread::spawn(move || {
        use std::sync::atomic::Ordering;
        while !stopped.load(Ordering::Relaxed) {
            let used: u16 = memory.load(GuestAddress(RINGS.used + 2), Ordering::Acquire).unwrap();
            let at = GuestAddress(RINGS.available + 2);
            memory.store(used.wrapping_add(RINGS.size), at, Ordering::Release).unwrap();
            kick.write(1).unwrap();
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let start = Instant::now();
        guest.change_call();
        longest = longest.max(start.elapsed());
    }
    let start = Instant::now();
    guest.stop();
    println!(
        "a message {longest:?}, the stop {:?}, {} reads",
        start.elapsed(),
        scene.counter("reads")
    );
    assert!(scene.counter("reads") > 1000, "the guest was not busy");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    busy.join().unwrap();
    assert!(longest < Duration::from_secs(1) && start.elapsed() < Duration::from_secs(1));
    guest.start(RINGS);
    guest.honest(&scene);
}

#[test]
fn a_turn_ends_although_every_request_is_as_large_as_can_be() {
    let (scene, _daemon, mut guest) = start();
    // 63,488 bytes a request would be the whole ring; it is read 264 times over in one.
    let chain = |head: u16| {
        let mut chain = vec![readable(HEADER, 16)];
        chain.extend(vec![writable(DATA, 512); 100]);
        chain.push(writable(STATUS, 1));
        linked(head, &chain)
    };
    guest.header(VIRTIO_BLK_T_IN, 3);
    guest.describe(RINGS.descriptors, 0, &chain(0));
    for _ in 0..RINGS.size {
        guest.offer(0);
    }
    guest.kick();
    let start = Instant::now();
    guest.stop();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    guest.start(RINGS);
    guest.honest(&scene);
}

#[test]
fn log_lines_do_not_grow_with_what_a_guest_does() {
    let (scene, _daemon, mut guest) = start();
    let start = Instant::now();
    for _ in 0..2000 {
        assert_eq!(u32::from(guest.write(0, &[0; 512])), VIRTIO_BLK_S_IOERR);
    }
    let resets = 300u16;
    for _ in 0..resets {
        guest.set_available(guest.available().wrapping_add(1000));
        guest.kick();
        guest.reset();
    }
    for _ in 0..300 {
        // As good as a reset, to the backend: the guest masks an interrupt.
        guest.set_available(guest.available().wrapping_add(1000));
        guest.kick();
        guest.change_call();
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
    assert!(scene.counter("broken") > 100, "{}", scene.counter("broken"));
    let (refused, broken) = (scene.logged("refused a request"), scene.logged(BROKEN));
    println!("in {seconds} s: {refused} and {broken} lines, {} in all", scene.logged(""));
    assert!((1..=seconds).contains(&refused), "{refused}");
    assert!((1..=seconds).contains(&broken), "{broken}");
    assert!(scene.logged("") < 6 * seconds + 5, "{}", scene.logged(""));
    assert!(start.elapsed() < 3 * PATIENCE);
}

#[test]
fn resets_under_load_lose_nothing_but_what_was_reset() {
    let (scene, _daemon, mut guest) = start();
    for round in 0..300u16 {
        writes(&mut guest, 1 + round % 80, DATA);
        if round % 3 == 0 {
            guest.completion().expect("no answer");
        }
        guest.reset();
        if round % 10 == 0 {
            guest.honest(&scene);
        }
    }
    guest.honest(&scene);
    assert_eq!(scene.counter("broken"), 0);
}
