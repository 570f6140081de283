//! Messages that no correct front end sends: at most its connection ends, and the next front end is
//! served.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use ring_test_support::front_end::{FrontEnd, MEMORY, RINGS, described, region};
use ring_test_support::process::eventually;
use ring_test_support::split_ring::Rings;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

#[test]
fn memory_that_does_not_fit_the_address_space_harms_no_other_front_end() {
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
        // Whatever the answer is, the daemon serves the next front end.
        let _ = guest.wire.add_mem_region(&info);
        drop(guest);
        FrontEnd::new(&scene).honest(&scene);
    }
    println!("{} panics of the crate's, contained", scene.logged("panicked"));
}

#[test]
fn feature_that_was_not_offered_is_refused() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    for bit in [0, 5, 14, 25, 26, 33, 34, 36, 40, 63] {
        let guest = FrontEnd::connect(&scene);
        let offered = guest.wire.get_features().unwrap();
        assert_eq!(offered & (1 << bit), 0, "bit {bit}");
        assert!(guest.wire.set_features(offered | 1 << bit).is_err(), "bit {bit}");
    }
    FrontEnd::new(&scene).honest(&scene);
}

#[test]
fn configuration_space_is_read_anywhere_and_written_at_writeback_alone() {
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
fn queue_of_an_invalid_size_or_number_is_refused() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let messages: [fn(&mut FrontEnd) -> bool; 5] = [
        |guest| guest.wire.set_vring_num(0, 0).is_ok(),
        |guest| {
            guest.stop();
            guest.place(Rings { size: 32_769, ..RINGS }).is_ok()
        },
        |guest| guest.wire.set_vring_num(64, 16).is_ok(),
        |guest| guest.wire.set_vring_base(64, 0).is_ok(),
        |guest| guest.wire.set_vring_enable(64, true).is_ok(),
    ];
    for message in messages {
        let mut guest = FrontEnd::new(&scene);
        assert!(!message(&mut guest));
        drop(guest);
        FrontEnd::new(&scene).honest(&scene);
    }
}

/// crosvm's queues are as large unless it is told otherwise.
#[test]
fn queue_may_have_as_many_descriptors_as_virtio_allows() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let mut guest = FrontEnd::connect(&scene);
    let (size, descriptors) = (32_768, 0x30_0000);
    guest.start(Rings { size, descriptors, available: 0x38_0000, used: 0x3a_0000 });
    guest.honest(&scene);
}

#[test]
fn queue_may_be_started_twice_and_stopped_twice() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let mut guest = FrontEnd::new(&scene);
    guest.start(RINGS);
    guest.honest(&scene);
    guest.stop();
    guest.stop();
    guest.start(RINGS);
    guest.honest(&scene);
    assert_eq!(scene.counter("broken"), 0);
}

#[test]
fn bytes_that_are_no_message_end_their_connection() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    for bytes in [&[0xff; 64][..], &[0; 12], &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]] {
        let mut stream = UnixStream::connect(scene.path("s")).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let _ = stream.write_all(bytes);
        // The connection ends, or there is an answer: the next front end is served in either case.
        let _ = stream.read(&mut [0; 64]);
        drop(stream);
        FrontEnd::new(&scene).honest(&scene);
    }
}

#[test]
fn thousand_front_ends_leave_nothing_behind() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let come_and_go = || FrontEnd::new(&scene).honest(&scene);
    // After some front ends everything is allocated that is allocated once or kept by the
    // allocator.
    for _ in 0..50 {
        come_and_go();
    }
    let before = daemon.footprint();
    for _ in 0..1000 {
        come_and_go();
    }
    // Threads end a little after the last connection.
    eventually("threads and descriptors are as they were", || {
        let now = daemon.footprint();
        now.threads <= before.threads && now.descriptors <= before.descriptors
    });
    let after = daemon.footprint();
    assert!(after.resident_kib < before.resident_kib + 512, "{before:?} became {after:?}");
}
