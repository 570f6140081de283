//! The driver's side of a split virtqueue (virtio 1.3, 2.7), written by hand: what an honest driver
//! never writes can be written, too.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion, GuestRegionCollection};

/// Guest memory as the writer of a ring needs it. An address outside of it is a panic.
pub trait GuestBytes {
    fn put(&self, at: u64, bytes: &[u8]);

    fn get(&self, at: u64, bytes: &mut [u8]);

    /// Stores an index or flags of a ring with release ordering.
    fn store_index(&self, at: u64, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    /// Loads an index or flags of a ring with acquire ordering.
    fn load_index(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.get(at, &mut bytes);
        u16::from_le_bytes(bytes)
    }
}

/// Guest memory by its file, which can be truncated: each access is a system call of its own.
impl GuestBytes for File {
    fn put(&self, at: u64, bytes: &[u8]) {
        self.write_all_at(bytes, at).unwrap();
    }

    fn get(&self, at: u64, bytes: &mut [u8]) {
        self.read_exact_at(bytes, at).unwrap();
    }
}

impl<R: GuestMemoryRegion> GuestBytes for GuestRegionCollection<R> {
    fn put(&self, at: u64, bytes: &[u8]) {
        self.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, bytes: &mut [u8]) {
        self.read_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn store_index(&self, at: u64, value: u16) {
        self.store(value, GuestAddress(at), Ordering::Release).unwrap();
    }

    fn load_index(&self, at: u64) -> u16 {
        self.load(GuestAddress(at), Ordering::Acquire).unwrap()
    }
}

/// One descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Desc {
    pub address: u64,
    pub len: u32,
    pub flags: u32,
    pub next: u16,
}

/// Returns a buffer that the device reads.
pub fn readable(address: u64, len: u32) -> Desc {
    Desc { address, len, flags: 0, next: 0 }
}

/// Returns a buffer that the device writes.
pub fn writable(address: u64, len: u32) -> Desc {
    Desc { flags: VRING_DESC_F_WRITE, ..readable(address, len) }
}

/// Returns a table of descriptors.
pub fn indirect(address: u64, len: u32) -> Desc {
    Desc { flags: VRING_DESC_F_INDIRECT, ..readable(address, len) }
}

/// Returns a chain: each descriptor is linked with the next one, from `first` on.
pub fn linked(first: u16, descriptors: &[Desc]) -> Vec<Desc> {
    let mut chain = descriptors.to_vec();
    let count = chain.len();
    for (descriptor, next) in chain.iter_mut().zip(first + 1..=u16::MAX).take(count - 1) {
        descriptor.flags |= VRING_DESC_F_NEXT;
        descriptor.next = next;
    }
    chain
}

/// Writes descriptors to a table in guest memory, from entry `first` on.
pub fn describe(memory: &impl GuestBytes, table: u64, first: u16, descriptors: &[Desc]) {
    for (index, descriptor) in (first..=u16::MAX).zip(descriptors) {
        let flags = u16::try_from(descriptor.flags).unwrap();
        let bytes = [
            &descriptor.address.to_le_bytes()[..],
            &descriptor.len.to_le_bytes(),
            &flags.to_le_bytes(),
            &descriptor.next.to_le_bytes(),
        ];
        memory.put(table + 16 * u64::from(index), &bytes.concat());
    }
}

/// Writes the header of a block request (virtio 1.3, 5.2.6).
pub fn put_header(memory: &impl GuestBytes, at: u64, kind: u32, priority: u32, sector: u64) {
    let bytes = [&kind.to_le_bytes()[..], &priority.to_le_bytes(), &sector.to_le_bytes()];
    memory.put(at, &bytes.concat());
}

/// Number of descriptors of a queue, and guest addresses of its three parts.
#[derive(Debug, Clone, Copy)]
pub struct Rings {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

impl Rings {
    /// Writes descriptors to the queue's own table, from entry `first` on.
    pub fn describe(&self, memory: &impl GuestBytes, first: u16, descriptors: &[Desc]) {
        describe(memory, self.descriptors, first, descriptors);
    }

    /// Puts the head of a chain into the entry of the available ring that this index has.
    pub fn offer(&self, memory: &impl GuestBytes, index: u16, head: u16) {
        let entry = u64::from(index % self.size);
        memory.put(self.available + 4 + 2 * entry, &head.to_le_bytes());
    }

    /// Sets the available index.
    pub fn set_available_index(&self, memory: &impl GuestBytes, index: u16) {
        memory.store_index(self.available + 2, index);
    }

    /// Asks for an interrupt when the used index passes this one (`EVENT_IDX`).
    pub fn set_used_event(&self, memory: &impl GuestBytes, index: u16) {
        memory.store_index(self.available + 4 + 2 * u64::from(self.size), index);
    }

    /// Sets the used index, as a backend does.
    pub fn set_used_index(&self, memory: &impl GuestBytes, index: u16) {
        memory.store_index(self.used + 2, index);
    }

    /// Returns the used index.
    pub fn used_index(&self, memory: &impl GuestBytes) -> u16 {
        memory.load_index(self.used + 2)
    }

    /// Returns the used ring's entry that this index has: head of the chain, and bytes written to
    /// it.
    pub fn completion(&self, memory: &impl GuestBytes, index: u16) -> (u32, u32) {
        let entry = self.used + 4 + 8 * u64::from(index % self.size);
        let word = |at| {
            let mut bytes = [0; 4];
            memory.get(at, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        (word(entry), word(entry + 4))
    }

    /// Returns the used ring's flags: 1 where the device wants no kicks.
    pub fn used_flags(&self, memory: &impl GuestBytes) -> u16 {
        memory.load_index(self.used)
    }

    /// Returns the available index behind which the device wants a kick (`EVENT_IDX`).
    pub fn available_event(&self, memory: &impl GuestBytes) -> u16 {
        memory.load_index(self.used + 4 + 8 * u64::from(self.size))
    }
}
