//! A driver that keeps its queue busy and believes nothing: each request is answered once, in
//! order, and waited for by interrupt.

use crate::front_end::FrontEnd;
use crate::process::PATIENCE;
use crate::split_ring::{Rings, linked, put_header, readable, writable};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Number of requests in the queue at most.
const SLOTS: u16 = 24;

/// Arrays with the header, status and data of each request.
const HEADERS: u64 = 0x8000;
const STATUSES: u64 = 0x9000;
const BUFFERS: u64 = 0x2_0000;

/// A status that no device gives.
const UNANSWERED: u8 = 0xaa;

/// The driver of a queue that a front end has started, and to which that front end goes on to send
/// messages.
pub struct Traffic<'a> {
    memory: GuestMemoryMmap,
    rings: Rings,
    kick: EventFd,
    call: EventFd,
    event_idx: bool,
    random: SmallRng,
    available: u16,
    used: u16,
    free: Vec<u16>,
    /// Requests in the order of the available ring: slot, and bytes that the device has to write.
    outstanding: VecDeque<(u16, u32)>,
    /// Number of requests that were answered.
    answered: &'a AtomicU64,
}

impl<'a> Traffic<'a> {
    pub fn of(front_end: &FrontEnd, seed: u64, answered: &'a AtomicU64) -> Self {
        Self {
            memory: front_end.memory.clone(),
            rings: front_end.rings,
            kick: front_end.kick_event.try_clone().unwrap(),
            call: front_end.call.try_clone().unwrap(),
            event_idx: front_end.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            random: SmallRng::seed_from_u64(seed),
            available: front_end.available(),
            used: front_end.used_index(),
            free: (0..SLOTS).collect(),
            outstanding: VecDeque::new(),
            answered,
        }
    }

    /// Offers some requests, and takes some completions.
    pub fn round(&mut self) {
        let count = self.random.random_range(1..=self.free.len());
        let before = self.available;
        for _ in 0..count {
            self.offer();
        }
        self.rings.set_available_index(&self.memory, self.available);
        fence(Ordering::SeqCst);
        if self.wants_kick(before) {
            self.kick.write(1).unwrap();
        }
        let left = self.random.random_range(0..usize::from(SLOTS) / 2);
        self.reap(left);
    }

    /// Takes all completions.
    pub fn drain(&mut self) {
        self.reap(0);
        assert_eq!(self.rings.used_index(&self.memory), self.available, "an answer to no request");
    }

    fn offer(&mut self) {
        let slot = self.free.pop().unwrap();
        let number = u64::from(slot);
        let (header, status) = (HEADERS + 16 * number, STATUSES + number);
        let buffer = BUFFERS + 512 * number;
        let (kind, data) = match self.random.random_range(0..64) {
            0 => (VIRTIO_BLK_T_FLUSH, None),
            1..20 => (VIRTIO_BLK_T_GET_ID, Some(writable(buffer, 20))),
            _ => (VIRTIO_BLK_T_IN, Some(writable(buffer, 512))),
        };
        put_header(&self.memory, header, kind, 0, 0);
        self.memory.write_obj(UNANSWERED, GuestAddress(status)).unwrap();
        let chain: Vec<_> = [Some(readable(header, 16)), data, Some(writable(status, 1))]
            .into_iter()
            .flatten()
            .collect();
        let head = 3 * slot;
        self.rings.describe(&self.memory, head, &linked(head, &chain));
        self.rings.offer(&self.memory, self.available, head);
        self.available = self.available.wrapping_add(1);
        self.outstanding.push_back((slot, 1 + data.map_or(0, |data| data.len)));
    }

    /// Returns whether the device asks for a kick (virtio 1.3, 2.7.10).
    fn wants_kick(&self, before: u16) -> bool {
        if !self.event_idx {
            return self.rings.used_flags(&self.memory) & 1 == 0;
        }
        let event = self.rings.available_event(&self.memory);
        self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before)
    }

    /// Takes completions until that many requests are left in the queue.
    fn reap(&mut self, left: usize) {
        while self.outstanding.len() > left {
            if !self.take() {
                self.sleep();
            }
        }
    }

    /// Takes what the used ring holds. Returns whether there was something.
    fn take(&mut self) -> bool {
        let now = self.rings.used_index(&self.memory);
        let count = now.wrapping_sub(self.used);
        let most = self.outstanding.len();
        assert!(
            usize::from(count) <= most,
            "{most} are in the queue, the used index went {} to {now}",
            self.used
        );
        for _ in 0..count {
            let (slot, len) = self.outstanding.pop_front().unwrap();
            let completion = self.rings.completion(&self.memory, self.used);
            assert_eq!(completion, (3 * u32::from(slot), len), "used {}", self.used);
            let status = self.memory.read_obj::<u8>(GuestAddress(STATUSES + u64::from(slot)));
            assert_eq!(status.unwrap(), 0, "used {}", self.used);
            self.free.push(slot);
            self.used = self.used.wrapping_add(1);
        }
        self.answered.fetch_add(count.into(), Ordering::Relaxed);
        count > 0
    }

    /// Sleeps until an interrupt, as a guest does: one that does not come is never made up for.
    fn sleep(&self) {
        if self.event_idx {
            self.rings.set_used_event(&self.memory, self.used);
        }
        fence(Ordering::SeqCst);
        if self.rings.used_index(&self.memory) != self.used {
            return;
        }
        // SAFETY: `call` is open as long as this borrow.
        let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        let time = PollTimeout::try_from(PATIENCE).unwrap();
        let woken = poll(&mut [PollFd::new(call, PollFlags::POLLIN)], time).unwrap();
        assert!(
            woken > 0,
            "no interrupt: {} in the queue, taken up to {}, the used index is {}",
            self.outstanding.len(),
            self.used,
            self.rings.used_index(&self.memory)
        );
        let _ = self.call.read();
    }
}
