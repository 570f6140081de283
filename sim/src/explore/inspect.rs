//! The ring on a disk after a crash, as the library reads it.

use crate::device::DiskDevice;
use crate::disk::Disk;
use crate::explore::item::number_of;
use crate::explore::oracle::{Content, Found, Item};
use shared_block_ring::format::FormatError;
use shared_block_ring::{Consumer, Error, Producer, Repair, check};

/// Attaches both sides and takes all items, on a copy of the disk.
///
/// # Errors
/// A description of what no crash may leave.
pub fn inspect(disk: &Disk) -> Result<Found, String> {
    let disk = disk.fork();
    let device = || DiskDevice::new(&disk);
    let sound = match check(device()) {
        Ok(sound) => sound,
        Err(Error::Format(FormatError::NotARing)) => return Ok(Found::Nothing),
        Err(e) => return Err(format!("check: {e}")),
    };
    let repair = Repair::plan(&device()).map_err(|e| format!("repair: {e}"))?;
    if !repair.fixes.is_empty() {
        return Err(format!("repair has something to do: {:?}", repair.fixes));
    }
    let mut consumer =
        Consumer::attach(device(), "queue", "consumer").map_err(|e| format!("consumer: {e}"))?;
    let facts = consumer.debug_info().map_err(|e| format!("facts: {e}"))?;
    if facts.consumer > facts.producer {
        return Err(format!("consumer {} is ahead of producer {}", facts.consumer, facts.producer));
    }
    let (start, mut items) = (consumer.position(), Vec::new());
    let end = consumer
        .fold(start, Ok(()), |so_far: Result<(), String>, item| {
            so_far?;
            let number = number_of(item.bytes).ok_or("an item that was never pushed")?;
            items.push(Item { number, end: item.next });
            Ok(())
        })
        .map_err(|e| format!("pop: {e}"))?;
    end.1?;
    if sound.items != items.len() as u64 || sound.unchecked_bytes > 0 {
        return Err(format!("check counts {sound:?}, the consumer got {items:?}"));
    }
    let producer =
        Producer::attach(device(), "queue", "producer").map_err(|e| format!("producer: {e}"))?;
    if producer.position() != facts.producer {
        return Err(format!("the producer goes on at {}", producer.position()));
    }
    Ok(Found::Ring(Content {
        consumer: start,
        producer: facts.producer,
        items,
        suspend: facts.suspend,
    }))
}
