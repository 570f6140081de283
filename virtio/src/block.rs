//! Block requests on a queue (virtio 1.3, 5.2.6): as many at once as there are slots.
//!
//! A slot is a header, a buffer and a status byte, and the chain of descriptors that leads to them.
//! A chain is written again only where it changes: a request that differs from the last one of its
//! slot in its sector alone costs one store beside the queue's.

use crate::memory::DmaMemory;
use crate::queue::{Descriptor, Layout, Queue, flag};
use crate::request::Kind;
use crate::shape::{CHAIN, HEADER_BYTES, TABLE_BYTES};
use crate::{Broken, Chains, Completion, Request, RequestId, Shape, Slot};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

const NEXT: u16 = flag(VRING_DESC_F_NEXT);
const WRITE: u16 = flag(VRING_DESC_F_WRITE);
const INDIRECT: u16 = flag(VRING_DESC_F_INDIRECT);

/// How the request in a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is none: the slot is free.
    Free,
    /// The device has it.
    Submitted,
    /// The device has given it back with this status, and it was not reaped.
    Done(u8),
}

/// A slot's place in the memory.
#[derive(Debug)]
struct Place {
    state: State,
    /// The request that its chain and its header were written for, with sector 0.
    written: Option<Request>,
}

/// The queue of a block device.
#[derive(Debug)]
pub struct BlockQueue {
    ring: Queue,
    shape: Shape,
    /// Offset of the first slot's indirect table.
    tables: u64,
    /// Offset of the first slot's buffer.
    buffers: u64,
    places: Vec<Place>,
    /// Free slots. The one used last is on top: it is still in the caches.
    free: Vec<u16>,
    /// Slots of the requests that were submitted and not reaped, the oldest first.
    order: VecDeque<u16>,
    /// Requests that the device has given back and that were not reaped.
    done: usize,
}

impl BlockQueue {
    /// Makes an empty queue in fresh memory of at least [`Shape::memory_bytes`] bytes.
    ///
    /// # Panics
    /// If the memory is smaller.
    pub fn new(memory: DmaMemory, shape: Shape, event_idx: bool) -> Self {
        let (plan, depth) = (shape.plan(), shape.depth());
        assert!(plan.end <= memory.bytes(), "memory for every slot");
        let place = |_| Place { state: State::Free, written: None };
        let block = Self {
            ring: Queue::new(memory, plan.layout, event_idx),
            shape,
            tables: plan.tables,
            buffers: plan.buffers,
            places: (0..depth).map(place).collect(),
            free: (0..depth).rev().collect(),
            order: VecDeque::with_capacity(depth.into()),
            done: 0,
        };
        if shape.chains() == Chains::Indirect {
            for slot in 0..depth {
                let range = block.memory().range(block.table(slot).0, u32::from(CHAIN) * 16);
                let descriptor = Descriptor { range, flags: INDIRECT, next: 0 };
                block.ring.describe(plan.layout.descriptors, slot, descriptor);
            }
        }
        block
    }

    /// Returns where the queue's parts lie.
    pub fn layout(&self) -> Layout {
        self.ring.layout()
    }

    /// Returns the memory that everything lies in.
    pub fn memory(&self) -> &DmaMemory {
        self.ring.memory()
    }

    /// Returns how many requests there are at most, and how large.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Returns the number of requests that were submitted and not reaped.
    pub fn in_flight(&self) -> usize {
        self.order.len()
    }

    /// Returns a free slot, if there is one.
    pub fn slot(&mut self) -> Option<Slot<'_>> {
        let index = *self.free.last()?;
        Some(Slot::new(self, index))
    }

    /// Copies bytes into the start of a slot's buffer.
    ///
    /// # Panics
    /// If there are more of them than the buffer holds.
    pub fn fill(&self, slot: u16, bytes: &[u8]) {
        assert!(
            bytes.len() as u64 <= self.shape.buffer_bytes().into(),
            "more bytes than a buffer holds"
        );
        self.memory().write(self.buffer(slot), bytes);
    }

    /// Copies bytes out of the start of a slot's buffer.
    ///
    /// # Panics
    /// If there are more of them than the buffer holds.
    pub fn read(&self, slot: u16, bytes: &mut [u8]) {
        assert!(
            bytes.len() as u64 <= self.shape.buffer_bytes().into(),
            "more bytes than a buffer holds"
        );
        self.memory().read(self.buffer(slot), bytes);
    }

    /// Makes a request of the slot that [`slot`](Self::slot) gave last. The device does not see it
    /// before [`publish`](Self::publish).
    ///
    /// # Panics
    /// If the request is larger than its buffer.
    pub fn submit(&mut self, slot: u16, request: Request) -> RequestId {
        assert!(request.bytes <= self.shape.buffer_bytes(), "more bytes than a buffer holds");
        let next = self.free.pop();
        debug_assert_eq!(next, Some(slot), "the slot that was given last");
        let header = self.header(slot);
        let place = &mut self.places[usize::from(slot)];
        place.state = State::Submitted;
        let form = Some(Request { sector: 0, ..request });
        if place.written != form {
            place.written = form;
            self.write_chain(slot, header, request);
        }
        let words: &[AtomicU64] = self.memory().words(header, 2);
        words[1].store(request.sector.to_le(), Ordering::Relaxed);
        self.order.push_back(slot);
        self.ring.offer(self.head(slot));
        RequestId::of_slot(slot)
    }

    /// Shows the device all requests that were submitted. Returns whether it wants to be notified
    /// of them.
    #[must_use = "a device that sleeps has to be notified"]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Returns the oldest request, if the device is done with it: requests are reaped in the order
    /// in which they were submitted.
    pub fn reap(&mut self) -> Result<Option<Completion<'_>>, Broken> {
        loop {
            let Some(&oldest) = self.order.front() else { return Ok(None) };
            if let State::Done(status) = self.state(oldest) {
                self.order.pop_front();
                return Ok(Some(self.release(oldest, status)));
            }
            if self.take()?.is_none() {
                return Ok(None);
            }
        }
    }

    /// Returns the next request that the device is done with, in the device's order.
    pub fn reap_any(&mut self) -> Result<Option<Completion<'_>>, Broken> {
        let done = |&slot: &u16| match self.state(slot) {
            State::Done(status) => Some((slot, status)),
            _ => None,
        };
        let taken = match self.done {
            0 => self.take()?,
            // By `reap` or `replay`: it comes before what is still in the used ring.
            _ => self.order.iter().find_map(done),
        };
        let Some((slot, status)) = taken else { return Ok(None) };
        if let Some(place) = self.order.iter().position(|&other| other == slot) {
            self.order.remove(place);
        }
        Ok(Some(self.release(slot, status)))
    }

    fn release(&mut self, slot: u16, status: u8) -> Completion<'_> {
        self.done -= 1;
        self.places[usize::from(slot)].state = State::Free;
        self.free.push(slot);
        Completion::new(self, slot, status)
    }

    /// Takes the next entry of the used ring. Returns the slot and the status.
    fn take(&mut self) -> Result<Option<(u16, u8)>, Broken> {
        let Some(head) = self.ring.take_used()? else {
            if let Some(&oldest) = self.order.front() {
                self.memory().prefetch(self.status(oldest));
            }
            return Ok(None);
        };
        let slot = match self.shape.chains() {
            Chains::Direct if head % CHAIN == 0 => Some(head / CHAIN),
            Chains::Direct => None,
            Chains::Indirect => Some(head),
        };
        let submitted = |&slot: &u16| {
            let place = self.places.get(usize::from(slot));
            place.is_some_and(|place| place.state == State::Submitted)
        };
        let Some(slot) = slot.filter(submitted) else {
            return Err(self.ring.give_up(Broken::Head(head.into())));
        };
        let status: &[AtomicU8] = self.memory().words(self.status(slot), 1);
        let status = status[0].load(Ordering::Relaxed);
        self.places[usize::from(slot)].state = State::Done(status);
        self.done += 1;
        Ok(Some((slot, status)))
    }

    /// Prepares the queue for a device in the place of one that is gone: what that has given back
    /// counts, and everything else is to be carried out, again perhaps, in the order in which it
    /// was submitted. Returns the index in the available ring to begin at.
    pub fn replay(&mut self) -> Result<u16, Broken> {
        while self.take()?.is_some() {}
        let unfinished = self.order.iter().filter(|&&slot| self.state(slot) == State::Submitted);
        Ok(self.ring.offer_again(unfinished.map(|&slot| self.head(slot))))
    }

    /// Asks for an interrupt when the next request is done. Returns false if one is done already.
    #[must_use = "what is done already does not interrupt"]
    pub fn ask_for_interrupt(&self) -> bool {
        self.ring.ask_for_interrupt()
    }

    /// Asks for no interrupts.
    pub fn refuse_interrupts(&self) {
        self.ring.refuse_interrupts();
    }

    fn state(&self, slot: u16) -> State {
        self.places[usize::from(slot)].state
    }

    /// Returns the first descriptor of a slot's chain.
    fn head(&self, slot: u16) -> u16 {
        match self.shape.chains() {
            Chains::Direct => slot * CHAIN,
            Chains::Indirect => slot,
        }
    }

    fn header(&self, slot: u16) -> u64 {
        self.layout().behind_available + u64::from(slot) * u64::from(HEADER_BYTES)
    }

    fn status(&self, slot: u16) -> u64 {
        self.layout().behind_used + u64::from(slot)
    }

    /// Returns the offset of a slot's buffer.
    fn buffer(&self, slot: u16) -> u64 {
        self.buffers + u64::from(slot) * self.shape.stride()
    }

    /// Returns the offset of the table that a slot's chain lies in, and the index of its first
    /// descriptor there.
    fn table(&self, slot: u16) -> (u64, u16) {
        match self.shape.chains() {
            Chains::Direct => (self.layout().descriptors, slot * CHAIN),
            Chains::Indirect => (self.tables + u64::from(slot) * TABLE_BYTES, 0),
        }
    }

    /// Writes everything of a request but its sector.
    fn write_chain(&self, slot: u16, header: u64, request: Request) {
        let (kind, direction) = match request.kind {
            Kind::Read => (VIRTIO_BLK_T_IN, WRITE),
            Kind::Write => (VIRTIO_BLK_T_OUT, 0),
            Kind::Flush => (VIRTIO_BLK_T_FLUSH, 0),
            Kind::GetId => (VIRTIO_BLK_T_GET_ID, WRITE),
        };
        let memory = self.memory();
        let words: &[AtomicU64] = memory.words(header, 2);
        let word = u64::from(kind) | u64::from(request.priority) << 32;
        words[0].store(word.to_le(), Ordering::Relaxed);
        let (table, first) = self.table(slot);
        let (data_at, status_at) = (first + 1, first + 2);
        let head = Descriptor {
            range: memory.range(header, HEADER_BYTES),
            flags: NEXT,
            next: if request.bytes == 0 { status_at } else { data_at },
        };
        let data = Descriptor {
            range: memory.range(self.buffer(slot), request.bytes),
            flags: direction | NEXT,
            next: status_at,
        };
        let status =
            Descriptor { range: memory.range(self.status(slot), 1), flags: WRITE, next: 0 };
        for (index, descriptor) in (first..).zip([head, data, status]) {
            self.ring.describe(table, index, descriptor);
        }
    }
}
