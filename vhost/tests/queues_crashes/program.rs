//! The requests of a producer in the guest, recorded from the library.

use ring_simulation::{Access, Disk, DiskDevice, Item, hooked, payload};
use shared_block_ring::format::SectorSize;
use shared_block_ring::{CreateOptions, Producer, create};
use std::sync::{Arc, Mutex};

/// Sectors of the ring: three of the head, four of data.
const SECTORS: u64 = 7;

/// Bytes of each item. The first fills a sector and a half; the second comes into the other half,
/// and the third into that and the next sector.
const ITEMS: [usize; 3] = [700, 40, 300];

/// The producer's pointer sector.
pub const POINTER: u64 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    /// One sector.
    Write {
        sector: u64,
        bytes: Vec<u8>,
    },
    Flush,
}

/// What a guest's producer does, one stage after the other: it waits for the answers to all
/// requests of a stage before it makes those of the next.
#[derive(Debug, Clone)]
pub struct Program {
    /// The durable ring that it begins with.
    pub start: Vec<u8>,
    pub stages: Vec<Vec<Request>>,
    /// Items in the order of pushing, each published by a pointer of its own.
    pub items: Vec<Item>,
}

impl Program {
    /// Records a producer that pushes and advances over one item after the other, so many in all.
    pub fn recorded(count: usize) -> Self {
        let disk = Disk::new(SectorSize::DEFAULT, SECTORS);
        create(&DiskDevice::new(&disk), CreateOptions::default()).unwrap();
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&recorded);
        let device = hooked(DiskDevice::new(&disk), move |device, access| {
            match access {
                Access::Read { .. } => {}
                Access::Flush => record.lock().unwrap().push(Request::Flush),
                Access::Write { first, bufs } => {
                    let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
                    let sectors = (*first..).zip(bytes.chunks(512));
                    let write = |(sector, bytes): (u64, &[u8])| Request::Write {
                        sector,
                        bytes: bytes.to_vec(),
                    };
                    record.lock().unwrap().extend(sectors.map(write));
                }
            }
            access.carry_out(device)
        });
        let mut producer = Producer::attach(device, "queue", "producer").unwrap();
        disk.flush().unwrap();
        let start = disk.image();
        recorded.lock().unwrap().clear();
        let mut items = Vec::new();
        for (number, len) in (0..).zip(ITEMS).take(count) {
            let end = producer.push(&payload(number, len)[..]).unwrap();
            producer.advance(end).unwrap();
            items.push(Item { number, end });
        }
        let requests = std::mem::take(&mut *recorded.lock().unwrap());
        // Writes between two flushes need not wait for each other.
        let together =
            |one: &Request, next: &Request| *one != Request::Flush && *next != Request::Flush;
        let stages = requests.chunk_by(together).map(<[_]>::to_vec).collect();
        Self { start, stages, items }
    }

    /// Returns the program of a producer that publishes items before they are durable.
    pub fn without_waiting(mut self) -> Self {
        let publishes =
            |stage: &[Request]| matches!(stage, [Request::Write { sector: POINTER, .. }]);
        let pointer = self.stages.iter().position(|stage| publishes(stage)).unwrap();
        assert_eq!(self.stages.remove(pointer - 1), [Request::Flush]);
        self
    }
}
