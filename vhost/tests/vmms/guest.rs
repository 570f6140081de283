//! The guest: its memory, its driver's end of one queue, and what it must find.

use super::common::daemon::Scene;
use super::script::Base;
use ring_test_support::front_end::{described, region};
use ring_test_support::process::eventually;
use ring_test_support::split_ring::{Desc, Rings, linked, put_header, readable, writable};
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Two regions of memory, as a machine with a hole below 4 GiB has them: the queue lies in the
/// first, data in the second.
const LOW: (u64, u64) = (0, 1 << 20);
const HIGH: (u64, u64) = (4 << 30, 1 << 20);

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x6000;
const USED: u64 = 0x8000;
const HEADERS: u64 = 0xc000;
const STATUSES: u64 = 0xd000;

const SECTOR: usize = 512;

/// A status that no device gives.
const UNANSWERED: u8 = 0xaa;

/// The requests of a batch: one sector is written twice, and a third request must not be overtaken
/// by either.
const TWICE: u64 = 10;
const ONCE: u64 = 11;
const BATCH: [(u32, u64); 5] = [
    (VIRTIO_BLK_T_OUT, TWICE),
    (VIRTIO_BLK_T_OUT, TWICE),
    (VIRTIO_BLK_T_FLUSH, 0),
    (VIRTIO_BLK_T_OUT, ONCE),
    (VIRTIO_BLK_T_IN, TWICE),
];

/// Requests that are in flight at most.
const SLOTS: u16 = 16;

/// A request that the driver waits for.
struct Request {
    head: u16,
    /// Its number within the batch.
    number: usize,
}

pub struct Guest {
    memory: GuestMemoryMmap,
    pub rings: Rings,
    pub kick: EventFd,
    pub call: EventFd,
    pub masked: EventFd,
    /// Where the queue starts, if it was stopped in order.
    pub base: u16,
    /// How the front end finds the base after the backend was replaced.
    pub resumed: Option<Base>,
    pub inflight: Option<(VhostUserInflight, File)>,
    /// The protocol features that were negotiated first.
    pub protocol: VhostUserProtocolFeatures,
    available: u16,
    used: u16,
    waiting: VecDeque<Request>,
    /// Batches so far: the bytes that are written tell them apart.
    batch: u8,
    /// Requests of the present batch that were answered.
    answered: usize,
}

impl Guest {
    pub fn new(size: u16) -> Self {
        let regions = [LOW, HIGH].map(|(start, len)| region(start, len));
        let memory = GuestMemoryMmap::from_regions(regions.into()).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            memory,
            rings: Rings { size, descriptors: DESCRIPTORS, available: AVAILABLE, used: USED },
            kick: event(),
            call: event(),
            masked: event(),
            base: 0,
            resumed: None,
            inflight: None,
            protocol: VhostUserProtocolFeatures::empty(),
            available: 0,
            used: 0,
            waiting: VecDeque::new(),
            batch: 0,
            answered: 0,
        }
    }

    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.memory.iter().map(described).collect()
    }

    pub fn user_address(&self, at: u64) -> u64 {
        let low = self.memory.iter().next().unwrap();
        described(low).userspace_addr + at - low.start_addr().raw_value()
    }

    pub fn used_index(&self) -> u16 {
        self.rings.used_index(&self.memory)
    }

    pub fn available_index(&self) -> u16 {
        self.available
    }

    /// Has the front end find the base by itself from here on.
    pub fn set_bases(&mut self, base: Base) {
        self.resumed = Some(base);
    }

    /// The driver begins anew with empty rings, and the front end forgets what belongs to the old
    /// ones.
    pub fn reset(&mut self) {
        for at in [AVAILABLE, USED] {
            self.memory.write_obj(0u32, GuestAddress(at)).unwrap();
        }
        (self.available, self.used, self.base) = (0, 0, 0);
        (self.resumed, self.inflight) = (None, None);
        self.waiting.clear();
    }

    /// Returns the bytes that request `number` of the present batch writes.
    fn bytes(&self, number: usize) -> [u8; SECTOR] {
        [self.batch.wrapping_mul(16).wrapping_add(u8::try_from(number).unwrap()); SECTOR]
    }

    /// Returns the first descriptor of a request of the batch.
    pub fn head(&self, number: usize) -> u16 {
        self.waiting[number].head
    }

    /// Offers a batch of requests, and kicks.
    pub fn submit_batch(&mut self) {
        assert!(self.waiting.is_empty());
        (self.batch, self.answered) = (self.batch.wrapping_add(1), 0);
        for number in 0..BATCH.len() {
            self.submit(number);
        }
        self.kick.write(1).unwrap();
    }

    fn submit(&mut self, number: usize) {
        let (kind, sector) = BATCH[number];
        let slot = self.available % SLOTS;
        let at = u64::from(slot);
        let (header, status) = (HEADERS + 16 * at, STATUSES + at);
        let data = HIGH.0 + 4096 * at;
        put_header(&self.memory, header, kind, 0, sector);
        self.memory.write_obj(UNANSWERED, GuestAddress(status)).unwrap();
        let len = u32::try_from(SECTOR).unwrap();
        let data: Option<Desc> = match kind {
            VIRTIO_BLK_T_OUT => {
                self.memory.write_slice(&self.bytes(number), GuestAddress(data)).unwrap();
                Some(readable(data, len))
            }
            VIRTIO_BLK_T_IN => Some(writable(data, len)),
            _ => None,
        };
        let chain: Vec<_> = [Some(readable(header, 16)), data, Some(writable(status, 1))]
            .into_iter()
            .flatten()
            .collect();
        let head = slot * 4;
        self.rings.describe(&self.memory, head, &linked(head, &chain));
        self.rings.offer(&self.memory, self.available, head);
        self.available = self.available.wrapping_add(1);
        self.rings.set_available_index(&self.memory, self.available);
        self.waiting.push_back(Request { head, number });
    }

    /// Takes the answers that are there. Each request is answered once, in order, without an error.
    pub fn reap(&mut self) {
        let used = self.used_index();
        let count = usize::from(used.wrapping_sub(self.used));
        assert!(count <= self.waiting.len(), "{count} answers to {} requests", self.waiting.len());
        for _ in 0..count {
            let request = self.waiting.pop_front().unwrap();
            let (head, _) = self.rings.completion(&self.memory, self.used);
            assert_eq!(head, u32::from(request.head), "the chain that is answered next");
            let slot = u64::from(request.head / 4);
            let status: u8 = self.memory.read_obj(GuestAddress(STATUSES + slot)).unwrap();
            assert_eq!(status, 0, "request {}", request.number);
            if BATCH[request.number].0 == VIRTIO_BLK_T_IN {
                let mut bytes = [0; SECTOR];
                self.memory.read_slice(&mut bytes, GuestAddress(HIGH.0 + 4096 * slot)).unwrap();
                assert!(bytes == self.bytes(1), "a read sees what was written before it");
            }
            self.used = self.used.wrapping_add(1);
            self.answered += 1;
        }
        self.rings.set_used_event(&self.memory, self.used);
    }

    pub fn is_answered(&self) -> bool {
        self.used_index() == self.available
    }

    pub fn unanswered(&self) -> u16 {
        self.available.wrapping_sub(self.used_index())
    }

    /// Waits for the batch, and checks its answers and the disk.
    pub fn finish_batch(&mut self, scene: &Scene) {
        eventually("all is answered", || {
            self.reap();
            self.waiting.is_empty()
        });
        self.check(scene);
        assert!(self.call.read().is_ok(), "the guest was interrupted");
    }

    /// Checks that what was answered of the present batch is on the disk.
    pub fn check(&self, scene: &Scene) {
        let disk = File::open(scene.path("ring")).unwrap();
        let on_disk = |sector: u64| {
            let mut bytes = [0; SECTOR];
            disk.read_exact_at(&mut bytes, sector * SECTOR as u64).unwrap();
            bytes
        };
        if self.answered > 1 {
            assert!(on_disk(TWICE) == self.bytes(1), "batch {}", self.batch);
        }
        if self.answered > 3 {
            assert!(on_disk(ONCE) == self.bytes(3), "batch {}", self.batch);
        }
    }

    pub fn write_and_check(&mut self, scene: &Scene) {
        self.submit_batch();
        self.finish_batch(scene);
    }
}
