//! Mappings of this process's own memory, and of files.
#![allow(clippy::unwrap_used)]
use super::*;

/// More than a page.
const LEN: u64 = 3 * 4096;

#[test]
fn copies_of_every_length_and_place_hold_what_was_written() {
    let mapping = Mapping::anonymous(LEN).unwrap();
    for offset in [0, 1, 3, 4, 8, 4090] {
        for len in [0, 1, 3, 4, 7, 8, 15, SHORT, SHORT + 1, 64] {
            let bytes: Vec<_> = (1..).take(len).collect();
            mapping.write(offset, &bytes);
            let mut found = vec![0; len + 1];
            mapping.read(offset, &mut found);
            assert_eq!(found[..len], bytes, "{len} bytes at {offset}");
            assert_eq!(found[len], 0, "behind {len} bytes at {offset}");
            mapping.write(offset, &vec![0; len]);
        }
    }
}

// Miri knows no atomics of different sizes in one place.
#[cfg(not(miri))]
#[test]
fn words_and_copies_are_of_the_same_memory() {
    let mapping = Mapping::anonymous(LEN).unwrap();
    mapping.store_u64(8, 0x0102_0304_0506_0708);
    let mut bytes = [0; 8];
    mapping.read(8, &mut bytes);
    assert_eq!(bytes, [8, 7, 6, 5, 4, 3, 2, 1]);
    mapping.store_u8(9, 0);
    assert_eq!(mapping.load_u64(8), 0x0102_0304_0506_0008);
    assert_eq!(mapping.load_u32(12), 0x0102_0304);
    // SAFETY: this thread alone has the memory, and stores nothing while it is borrowed.
    assert_eq!(unsafe { mapping.bytes(8, 2) }, Some(&[8, 0][..]));
}

/// Whether `store` panics.
fn is_refused(store: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(store)).is_err()
}

#[test]
fn access_beyond_the_mapping_panics() {
    let mapping = Mapping::anonymous(LEN).unwrap();
    assert!(is_refused(|| mapping.read(LEN - 1, &mut [0; 2])));
    assert!(is_refused(|| mapping.write(LEN, &[0])));
    assert!(is_refused(|| mapping.write(u64::MAX, &[0; 32])));
    assert!(is_refused(|| _ = mapping.load_u64(LEN - 4)));
    assert!(is_refused(|| mapping.store_u64(4, 0)), "not aligned");
}

#[cfg(not(miri))]
#[test]
fn read_only_mapping_refuses_stores_and_needs_no_right_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, [7; 4096]).unwrap();
    let mapping = Mapping::read_only(File::open(&path).unwrap(), 4096).unwrap();
    assert_eq!(mapping.load_u64(0), u64::from_ne_bytes([7; 8]));
    assert!(!mapping.is_writable(0, 1));
    assert!(is_refused(|| mapping.store_u8(0, 0)));
    assert!(is_refused(|| mapping.store_u64(0, 0)));
    assert!(is_refused(|| mapping.write(0, &[0; 4])));
    assert!(is_refused(|| mapping.write(0, &[0; 400])));
    assert!(is_refused(|| _ = mapping.words::<AtomicU8>(0, 1)));
    assert!(Mapping::writable_to(File::open(&path).unwrap(), 4096, 8).is_err());
}

#[cfg(not(miri))]
#[test]
fn partly_writable_mapping_is_read_only_behind_its_first_pages() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN).unwrap();
    let mapping = Mapping::writable_to(file, LEN, 1536).unwrap();
    mapping.write(1024, &[1; 512]);
    mapping.store_u64(1528, 1);
    assert!(mapping.is_writable(0, 1536) && !mapping.is_writable(0, 1537));
    assert!(is_refused(|| mapping.write(1024, &[1; 513])));
    let mut bytes = [1; 16];
    mapping.read(LEN - 16, &mut bytes);
    assert_eq!(bytes, [0; 16]);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let behind = format!("{:x}-", mapping.addresses().start + 4096);
    let line = maps.lines().find(|line| line.starts_with(&behind)).unwrap();
    assert!(line.contains(" r--s "), "{line}");
}
