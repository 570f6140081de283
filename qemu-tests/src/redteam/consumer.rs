//! A guest that is the consumer: one sector of the disk is its own.

use shared_block_ring::format::Side;
use vhost_device_blockring::data_path::guard::Reason;

use super::{Attack, Failure, Group, Raid};

pub(super) const ATTACKS: &[Attack] = &[Group::Consumer.attack(
    "consumer_writes_what_is_the_hosts",
    &[
        Reason::Signature,
        Reason::HostPointer,
        Reason::ForeignData,
        Reason::PointerBeyond,
        Reason::ItemFraming,
    ],
    consumer,
)];

fn consumer(raid: &mut Raid) -> Result<(), Failure> {
    let mut junk = raid.bare(0);
    junk.fill(0x42);
    let (theirs, mine) = (Side::Producer.sector(), Side::Consumer.sector());
    raid.refused_write(Reason::Signature, 0, &junk)?;
    raid.refused_write(Reason::HostPointer, theirs, &junk)?;
    raid.refused_write(Reason::HostPointer, theirs, &raid.bare(0))?;
    let (first, published) =
        (raid.place(raid.position(Side::Consumer)?).0, raid.position(Side::Producer)?);
    // Published bytes, the end of the stream, and free bytes.
    for sector in [first, raid.place(published).0, raid.geometry().sectors() - 1] {
        raid.refused_write(Reason::ForeignData, sector, &junk)?;
    }
    raid.refused_write(Reason::PointerBeyond, mine, &raid.bare(published.get() + 4))?;
    let within = raid.position(Side::Consumer)?.get() + 4;
    raid.refused_write(Reason::ItemFraming, mine, &raid.bare(within))
}
