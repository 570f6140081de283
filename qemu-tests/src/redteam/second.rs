//! Two programs that both claim to be the producer.

use ring_simulation::unlocked;
use shared_block_ring::{Error, Producer};
use std::io;
use vhost_device_blockring::data_path::guard::Reason;

use super::{Attack, Failure, Group, Raid, ensure};

pub(super) const ATTACKS: &[Attack] = &[
    Group::Races.attack("second_producer_by_the_library", &[], by_the_library),
    Group::Races.attack("second_producer_left_behind", &[Reason::PublishedData], left_behind),
    Group::Races.attack("two_producers_at_once", &[Reason::PointerExtension], at_once),
];

/// Number of encounters of the two.
const ROUNDS: usize = 30;

/// Tries to attach a second producer, which the lock in the guest's kernel prevents.
fn by_the_library(raid: &mut Raid) -> Result<(), Failure> {
    match Producer::attach(raid.open()?, "redteam", "second") {
        Err(Error::RoleTaken { .. }) => raid.report.barred += 1,
        other => return Err(Failure::Unsound(format!("{other:?}"))),
    }
    Ok(())
}

/// Publishes by a producer without locks that has not seen what was published since it attached.
fn left_behind(raid: &mut Raid) -> Result<(), Failure> {
    for _ in 0..ROUNDS {
        let mut second = Producer::attach(unlocked(raid.open()?), "redteam", "second")?;
        raid.publish(1)?;
        second.push("no honest item")?;
        match second.flush() {
            // A refused producer looks at the ring and finds the reason.
            Err(Error::Superseded { .. }) => {
                raid.refused(Reason::PublishedData, Err(io::Error::from_raw_os_error(libc::EIO)))?;
            }
            other => return Err(Failure::Unsound(format!("{other:?}"))),
        }
    }
    Ok(())
}

/// Has two producers publish the same item at the same time: one of them does.
fn at_once(raid: &mut Raid) -> Result<(), Failure> {
    for _ in 0..ROUNDS {
        let mut second = Producer::attach(unlocked(raid.open()?), "redteam", "second")?;
        let item = raid.push()?;
        let end = second.push(&raid.next_item())?;
        ensure(end == item.end, || format!("{end} and {}", item.end))?;
        let first = raid.producer()?;
        let (mine, others) = std::thread::scope(|scope| {
            let other = scope.spawn(|| second.advance(end));
            (first.advance(end), other.join())
        });
        let others = others.map_err(|_| Failure::Unsound("the second one died".into()))?;
        match (mine, others) {
            (Ok(()), Err(Error::Device(e))) | (Err(Error::Device(e)), Ok(())) => {
                raid.refused(Reason::PointerExtension, Err(e.source))?;
            }
            // One was refused, or had nothing to change: it has looked, and found that what it
            // wanted is so.
            (Ok(()), Ok(())) => raid.report.perhaps += 1,
            other => return Err(Failure::Unsound(format!("{other:?}"))),
        }
        raid.published(item);
        raid.attach()?;
    }
    Ok(())
}
