//! In-flight regions that another backend has written, and such as are none.

use super::guest::Guest;
use super::qemu::QEMU;
use super::script::{Connection, Message};
use super::{boot, daemon};
use crate::common::daemon::{Daemon, Scene};
use ring_test_support::front_end::FrontEnd;
use ring_test_support::process::eventually;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

/// The layout of a queue's part (vhost-user, "Inflight I/O tracking").
const HEADER: u64 = 16;
const STATE: u64 = 16;

/// Starts a guest, and notes the requests with these places in its batch as unfinished, as another
/// backend would that was killed. Returns what comes of the next connection.
fn taken_over(scene: &Scene, places: &[usize]) -> (Guest, Daemon, vhost::Result<()>) {
    let mut guest = Guest::new(QEMU.queues, QEMU.queue_size);
    let backend = daemon(scene);
    let connection = boot(scene, &QEMU, &mut guest);
    drop((backend, connection));
    guest.submit_batch();
    let (_, record) = guest.inflight.as_ref().unwrap();
    for &place in places {
        let head = u64::from(guest.head(place));
        record.write_all_at(&[1], HEADER + STATE * head).unwrap();
    }
    let backend = daemon(scene);
    guest.set_bases(QEMU.base);
    let mut connection = Connection::open(scene, &QEMU);
    connection.play(QEMU.reconnect.unwrap(), &mut guest).unwrap();
    let started = connection.play(QEMU.start, &mut guest);
    // Without acknowledgements the end of the connection shows with the next question.
    let started = started.and_then(|()| connection.play(&[Message::GetFeatures], &mut guest));
    if started.is_ok() {
        guest.finish_batch(scene);
    }
    (guest, backend, started)
}

#[test]
fn requests_that_another_backend_left_are_carried_out_if_they_are_in_order() {
    let scene = Scene::new();
    for places in [&[][..], &[0], &[0, 1, 2, 3, 4]] {
        let (guest, _backend, started) = taken_over(&scene, places);
        started.unwrap();
        let (_, record) = guest.inflight.as_ref().unwrap();
        let mut states = vec![0; 16 * usize::from(QEMU.queue_size)];
        record.read_exact_at(&mut states, HEADER).unwrap();
        assert!(states.iter().all(|&byte| byte == 0), "the record is empty again");
    }
}

#[test]
fn requests_that_another_backend_has_overtaken_are_refused_in_words() {
    let scene = Scene::new();
    let (guest, _backend, started) = taken_over(&scene, &[1, 3]);
    assert!(started.is_err());
    assert_eq!(usize::from(guest.unanswered()), 5 * guest.queues.len(), "none is answered twice");
    eventually("it is logged", || scene.logged("took out of order") == 1);
    FrontEnd::connect(&scene).works();
}

#[test]
fn in_flight_region_that_is_none_ends_its_connection_alone() {
    let scene = Scene::new();
    let _daemon = daemon(&scene);
    let asked = |queues, size| VhostUserInflight::new(0, 0, queues, size);
    for (queues, size) in [(u16::MAX, 128), (1, 3), (1, u16::MAX)] {
        let mut front_end = FrontEnd::connect(&scene);
        assert!(front_end.wire.get_inflight_fd(&asked(queues, size)).is_err());
    }
    let (about, file) = {
        let mut front_end = FrontEnd::connect(&scene);
        front_end.wire.get_inflight_fd(&asked(1, 256)).unwrap()
    };
    assert!(file.set_len(0).is_err(), "sealed");
    for wrong in [
        VhostUserInflight { mmap_offset: 64, ..about },
        VhostUserInflight { mmap_offset: u64::MAX, ..about },
        VhostUserInflight { mmap_size: u64::MAX, ..about },
        VhostUserInflight { queue_size: 512, ..about },
        VhostUserInflight { num_queues: u16::MAX, ..about },
    ] {
        let mut front_end = FrontEnd::connect(&scene);
        assert!(front_end.wire.set_inflight_fd(&wrong, file.as_raw_fd()).is_err());
    }
    FrontEnd::connect(&scene).works();
}
