//! What the backend writes to guest memory while the front end migrates the guest: each page of it is in the front end's log.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{Scene, eventually};
use common::front_end::{
    DATA, FrontEnd, HEADER, MEMORY, RINGS, STATUS, linked, readable, writable,
};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID};

const PAGE: u64 = 4096;

/// A bit for each page of guest memory.
struct Log(File);

impl Log {
    fn new() -> Self {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = File::from(nix::sys::memfd::memfd_create(c"log", flags).unwrap());
        file.set_len(MEMORY / PAGE / 8).unwrap();
        Self(file)
    }

    fn begin(&self, front_end: &FrontEnd) {
        let region = VhostUserDirtyLogRegion {
            mmap_size: MEMORY / PAGE / 8,
            mmap_offset: 0,
            mmap_handle: self.0.as_raw_fd(),
        };
        front_end.wire.set_log_base(0, Some(region)).unwrap();
    }

    /// The pages that were written to since the last time.
    fn take(&self) -> Vec<u64> {
        let mut bits = vec![0; usize::try_from(MEMORY / PAGE / 8).unwrap()];
        self.0.read_exact_at(&mut bits, 0).unwrap();
        self.0.write_all_at(&vec![0; bits.len()], 0).unwrap();
        (0..MEMORY / PAGE)
            .filter(|page| bits[usize::try_from(page / 8).unwrap()] & (1 << (page % 8)) != 0)
            .collect()
    }
}

fn pages(bytes: &[u64]) -> Vec<u64> {
    bytes.iter().map(|byte| byte / PAGE).collect()
}

#[test]
fn every_page_that_is_written_to_is_marked_and_no_other() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--migratable"]);
    let mut guest = FrontEnd::new(&scene);
    let log = Log::new();
    let answered = [RINGS.used, STATUS];
    guest.read(0, &mut [0; 8192]);
    assert_eq!(log.take(), pages(&[]), "nobody has asked");
    // Twice: a second migration has a log of its own.
    for log in [&log, &Log::new()] {
        log.begin(&guest);
        assert_eq!(log.take(), pages(&[]));
        guest.read(0, &mut [0; 8192]);
        assert_eq!(log.take(), pages(&[RINGS.used, STATUS, DATA, DATA + PAGE]));
        // The next to last byte of a page, and some of the next.
        guest.request(VIRTIO_BLK_T_GET_ID, 0, writable(DATA + PAGE - 2, 20));
        assert_eq!(log.take(), pages(&[RINGS.used, STATUS, DATA, DATA + PAGE]));
        guest.write(10, &[7; 512]);
        assert_eq!(log.take(), pages(&answered));
        assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, readable(0, 0)), 0);
        assert_eq!(log.take(), pages(&answered));
        // Refused.
        assert_ne!(guest.write(0, &[7; 512]), 0);
        assert_eq!(log.take(), pages(&answered));
    }
}

#[test]
fn a_log_that_is_cut_short_ends_its_front_end_and_no_other() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--migratable"]);
    let mut guest = FrontEnd::new(&scene);
    let log = Log::new();
    log.begin(&guest);
    log.0.set_len(0).unwrap();
    guest.header(VIRTIO_BLK_T_FLUSH, 0);
    let chain = linked(0, &[readable(HEADER, 16), writable(STATUS, 1)]);
    guest.describe(RINGS.descriptors, 0, &chain);
    guest.offer(0);
    guest.kick();
    eventually("it is let go", || guest.wire.get_features().is_err());
    drop(guest);
    FrontEnd::new(&scene).honest(&scene);
}

#[test]
fn a_log_that_does_not_cover_the_guest_is_refused() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--migratable"]);
    let log = Log::new();
    for (mmap_size, mmap_offset) in [(MEMORY / PAGE / 8 - 1, 0), (0, 0), (u64::MAX, 0), (128, 1)] {
        let guest = FrontEnd::new(&scene);
        let mmap_handle = log.0.as_raw_fd();
        let region = VhostUserDirtyLogRegion { mmap_size, mmap_offset, mmap_handle };
        assert!(guest.wire.set_log_base(0, Some(region)).is_err(), "{mmap_size} {mmap_offset}");
    }
    FrontEnd::new(&scene).honest(&scene);
}

#[test]
fn who_has_not_asked_for_it_is_not_offered_a_log() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let guest = FrontEnd::connect(&scene);
    let log = VhostUserVirtioFeatures::LOG_ALL.bits();
    assert_eq!(guest.wire.get_features().unwrap() & log, 0);
    drop(guest);
    let mut bare = vhost::vhost_user::Frontend::connect(scene.path("s"), 1).unwrap();
    bare.get_features().unwrap();
    let offered = bare.get_protocol_features().unwrap();
    assert!(!offered.contains(VhostUserProtocolFeatures::LOG_SHMFD));
}
