//! Attacks on the signature and on the pointers.

use shared_block_ring::format::{FLAG_AT, SLOTS_AT, Side, Slot, TEXT_AT, Tally, put_slot};
use uuid::Uuid;
use vhost_device_blockring::data_path::guard::Reason;

use super::{Attack, Failure, Group, Raid};

pub(super) const ATTACKS: &[Attack] = &[
    Group::Heads.attack("signature_rewritten", &[Reason::Signature], signature),
    Group::Heads.attack("host_pointer_rewritten", &[Reason::HostPointer], host_pointer),
    Group::Heads.attack("heads_rewritten_as_they_are", &[], identical),
    Group::Heads.attack("pointer_backwards", &[Reason::PointerBackwards], backwards),
    Group::Heads.attack("pointer_too_far", &[Reason::PointerBeyond], beyond),
    Group::Heads.attack("pointer_unaligned", &[Reason::PointerMisaligned], misaligned),
    Group::Heads.attack("pointer_flag", &[Reason::PointerFlag], flag),
    Group::Heads.attack("slot_forged", &[Reason::PointerExtension], slots),
    Group::Heads.attack("slot_miscounts", &[Reason::ItemCount], counts),
    Group::Heads.attack(
        "heads_in_one_write",
        &[Reason::Signature, Reason::HostPointer, Reason::PublishedData],
        together,
    ),
];

const MINE: u64 = Side::Producer.sector();
const THEIRS: u64 = Side::Consumer.sector();

fn signature(raid: &mut Raid) -> Result<(), Failure> {
    let sector = raid.read(0, 1)?;
    // Signature, magic, size, identity, its checksum, and unused bytes.
    for byte in [0, 29, 32, 40, 48, 56, 80, 83, 511] {
        let mut forged = sector.to_vec();
        forged[byte] ^= 1;
        raid.refused_write(Reason::Signature, 0, &forged)?;
    }
    raid.refused_write(Reason::Signature, 0, &vec![0; sector.len()])
}

fn host_pointer(raid: &mut Raid) -> Result<(), Failure> {
    let consumer = raid.settle()?;
    let sector = raid.read(THEIRS, 1)?;
    let position = |value: u64| {
        let mut forged = sector.to_vec();
        forged[..8].copy_from_slice(&value.to_le_bytes());
        forged
    };
    // Published items thrown away, and consumed items brought back.
    let end = raid.last()?.end.get();
    for value in [end, end + 4, consumer.get() + 4, consumer.get() - 4, 0, u64::MAX] {
        raid.refused_write(Reason::HostPointer, THEIRS, &position(value))?;
    }
    for byte in [FLAG_AT, FLAG_AT + 1, SLOTS_AT[0], SLOTS_AT[1] + 47, TEXT_AT, 511] {
        let mut forged = sector.to_vec();
        forged[byte] ^= 1;
        raid.refused_write(Reason::HostPointer, THEIRS, &forged)?;
    }
    raid.refused_write(Reason::HostPointer, THEIRS, &vec![0; sector.len()])
}

fn identical(raid: &mut Raid) -> Result<(), Failure> {
    raid.settle()?;
    for (sector, count) in [(0, 1), (1, 1), (2, 1), (0, 3), (1, 2), (0, 8)] {
        let bytes = raid.read(sector, count)?;
        raid.passed(raid.write(sector, &bytes))?;
    }
    for item in raid.held() {
        let (sector, _) = raid.place(item.start);
        let bytes = raid.read(sector, 1)?;
        raid.passed(raid.write(sector, &bytes))?;
    }
    Ok(())
}

fn backwards(raid: &mut Raid) -> Result<(), Failure> {
    let last = raid.last()?;
    for to in [last.end.get() - 4, last.start.get(), raid.held()[0].start.get(), 4, 0] {
        raid.refused_write(Reason::PointerBackwards, MINE, &raid.bare(to))?;
    }
    Ok(())
}

fn beyond(raid: &mut Raid) -> Result<(), Failure> {
    let most = raid.settle()?.get() + raid.geometry().capacity().get();
    for to in [most + 4, most + 512, most * 2, 1 << 63, u64::MAX - 3] {
        raid.refused_write(Reason::PointerBeyond, MINE, &raid.bare(to))?;
    }
    Ok(())
}

fn misaligned(raid: &mut Raid) -> Result<(), Failure> {
    let end = raid.last()?.end.get();
    for to in [end + 1, end + 2, end + 3, end - 1, 1, u64::MAX] {
        raid.refused_write(Reason::PointerMisaligned, MINE, &raid.bare(to))?;
    }
    Ok(())
}

fn flag(raid: &mut Raid) -> Result<(), Failure> {
    for flag in [0, 3, 0x80, 0x82, 0xff] {
        let mut sector = raid.bare(raid.last()?.end.get());
        sector[FLAG_AT] = flag;
        raid.refused_write(Reason::PointerFlag, MINE, &sector)?;
    }
    Ok(())
}

fn slots(raid: &mut Raid) -> Result<(), Failure> {
    let item = raid.push()?;
    let (present, at, tally) = raid.present()?;
    let sound = raid.publication(item)?;
    // The slot that a publication writes, and the one that it leaves.
    let written = usize::from(sound[SLOTS_AT[0]..SLOTS_AT[1]] == present[SLOTS_AT[0]..SLOTS_AT[1]]);
    let (new, old) = (SLOTS_AT[written], SLOTS_AT[1 - written]);
    // The new slot's magic, checksum, position and count; the one that speaks for the present; the
    // bytes around them.
    for byte in [new, new + 4, new + 8, new + 16, new + 36, old, old + 8, FLAG_AT + 1, 15, 112, 127]
    {
        let mut forged = sound.to_vec();
        forged[byte] ^= 1;
        raid.refused_write(Reason::PointerExtension, MINE, &forged)?;
    }
    // A slot of another ring; one for another position; both at once.
    let slot = |position| Slot { position, tally, time_ns: 1 };
    for (uuid, position) in [(Uuid::nil(), item.end), (raid.uuid(), item.start)] {
        let mut forged = raid.bare(item.end.get());
        forged[SLOTS_AT[0]..TEXT_AT].copy_from_slice(&present[SLOTS_AT[0]..TEXT_AT]);
        put_slot(uuid, &mut forged, at, &slot(position));
        raid.refused_write(Reason::PointerExtension, MINE, &forged)?;
    }
    let mut both = sound.to_vec();
    both.copy_within(new..new + 48, old);
    raid.refused_write(Reason::PointerExtension, MINE, &both)?;
    raid.producer()?.advance(item.end)?;
    raid.published(item);
    Ok(())
}

fn counts(raid: &mut Raid) -> Result<(), Failure> {
    let item = raid.push()?;
    let (_, at, tally) = raid.present()?;
    let far = tally.base.checked_add(4).unwrap_or(tally.base);
    for forged in [
        Tally { items: tally.items + 2, ..tally },
        Tally { items: tally.items, ..tally },
        Tally { items: u64::MAX, ..tally },
        Tally { since_base: !tally.since_base, items: tally.items + 1, ..tally },
        Tally { items: 0, since_base: true, base: at, crc: 0 },
        Tally { items: 2, since_base: true, base: at, crc: 0 },
        Tally { items: 1, since_base: true, base: item.end, crc: 0 },
        Tally { items: 1, since_base: true, base: far, crc: 0 },
    ] {
        let sector = raid.moved(item.end, forged)?;
        raid.refused_write(Reason::ItemCount, MINE, &sector)?;
    }
    raid.producer()?.advance(item.end)?;
    raid.published(item);
    Ok(())
}

/// Makes a true publication part of a write that is refused for another of its sectors: nothing of
/// it may be stored.
fn together(raid: &mut Raid) -> Result<(), Failure> {
    raid.settle()?;
    let item = raid.push()?;
    let pointer = raid.publication(item)?;
    let size = pointer.len();
    let heads = raid.read(0, 3)?;
    let mut forged = heads.to_vec();
    forged[size..2 * size].copy_from_slice(&pointer);
    let mut signature = forged.clone();
    signature[0] ^= 1;
    raid.refused_write(Reason::Signature, 0, &signature)?;
    let mut host = forged.clone();
    host[2 * size] ^= 4;
    raid.refused_write(Reason::HostPointer, 0, &host)?;
    raid.refused_write(Reason::HostPointer, 1, &host[size..])?;
    // From sector 1 into published data, wherever that is.
    let (sector, byte) = raid.place(raid.held()[0].start);
    let count = super::index(sector);
    let mut data = raid.read(1, count)?.to_vec();
    data[..size].copy_from_slice(&pointer);
    data[(count - 1) * size + byte] ^= 1;
    raid.refused_write(Reason::PublishedData, 1, &data)?;
    raid.producer()?.advance(item.end)?;
    raid.published(item);
    Ok(())
}
