//! The guest: its memory, its driver's end of the queues, and what it must find.

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

/// Two regions of memory, as a machine with a hole below 4 GiB has them: the queues lie in the
/// first, data in the second.
const LOW: (u64, u64) = (0, 1 << 20);
const HIGH: (u64, u64) = (4 << 30, 1 << 20);

/// Bytes of either region that each queue has for itself.
const SHARE: u64 = 0x1_0000;

/// Places within a queue's share.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x6000;
const USED: u64 = 0x8000;
const HEADERS: u64 = 0xc000;
const STATUSES: u64 = 0xd000;

const SECTOR: usize = 512;

/// A status that no device gives.
const UNANSWERED: u8 = 0xaa;

/// The requests of a queue's batch: one sector is written twice, and a third request must not be
/// overtaken by either. Each queue has sectors of its own.
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

/// The driver's end of one queue.
pub struct Queue {
    number: usize,
    pub rings: Rings,
    pub kick: EventFd,
    pub call: EventFd,
    pub masked: EventFd,
    /// Where the queue starts, if it was stopped in order.
    pub base: u16,
    available: u16,
    used: u16,
    waiting: VecDeque<Request>,
    /// Requests of the present batch that were answered.
    answered: usize,
}

pub struct Guest {
    memory: GuestMemoryMmap,
    pub queues: Vec<Queue>,
    /// How the front end finds the bases after the backend was replaced.
    pub resumed: Option<Base>,
    pub inflight: Option<(VhostUserInflight, File)>,
    /// The protocol features that were negotiated first.
    pub protocol: VhostUserProtocolFeatures,
    /// Batches so far: the bytes that are written tell them apart.
    batch: u8,
}

/// Returns the bytes that request `number` of a queue's batch writes.
fn bytes(batch: u8, number: usize) -> [u8; SECTOR] {
    [batch.wrapping_mul(16).wrapping_add(u8::try_from(number).unwrap()); SECTOR]
}

impl Queue {
    fn new(number: usize, size: u16) -> Self {
        let share = SHARE * number as u64;
        let rings = Rings {
            size,
            descriptors: share + DESCRIPTORS,
            available: share + AVAILABLE,
            used: share + USED,
        };
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (kick, call, masked) = (event(), event(), event());
        Self {
            number,
            rings,
            kick,
            call,
            masked,
            base: 0,
            available: 0,
            used: 0,
            waiting: VecDeque::new(),
            answered: 0,
        }
    }

    pub fn available_index(&self) -> u16 {
        self.available
    }

    /// Places of the header, the status and the data of the request in a slot.
    fn places(&self, slot: u64) -> (u64, u64, u64) {
        let share = SHARE * self.number as u64;
        (share + HEADERS + 16 * slot, share + STATUSES + slot, HIGH.0 + share + 4096 * slot)
    }

    /// The sector of a request, which belongs to this queue alone.
    fn sector(&self, sector: u64) -> u64 {
        sector + 4 * self.number as u64
    }

    fn submit(&mut self, memory: &GuestMemoryMmap, batch: u8, number: usize) {
        let (kind, sector) = BATCH[number];
        let slot = self.available % SLOTS;
        let (header, status, data) = self.places(slot.into());
        put_header(memory, header, kind, 0, self.sector(sector));
        memory.write_obj(UNANSWERED, GuestAddress(status)).unwrap();
        let len = u32::try_from(SECTOR).unwrap();
        let data: Option<Desc> = match kind {
            VIRTIO_BLK_T_OUT => {
                memory.write_slice(&bytes(batch, number), GuestAddress(data)).unwrap();
                Some(readable(data, len))
            }
            VIRTIO_BLK_T_IN => Some(writable(data, len)),
            _ => None,
        };
        let chain = [Some(readable(header, 16)), data, Some(writable(status, 1))];
        let chain: Vec<_> = chain.into_iter().flatten().collect();
        let head = slot * 4;
        self.rings.describe(memory, head, &linked(head, &chain));
        self.rings.offer(memory, self.available, head);
        self.available = self.available.wrapping_add(1);
        self.rings.set_available_index(memory, self.available);
        self.waiting.push_back(Request { head, number });
    }

    /// Takes the answers that are there. Each request is answered once, in order, without an error.
    fn reap(&mut self, memory: &GuestMemoryMmap, batch: u8) {
        let count = usize::from(self.rings.used_index(memory).wrapping_sub(self.used));
        assert!(count <= self.waiting.len(), "{count} answers to {} requests", self.waiting.len());
        for _ in 0..count {
            let request = self.waiting.pop_front().unwrap();
            let (head, _) = self.rings.completion(memory, self.used);
            assert_eq!(head, u32::from(request.head), "the chain that is answered next");
            let (_, status, data) = self.places((request.head / 4).into());
            let status: u8 = memory.read_obj(GuestAddress(status)).unwrap();
            assert_eq!(status, 0, "request {}", request.number);
            if BATCH[request.number].0 == VIRTIO_BLK_T_IN {
                let mut found = [0; SECTOR];
                memory.read_slice(&mut found, GuestAddress(data)).unwrap();
                assert!(found == bytes(batch, 1), "a read sees what was written before it");
            }
            self.used = self.used.wrapping_add(1);
            self.answered += 1;
        }
        self.rings.set_used_event(memory, self.used);
    }

    /// Checks that what was answered of the present batch is on the disk.
    fn check(&self, disk: &File, batch: u8) {
        for (answered, sector, number) in [(1, TWICE, 1), (3, ONCE, 3)] {
            if self.answered > answered {
                let mut found = [0; SECTOR];
                disk.read_exact_at(&mut found, self.sector(sector) * SECTOR as u64).unwrap();
                assert!(found == bytes(batch, number), "queue {}, batch {batch}", self.number);
            }
        }
    }

    fn reset(&mut self, memory: &GuestMemoryMmap) {
        for at in [self.rings.available, self.rings.used] {
            memory.write_obj(0u32, GuestAddress(at)).unwrap();
        }
        (self.available, self.used, self.base) = (0, 0, 0);
        self.waiting.clear();
    }
}

impl Guest {
    /// Makes a guest whose disk has so many queues, of this size.
    pub fn new(queues: usize, size: u16) -> Self {
        let regions = [LOW, HIGH].map(|(start, len)| region(start, len));
        Self {
            memory: GuestMemoryMmap::from_regions(regions.into()).unwrap(),
            queues: (0..queues).map(|number| Queue::new(number, size)).collect(),
            resumed: None,
            inflight: None,
            protocol: VhostUserProtocolFeatures::empty(),
            batch: 0,
        }
    }

    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.memory.iter().map(described).collect()
    }

    pub fn user_address(&self, at: u64) -> u64 {
        let low = self.memory.iter().next().unwrap();
        described(low).userspace_addr + at - low.start_addr().raw_value()
    }

    pub fn used_index(&self, queue: usize) -> u16 {
        self.queues[queue].rings.used_index(&self.memory)
    }

    /// Returns the used indices of all queues.
    pub fn used_indices(&self) -> Vec<u16> {
        (0..self.queues.len()).map(|queue| self.used_index(queue)).collect()
    }

    /// Has the front end find the bases by itself from here on.
    pub fn set_bases(&mut self, base: Base) {
        self.resumed = Some(base);
    }

    /// The driver begins anew with empty rings, and the front end forgets what belongs to the old
    /// ones.
    pub fn reset(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.reset(&self.memory));
        (self.resumed, self.inflight) = (None, None);
    }

    /// Returns the first descriptor of a request of the first queue's batch.
    pub fn head(&self, number: usize) -> u16 {
        self.queues[0].waiting[number].head
    }

    /// Offers a batch of requests in each queue, and kicks.
    pub fn submit_batch(&mut self) {
        self.batch = self.batch.wrapping_add(1);
        for queue in &mut self.queues {
            assert!(queue.waiting.is_empty());
            queue.answered = 0;
            for number in 0..BATCH.len() {
                queue.submit(&self.memory, self.batch, number);
            }
        }
        for queue in &self.queues {
            queue.kick.write(1).unwrap();
        }
    }

    pub fn reap(&mut self) {
        for queue in &mut self.queues {
            queue.reap(&self.memory, self.batch);
        }
    }

    pub fn is_answered(&self) -> bool {
        self.unanswered() == 0
    }

    pub fn unanswered(&self) -> u16 {
        let queues = self.queues.iter();
        queues.map(|queue| queue.available.wrapping_sub(queue.rings.used_index(&self.memory))).sum()
    }

    /// Waits for the batch, and checks its answers and the disk.
    pub fn finish_batch(&mut self, scene: &Scene) {
        eventually("all is answered", || {
            self.reap();
            self.queues.iter().all(|queue| queue.waiting.is_empty())
        });
        self.check(scene);
        for queue in &self.queues {
            assert!(queue.call.read().is_ok(), "the guest was interrupted");
        }
    }

    /// Checks that what was answered of the present batch is on the disk.
    pub fn check(&self, scene: &Scene) {
        let disk = File::open(scene.path("ring")).unwrap();
        self.queues.iter().for_each(|queue| queue.check(&disk, self.batch));
    }

    pub fn write_and_check(&mut self, scene: &Scene) {
        self.submit_batch();
        self.finish_batch(scene);
    }
}
