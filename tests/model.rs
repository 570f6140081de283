//! Random operations on a ring against a queue of vectors, on the devices that a test can make by
//! itself. (The hand-over of a backend is tested in `vhost/tests/model.rs`, a kernel block device
//! in `qemu-tests/tests/model.rs`.)
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use ring_simulation::model::{Case, case, follow};
use ring_simulation::{Disk, DiskDevice};
use ring_test_support::RingFile;
use shared_block_ring::{CreateOptions, create};

fn ring_file(case: &Case) -> RingFile {
    let bytes = usize::try_from(case.sectors).unwrap() * case.sector_size.bytes();
    RingFile::new(bytes, case.sector_size.get())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn ring_in_a_file_behaves_as_a_queue(case in case()) {
        let file = ring_file(&case);
        follow(|_| file.open(), case.operations);
    }

    #[test]
    fn ring_in_a_shared_mapping_behaves_as_a_queue(case in case()) {
        let file = ring_file(&case);
        follow(|_| file.open_mapped(), case.operations);
    }

    #[test]
    fn ring_on_a_simulated_disk_behaves_as_a_queue(case in case()) {
        let disk = Disk::new(case.sector_size, case.sectors);
        create(&DiskDevice::new(&disk), CreateOptions::default()).unwrap();
        follow(|_| DiskDevice::new(&disk), case.operations);
    }

    /// Any bytes in place of a ring's: typed errors or items no larger than the ring, never a
    /// panic.
    #[test]
    fn check_refuses_hostile_bytes(
        edits in prop::collection::vec((0usize..16 * 512, any::<u8>()), 1..40),
        pointers in prop::option::of((any::<u64>(), any::<u64>())),
    ) {
        let file = RingFile::new(16 * 512, 512);
        let mut bytes = file.bytes();
        if let Some((producer, consumer)) = pointers {
            bytes[512..520].copy_from_slice(&producer.to_le_bytes());
            bytes[1024..1032].copy_from_slice(&consumer.to_le_bytes());
        }
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        std::fs::write(&file.path, bytes).unwrap();
        if let Ok(mut consumer) = file.consumer() {
            let start = consumer.position();
            let _ = consumer.fold(start, (), |(), item| assert!(item.bytes.len() <= 13 * 512));
        }
        if let Ok(mut producer) = file.producer() {
            let _ = producer.push("item").and_then(|position| producer.advance(position));
        }
    }
}
