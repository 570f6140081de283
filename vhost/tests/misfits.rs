//! Front ends whose VMM's command line does not fit the disk: the log says once what to change
//! there, however often they connect again.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use ring_test_support::front_end::{FrontEnd, RINGS, described, region};
use ring_test_support::process::{PATIENCE, eventually};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vm_memory::GuestMemoryBackend;

/// How often a front end connects again.
const TIMES: usize = 20;

/// Checks that `words` are logged once for front ends that do `fail`, and once more after another
/// front end was served.
fn is_said_once(words: &str, fail: impl Fn(&mut FrontEnd)) {
    is_said_once_of(words, |scene| fail(&mut FrontEnd::connect(scene)));
}

/// Checks the same for front ends that `come` connects, and whose connections end before it
/// returns.
fn is_said_once_of(words: &str, come: impl Fn(&Scene)) {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    for _ in 0..TIMES {
        come(&scene);
    }
    FrontEnd::new(&scene).honest(&scene);
    eventually("it is logged", || scene.logged(words) > 0);
    let log = scene.log();
    assert_eq!(scene.logged(words), 1, "{words:?} in {log}");
    assert!(scene.logged("") < 10, "{log}");
    assert_eq!(scene.counter("connections"), TIMES as u64 + 1);
    eventually("it is said again", || {
        come(&scene);
        scene.logged(words) == 2
    });
}

#[test]
fn number_of_queues_that_is_too_large_is_named_once() {
    is_said_once("more than 64 queues (QEMU: num-queues=64 or less)", |guest| {
        assert!(guest.wire.set_vring_num(64, 16).is_err());
    });
}

#[test]
fn queue_that_is_too_large_is_named_once() {
    is_said_once("or a queue of more than 32768 descriptors", |guest| {
        assert!(guest.wire.set_vring_num(0, 32_769).is_err());
    });
}

#[test]
fn memory_that_is_not_shared_is_named_once() {
    is_said_once(
        "it shares none of the guest's memory (QEMU: -object memory-backend-memfd",
        |guest| {
            let all = described(guest.memory.iter().next().unwrap());
            guest.wire.remove_mem_region(&all).unwrap();
            assert!(guest.place(RINGS).is_err());
        },
    );
}

/// Sends what QEMU 7.2 sends when the backend was replaced while the guest was paused, and the
/// guest goes on.
#[test]
fn front_end_that_goes_on_with_an_earlier_connection_is_named_once() {
    is_said_once_of("it goes on with what it set up on an earlier connection", |scene| {
        let wire = Frontend::connect(scene.path("s"), 1).unwrap();
        wire.set_features(wire.get_features().unwrap()).unwrap();
        wire.set_vring_num(0, RINGS.size).unwrap();
        wire.set_vring_base(0, 7).unwrap();
        let rings = VringConfigData {
            queue_max_size: RINGS.size,
            queue_size: RINGS.size,
            desc_table_addr: RINGS.descriptors,
            avail_ring_addr: RINGS.available,
            used_ring_addr: RINGS.used,
            ..VringConfigData::default()
        };
        wire.set_vring_addr(0, &rings).unwrap();
        // No answer comes any more.
        assert!(wire.get_vring_base(0).is_err());
    });
}

/// The same if the driver had not used the disk before, so that QEMU adds memory.
#[test]
fn front_end_that_adds_memory_by_an_earlier_connections_features_is_named_once() {
    is_said_once_of("it goes on with what it set up on an earlier connection", |scene| {
        let mut wire = UnixStream::connect(scene.path("s")).unwrap();
        // ADD_MEM_REG, version 1, and its body.
        let header = [37u32, 1, 40].map(u32::to_le_bytes);
        wire.write_all(&[header.as_flattened(), &[0; 40]].concat()).unwrap();
        assert_eq!(wire.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn feature_that_is_not_offered_is_named_once() {
    is_said_once("it asks for what this disk does not offer", |guest| {
        // A packed queue.
        assert!(guest.wire.set_features(guest.features | 1 << 34).is_err());
    });
}

#[test]
fn memory_that_cannot_be_mapped_is_named_once() {
    let more = region(1 << 30, 1 << 20);
    is_said_once("bytes of the guest's memory: ", |guest| {
        let mut too_long = described(&more);
        too_long.memory_size = 1 << 50;
        assert!(guest.wire.add_mem_region(&too_long).is_err());
    });
}

#[test]
fn kicks_for_nothing_make_the_log_ask_for_shared_memory_once() {
    const WORDS: &str = "its memory is not what is shared (QEMU: -object";
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let mut guest = FrontEnd::new(&scene);
    // The daemon logs it after ten seconds.
    let start = Instant::now();
    while scene.logged(WORDS) == 0 {
        assert!(start.elapsed() < 4 * PATIENCE);
        daemon.kicked_by(&guest);
        std::thread::sleep(Duration::from_millis(200));
    }
    daemon.kicked_by(&guest);
    guest.honest(&scene);
    daemon.kicked_by(&guest);
    assert_eq!(scene.logged(WORDS), 1);
}

/// A mapping that the kernel refuses, because a limit on the backend leaves no room for it.
#[test]
fn memory_that_exceeds_the_backends_address_space_is_named() {
    const ROOM: u64 = 64 << 20;
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let mut guest = FrontEnd::connect(&scene);
    let process = daemon.0.id().to_string();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let in_use = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let in_use: u64 = in_use.trim().trim_end_matches(" kB").parse().unwrap();
    let limit = format!("--as={}", in_use * 1024 + ROOM);
    let limited = Command::new("prlimit").args(["--pid", &process, &limit]).status();
    assert!(limited.unwrap().success());
    let more = region(1 << 30, 2 * ROOM);
    assert!(guest.wire.add_mem_region(&described(&more)).is_err());
    eventually("it is logged", || {
        scene.logged("Cannot allocate memory") == 1
            && scene.logged("LimitAS=) has to leave room") == 1
    });
}
