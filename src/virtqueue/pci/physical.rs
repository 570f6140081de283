//! Memory that a device reaches by its physical address.

use super::config::only_root;
use crate::virtqueue::memory::HUGE_BYTES;
use crate::virtqueue::{DmaMemory, Pages};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Of an entry of `/proc/self/pagemap` (admin-guide/mm/pagemap): the page is in memory; its number.
const PRESENT: u64 = 1 << 63;
const NUMBER: u64 = (1 << 55) - 1;

/// Bytes that an entry stands for, whatever the size of the page.
const UNIT: u64 = 4096;

/// A huge page, which lies in one piece and is not moved, known to the device by its physical address.
pub fn allocate(bytes: u64) -> io::Result<DmaMemory> {
    if bytes > HUGE_BYTES {
        let words = format!("{bytes} bytes for the queue, and a huge page has {HUGE_BYTES}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, words));
    }
    let memory = DmaMemory::new(bytes, Pages::Huge).map_err(|e| {
        let words =
            format!("no huge page of 2 MiB is free: {e} (echo 8 > /proc/sys/vm/nr_hugepages)");
        io::Error::new(io::ErrorKind::OutOfMemory, words)
    })?;
    // A page that nobody has met has no entry.
    memory.write(0, &[0]);
    let physical = address_of(memory.host_address(0))?;
    Ok(memory.at(physical))
}

fn address_of(address: u64) -> io::Result<u64> {
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, address / UNIT * 8)?;
    physical(u64::from_ne_bytes(entry))
}

/// What an entry says of the page's address.
fn physical(entry: u64) -> io::Result<u64> {
    match entry & NUMBER {
        _ if entry & PRESENT == 0 => Err(io::Error::other("the queue's memory is not there")),
        // What others are shown.
        0 => Err(only_root()),
        number => Ok(number * UNIT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_whose_number_is_shown_has_an_address() {
        assert_eq!(physical(PRESENT | 1 << 61 | 0x34_5600).ok(), Some(0x3_4560_0000));
        let hidden = physical(PRESENT).map_err(|e| e.kind());
        assert_eq!(hidden, Err(io::ErrorKind::PermissionDenied));
        assert!(physical(0x34_5600).is_err());
    }
}
