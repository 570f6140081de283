//! Block requests on a queue (virtio 1.3, 5.2.6): as many at once as there are slots.
//!
//! A slot is a header, a buffer and a status byte, and the chain of descriptors that leads to them. The chains are written
//! once: a request that differs from the last one of its slot only in its sector costs one store beside the ring's.

use super::queue::flag;
use super::shape::{CHAIN, HEADER_BYTES, TABLE_BYTES};
use super::{
    Broken, Chains, Completion, Descriptor, DmaMemory, Operation, Queue, Request, Shape, Slot,
};
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

/// Who has a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Caller,
    Device,
    /// Given back, with this status, and not reaped.
    Nobody(u8),
}

#[derive(Debug)]
struct Place {
    owner: Owner,
    /// What its chain and its header were written for; the sector is not.
    written: Option<Request>,
}

/// The queue of a block device.
#[derive(Debug)]
pub struct BlockQueue {
    queue: Queue,
    shape: Shape,
    /// Of the first slot's indirect table.
    tables: u64,
    /// Of the first slot's buffer.
    buffers: u64,
    places: Vec<Place>,
    /// The one used last on top: it is still in the caches.
    free: Vec<u16>,
    /// Submitted and not reaped, the oldest first.
    order: VecDeque<u16>,
}

impl BlockQueue {
    /// An empty queue in fresh memory of at least [`Shape::memory`] bytes.
    ///
    /// # Panics
    /// If the memory is smaller, or there is to be no request.
    pub fn new(memory: DmaMemory, shape: Shape, event_idx: bool) -> Self {
        let plan = shape.plan();
        assert!(shape.depth > 0 && plan.end <= memory.bytes(), "memory for every slot");
        let place = |_| Place { owner: Owner::Caller, written: None };
        let block = Self {
            queue: Queue::new(memory, plan.layout, event_idx),
            shape,
            tables: plan.tables,
            buffers: plan.buffers,
            places: (0..shape.depth).map(place).collect(),
            free: (0..shape.depth).rev().collect(),
            order: VecDeque::with_capacity(shape.depth.into()),
        };
        if shape.chains == Chains::Indirect {
            for slot in 0..shape.depth {
                let descriptor = Descriptor {
                    address: block.memory().device_address(block.table(slot).0),
                    len: u32::from(CHAIN) * 16,
                    flags: INDIRECT,
                    next: 0,
                };
                block.queue.describe(plan.layout.descriptors, slot, descriptor);
            }
        }
        block
    }

    /// The ring.
    pub fn ring(&self) -> &Queue {
        &self.queue
    }

    /// The memory that it all lies in.
    pub fn memory(&self) -> &DmaMemory {
        self.queue.memory()
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Requests submitted and not reaped.
    pub fn in_flight(&self) -> usize {
        self.order.len()
    }

    /// A slot to fill and to [`submit`](Self::submit), if one is free; the same one until that is done.
    pub fn slot(&self) -> Option<Slot> {
        self.free.last().copied().map(Slot)
    }

    /// Offset of a slot's buffer in the memory.
    pub fn buffer(&self, slot: Slot) -> u64 {
        self.buffers + u64::from(slot.0) * self.shape.stride()
    }

    /// Makes a request of the slot that [`slot`](Self::slot) gave last. The device does not see it before [`publish`](Self::publish).
    ///
    /// # Panics
    /// If it is another slot, or the request is larger than its buffer.
    pub fn submit(&mut self, slot: Slot, request: Request) {
        assert_eq!(self.free.pop(), Some(slot.0), "the free slot");
        assert!(request.bytes <= self.shape.buffer, "a buffer's length");
        let Slot(index) = slot;
        let header = self.header(index);
        let place = &mut self.places[usize::from(index)];
        place.owner = Owner::Device;
        let form = Some(Request { sector: 0, ..request });
        if place.written != form {
            place.written = form;
            self.write_chain(index, header, request);
        }
        let words: &[AtomicU64] = self.memory().words(header, 2);
        words[1].store(request.sector.to_le(), Ordering::Relaxed);
        self.order.push_back(index);
        self.queue.offer(self.head(index));
    }

    /// Shows the device all that was submitted. Whether it wants to be notified of that.
    #[must_use = "a device that sleeps has to be notified"]
    pub fn publish(&mut self) -> bool {
        self.queue.publish()
    }

    /// The oldest request, if the device is done with it: requests are reaped in the order in which they were submitted.
    pub fn reap(&mut self) -> Result<Option<Completion>, Broken> {
        loop {
            let Some(&oldest) = self.order.front() else { return Ok(None) };
            if let Owner::Nobody(status) = self.owner(oldest) {
                self.order.pop_front();
                return Ok(Some(self.release(oldest, status)));
            }
            if self.take()?.is_none() {
                return Ok(None);
            }
        }
    }

    /// The next request in the order of the device, which is not to be mixed with the other one.
    pub fn reap_any(&mut self) -> Result<Option<Completion>, Broken> {
        let Some((index, status)) = self.take()? else { return Ok(None) };
        if let Some(place) = self.order.iter().position(|&other| other == index) {
            self.order.remove(place);
        }
        Ok(Some(self.release(index, status)))
    }

    fn release(&mut self, index: u16, status: u8) -> Completion {
        self.places[usize::from(index)].owner = Owner::Caller;
        self.free.push(index);
        Completion { slot: Slot(index), status }
    }

    /// What the device gives back next: slot and status.
    fn take(&mut self) -> Result<Option<(u16, u8)>, Broken> {
        let Some(used) = self.queue.take_used()? else {
            if let Some(&oldest) = self.order.front() {
                self.memory().prefetch(self.status(oldest));
            }
            return Ok(None);
        };
        let index = match self.shape.chains {
            Chains::Direct if used.head % CHAIN != 0 => return Err(Broken::Head(used.head.into())),
            Chains::Direct => used.head / CHAIN,
            Chains::Indirect => used.head,
        };
        let status = self.status(index);
        match self.places.get_mut(usize::from(index)) {
            Some(place) if place.owner == Owner::Device => {
                let status: &[AtomicU8] = self.queue.memory().words(status, 1);
                let status = status[0].load(Ordering::Relaxed);
                place.owner = Owner::Nobody(status);
                Ok(Some((index, status)))
            }
            _ => Err(Broken::Head(used.head.into())),
        }
    }

    /// For a device in the place of one that is gone: what that has given back counts, and everything else is to be carried out, again
    /// perhaps, in the order in which it was submitted. The index in the available ring to begin at.
    pub fn replay(&mut self) -> Result<u16, Broken> {
        while self.take()?.is_some() {}
        let unfinished = self.order.iter().filter(|&&slot| self.owner(slot) == Owner::Device);
        Ok(self.queue.offer_again(unfinished.map(|&slot| self.head(slot))))
    }

    /// Asks for an interrupt when the next request is done. `false` if one is done already.
    #[must_use = "what is done already does not interrupt"]
    pub fn ask_for_interrupt(&self) -> bool {
        self.queue.ask_for_interrupt()
    }

    /// Asks for no interrupts.
    pub fn refuse_interrupts(&self) {
        self.queue.refuse_interrupts();
    }

    fn owner(&self, slot: u16) -> Owner {
        self.places[usize::from(slot)].owner
    }

    /// The first descriptor of a slot's chain.
    fn head(&self, slot: u16) -> u16 {
        match self.shape.chains {
            Chains::Direct => slot * CHAIN,
            Chains::Indirect => slot,
        }
    }

    fn header(&self, slot: u16) -> u64 {
        self.queue.layout().behind_available + u64::from(slot) * u64::from(HEADER_BYTES)
    }

    fn status(&self, slot: u16) -> u64 {
        self.queue.layout().behind_used + u64::from(slot)
    }

    /// The table that a slot's chain lies in, and the place of its first descriptor there.
    fn table(&self, slot: u16) -> (u64, u16) {
        match self.shape.chains {
            Chains::Direct => (self.queue.layout().descriptors, slot * CHAIN),
            Chains::Indirect => (self.tables + u64::from(slot) * TABLE_BYTES, 0),
        }
    }

    /// Everything of a request but its sector.
    fn write_chain(&self, slot: u16, header: u64, request: Request) {
        let (kind, data) = match request.operation {
            Operation::Read => (VIRTIO_BLK_T_IN, WRITE),
            Operation::Write => (VIRTIO_BLK_T_OUT, 0),
            Operation::Flush => (VIRTIO_BLK_T_FLUSH, 0),
            Operation::GetId => (VIRTIO_BLK_T_GET_ID, WRITE),
        };
        let words: &[AtomicU64] = self.memory().words(header, 2);
        let word = u64::from(kind) | u64::from(request.priority) << 32;
        words[0].store(word.to_le(), Ordering::Relaxed);
        let address = |offset| self.memory().device_address(offset);
        let (table, first) = self.table(slot);
        let (data_at, status_at) = (first + 1, first + 2);
        let none = request.bytes == 0;
        let head = Descriptor {
            address: address(header),
            len: HEADER_BYTES,
            flags: NEXT,
            next: if none { status_at } else { data_at },
        };
        let data = Descriptor {
            address: address(self.buffer(Slot(slot))),
            len: request.bytes,
            flags: data | NEXT,
            next: status_at,
        };
        let status =
            Descriptor { address: address(self.status(slot)), len: 1, flags: WRITE, next: 0 };
        for (index, descriptor) in (first..).zip([head, data, status]) {
            self.queue.describe(table, index, descriptor);
        }
    }
}
