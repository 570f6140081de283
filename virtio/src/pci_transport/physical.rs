//! Memory that a device reaches by its physical address.

use crate::memory::{DmaMemory, HUGE_BYTES, Pages};
use crate::{Error, Refusal, Step};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The file that shows the physical pages of this process's memory.
const PAGEMAP: &str = "/proc/self/pagemap";

/// Bits of an entry of `/proc/self/pagemap` (admin-guide/mm/pagemap): the page is in memory; its
/// number.
const PRESENT: u64 = 1 << 63;
const NUMBER: u64 = (1 << 55) - 1;

/// Bytes that an entry stands for, whatever the size of the page.
const UNIT: u64 = 4096;

/// Allocates a huge page, which lies in one piece and is not moved, and finds out its physical
/// address.
pub fn allocate(bytes: u64) -> Result<DmaMemory, Error> {
    if bytes > HUGE_BYTES {
        return Err(Refusal::TooLarge(bytes).into());
    }
    let memory = DmaMemory::new(bytes, Pages::Huge).map_err(Refusal::NoHugePage)?;
    // A page that was never touched has no entry.
    memory.write(0, &[0]);
    let physical = address_of(memory.host_address(0))?;
    // SAFETY: the kernel says that the page which holds the first byte is there. All of the memory
    // is this one page, of 2 MiB; whoever made the `Pci` has vouched that the kernel does not move
    // it.
    Ok(unsafe { memory.at(physical) })
}

fn address_of(address: u64) -> Result<u64, Error> {
    let mut entry = [0; 8];
    File::open(PAGEMAP)
        .and_then(|file| file.read_exact_at(&mut entry, address / UNIT * 8))
        .map_err(Step::Open(PAGEMAP.into()).failed())?;
    Ok(physical(u64::from_ne_bytes(entry))?)
}

/// Returns what an entry says of the page's address.
fn physical(entry: u64) -> Result<u64, Refusal> {
    match entry & NUMBER {
        _ if entry & PRESENT == 0 => Err(Refusal::NoPhysicalAddress),
        // What a process without the privilege is shown.
        0 => Err(Refusal::NotRoot),
        number => Ok(number * UNIT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_an_address_only_if_its_number_is_shown() {
        assert_eq!(physical(PRESENT | 1 << 61 | 0x34_5600).ok(), Some(0x3_4560_0000));
        assert!(matches!(physical(PRESENT), Err(Refusal::NotRoot)));
        assert!(matches!(physical(0x34_5600), Err(Refusal::NoPhysicalAddress)));
    }
}
