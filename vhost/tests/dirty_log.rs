//! The log of dirty pages: while the front end migrates the guest, every page of guest memory that
//! the backend writes to is marked.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use ring_test_support::front_end::{
    DATA, FrontEnd, HEADER, MEMORY, RINGS, STATUS, described, region,
};
use ring_test_support::process::eventually;
use ring_test_support::split_ring::{linked, readable, writable};
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
        Self::covering(MEMORY)
    }

    /// Makes a log for guest memory up to `end`.
    fn covering(end: u64) -> Self {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = File::from(nix::sys::memfd::memfd_create(c"log", flags).unwrap());
        file.set_len(end / PAGE / 8).unwrap();
        Self(file)
    }

    fn begin(&self, front_end: &FrontEnd) {
        let region = VhostUserDirtyLogRegion {
            mmap_size: self.0.metadata().unwrap().len(),
            mmap_offset: 0,
            mmap_handle: self.0.as_raw_fd(),
        };
        front_end.wire.set_log_base(0, Some(region)).unwrap();
    }

    /// Waits until the used ring is marked, which follows the used index that the guest sees, and
    /// returns the pages that were marked since the last call.
    fn take_answered(&self) -> Vec<u64> {
        let page = RINGS.used / PAGE;
        eventually("the used ring is marked", || {
            let mut bits = [0];
            self.0.read_exact_at(&mut bits, page / 8).unwrap();
            bits[0] & (1 << (page % 8)) != 0
        });
        self.take()
    }

    /// Returns the pages that were marked since the last call.
    fn take(&self) -> Vec<u64> {
        let mut bits = vec![0; usize::try_from(self.0.metadata().unwrap().len()).unwrap()];
        self.0.read_exact_at(&mut bits, 0).unwrap();
        self.0.write_all_at(&vec![0; bits.len()], 0).unwrap();
        (0..bits.len() as u64 * 8)
            .filter(|page| bits[usize::try_from(page / 8).unwrap()] & (1 << (page % 8)) != 0)
            .collect()
    }
}

fn pages(bytes: &[u64]) -> Vec<u64> {
    bytes.iter().map(|byte| byte / PAGE).collect()
}

#[test]
fn dirty_log_marks_every_written_page_and_no_other() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--migratable"]);
    let mut guest = FrontEnd::new(&scene);
    let log = Log::new();
    let answered = [RINGS.used, STATUS];
    guest.read(0, &mut [0; 8192]);
    assert_eq!(log.take(), pages(&[]), "nobody has asked");
    // Twice: a second migration has another log.
    for log in [&log, &Log::new()] {
        log.begin(&guest);
        assert_eq!(log.take(), pages(&[]));
        guest.read(0, &mut [0; 8192]);
        assert_eq!(log.take_answered(), pages(&[RINGS.used, STATUS, DATA, DATA + PAGE]));
        // The last two bytes of a page, and some of the next.
        guest.request(VIRTIO_BLK_T_GET_ID, 0, writable(DATA + PAGE - 2, 20));
        assert_eq!(log.take_answered(), pages(&[RINGS.used, STATUS, DATA, DATA + PAGE]));
        guest.write(10, &[7; 512]);
        assert_eq!(log.take_answered(), pages(&answered));
        assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, readable(0, 0)), 0);
        assert_eq!(log.take_answered(), pages(&answered));
        // Refused.
        assert_ne!(guest.write(0, &[7; 512]), 0);
        assert_eq!(log.take_answered(), pages(&answered));
    }
}

/// Memory that is added, or removed and added again, while the log is on.
#[test]
fn dirty_log_covers_memory_that_is_added_while_it_is_on() {
    const MORE: u64 = 2 * MEMORY;
    let scene = Scene::new();
    let _daemon = scene.start(&["--migratable"]);
    let mut guest = FrontEnd::new(&scene);
    let log = Log::covering(4 * MEMORY);
    log.begin(&guest);
    guest.set_memory();
    guest.read(0, &mut [0; 512]);
    assert_eq!(log.take(), pages(&[RINGS.used, STATUS, DATA]), "set again");

    let more = region(MORE, MEMORY);
    guest.wire.add_mem_region(&described(&more)).unwrap();
    for _ in 0..2 {
        assert_eq!(guest.request(VIRTIO_BLK_T_GET_ID, 0, writable(MORE + PAGE, 20)), 0);
        assert_eq!(log.take(), pages(&[RINGS.used, STATUS, MORE + PAGE]), "added");
        // A new log, which covers the region that was added; then the region is shared once more.
        log.begin(&guest);
        guest.wire.remove_mem_region(&described(&more)).unwrap();
        guest.wire.add_mem_region(&described(&more)).unwrap();
    }

    // The next front end has not asked for a log.
    drop(guest);
    let mut next = FrontEnd::new(&scene);
    log.take();
    next.read(0, &mut [0; 512]);
    assert_eq!(log.take(), pages(&[]));
}

#[test]
fn memory_that_the_dirty_log_does_not_cover_is_refused() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--migratable"]);
    let mut guest = FrontEnd::new(&scene);
    let log = Log::new();
    log.begin(&guest);
    let more = region(MEMORY, MEMORY);
    assert!(guest.wire.add_mem_region(&described(&more)).is_err());
    eventually("it is said", || scene.logged("does not cover the memory at 0x400000") == 1);
    drop(guest);
    FrontEnd::new(&scene).honest(&scene);
}

#[test]
fn dirty_log_that_is_truncated_ends_its_front_end_alone() {
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
fn dirty_log_that_does_not_cover_the_guest_is_refused() {
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
fn dirty_log_is_offered_only_with_migratable() {
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
