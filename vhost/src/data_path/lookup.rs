//! Guest addresses to memory, beginning with the piece that was found last.

use crate::data_path::dirty::GuestMemory;
use vm_memory::bitmap::MS;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

/// A range of guest memory, contiguous in our address space.
pub type Part<'m> = VolatileSlice<'m, MS<'m, GuestMemory>>;

/// A guest's memory. Nearly every address that a guest names lies in the same region as the one
/// before, and is then found without a search.
pub struct Lookup<'m> {
    mem: &'m GuestMemory,
    /// The region that was found last, and its first address.
    last: Option<Part<'m>>,
    start: GuestAddress,
}

impl<'m> Lookup<'m> {
    /// Looks addresses up in `mem`.
    pub fn new(mem: &'m GuestMemory) -> Self {
        Self { mem, last: None, start: GuestAddress(0) }
    }

    /// Returns all of the memory.
    pub fn whole(&self) -> &'m GuestMemory {
        self.mem
    }

    /// Returns `len` bytes at an address; `None` where they do not lie in one region.
    #[inline]
    pub fn find(&mut self, address: GuestAddress, len: usize) -> Option<Part<'m>> {
        let offset = usize::try_from(address.0.wrapping_sub(self.start.0)).ok()?;
        if let Some(last) = &self.last
            && let Ok(part) = last.subslice(offset, len)
        {
            return Some(part);
        }
        self.search(address, len)
    }

    /// Prefetches the cache line at an address, for a read.
    #[inline]
    pub fn prefetch(&self, address: GuestAddress) {
        ring_os::prefetch(self.place(address));
    }

    /// Prefetches the cache line at an address, for a write.
    #[inline]
    pub fn prefetch_to_write(&self, address: GuestAddress) {
        ring_os::prefetch_to_write(self.place(address));
    }

    /// Returns where an address lies, if it is in the region that was found last; otherwise some
    /// place that is good for a prefetch alone.
    #[inline]
    fn place(&self, address: GuestAddress) -> *const u8 {
        let start = self.last.as_ref().map_or(std::ptr::null(), |last| last.ptr_guard().as_ptr());
        let offset = usize::try_from(address.0.wrapping_sub(self.start.0)).unwrap_or(0);
        start.wrapping_add(offset)
    }

    #[cold]
    fn search(&mut self, address: GuestAddress, len: usize) -> Option<Part<'m>> {
        let region = self.mem.find_region(address)?;
        let whole = region.as_volatile_slice().ok()?;
        (self.last, self.start) = (Some(whole), region.start_addr());
        let offset = address.checked_offset_from(self.start)?;
        whole.subslice(usize::try_from(offset).ok()?, len).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn address_is_found_whatever_was_found_before() {
        let ranges = [(0x1000, 0x1000), (0x10_0000, 0x2000)];
        let ranges = ranges.map(|(start, len)| (GuestAddress(start), len));
        let mem = GuestMemory::from_ranges(&ranges).unwrap();
        let mut lookup = Lookup::new(&mem);
        for (address, len, is_there) in [
            (0x1000, 0x1000, true),
            (0x1fff, 1, true),
            (0x1fff, 2, false),
            (0x2000, 1, false),
            (0, 1, false),
            (0x10_1000, 0x1000, true),
            (0x10_1000, 0x1001, false),
            (0xfff, 1, false),
            (0x1234, 5, true),
            (u64::MAX, 1, false),
            (u64::MAX, usize::MAX, false),
        ] {
            let address = GuestAddress(address);
            let found = lookup.find(address, len);
            assert_eq!(found.is_some(), is_there, "{len} bytes at {address:?}");
            if let Some(part) = found {
                assert_eq!(part.len(), len);
                part.write_obj(0x5au8, 0).unwrap();
                assert_eq!(mem.read_obj::<u8>(address).unwrap(), 0x5a);
                part.write_obj(0u8, 0).unwrap();
            }
        }
    }
}
