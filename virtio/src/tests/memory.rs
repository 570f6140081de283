//! Ranges of a queue's memory.

use crate::memory::DmaMemory;

#[test]
fn range_beyond_the_memory_is_refused() {
    let memory = DmaMemory::anonymous(4096);
    assert_eq!(memory.range(0, 4096).address(), memory.device_start());
    let last = memory.range(4095, 1);
    assert_eq!((last.address(), last.len()), (memory.device_start() + 4095, 1));
    assert_eq!(memory.range(4096, 0).len(), 0);
    for (offset, len) in
        [(0, 4097), (4096, 1), (4097, 0), (u64::MAX, 1), (u64::MAX, 0), (1, u32::MAX)]
    {
        let range = std::panic::catch_unwind(|| memory.range(offset, len));
        assert!(range.is_err(), "{len} bytes at {offset}");
    }
}

#[cfg(not(miri))]
#[test]
fn memory_is_whole_and_cannot_be_resized() {
    use crate::memory::Pages;
    use std::fs::File;

    let memory = DmaMemory::new(5000, Pages::Small).unwrap();
    assert_eq!(memory.bytes(), 8192, "whole pages");
    let mut found = [7; 8192];
    memory.read(0, &mut found);
    assert_eq!(found, [0; 8192]);
    // As a backend could try by the descriptor that it is given.
    let file = File::from(memory.fd().unwrap().try_clone_to_owned().unwrap());
    assert!(file.set_len(4096).is_err() && file.set_len(16384).is_err());
}
