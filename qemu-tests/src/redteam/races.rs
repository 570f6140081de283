//! Attacks by bytes that change while their request is in flight.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};

use shared_block_ring::format::{SLOTS_AT, Side};
use vhost_device_blockring::data_path::guard::Reason;

use super::meanwhile::{Stop, meanwhile};
use super::raid::Published;
use super::{Attack, Failure, Group, Raid, ensure};

pub(super) const ATTACKS: &[Attack] = &[
    Group::Races.attack(
        "pointer_changed_in_flight",
        &[
            Reason::PointerBackwards,
            Reason::PointerBeyond,
            Reason::PointerMisaligned,
            Reason::PointerFlag,
            Reason::PointerExtension,
            Reason::ItemCount,
            Reason::ItemFraming,
        ],
        pointer,
    ),
    Group::Races.attack("published_data_changed_in_flight", &[Reason::PublishedData], data),
    Group::Races.attack(
        "header_changed_while_it_is_published",
        &[Reason::ItemFraming, Reason::ItemCount, Reason::PublishedData],
        header,
    ),
];

/// Number of times that each outcome must be seen.
const OFTEN: u32 = 20;

/// Largest number of tries.
const TRIES: u32 = 20_000;

const SECTOR: usize = 512;

/// A sector in memory that one thread writes while the kernel reads it.
#[repr(C, align(4096))]
struct Shared([AtomicU64; SECTOR / 8]);

impl Shared {
    fn new() -> Self {
        Self([const { AtomicU64::new(0) }; SECTOR / 8])
    }

    fn store(&self, bytes: &[u8]) {
        for (word, bytes) in self.0.iter().zip(bytes.chunks_exact(8)) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
        }
    }

    /// Writes the sector to the disk as it is at that moment.
    fn write(&self, disk: &File, sector: u64) -> io::Result<()> {
        let at = (sector * SECTOR as u64).cast_signed();
        // SAFETY: the address and as many bytes behind it are those of `self`, and only the kernel
        // reads them here; that they change meanwhile is the point, and Rust has no reference to
        // them that is not atomic.
        let written = unsafe { libc::pwrite(disk.as_raw_fd(), self.0.as_ptr().cast(), SECTOR, at) };
        match usize::try_from(written) {
            Ok(SECTOR) => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

/// Runs `tries` while another thread stores one variant after the other.
fn racing<T>(
    shared: &Shared,
    variants: &[Vec<u8>],
    tries: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let racer = |stop: &Stop| {
        while !stop.is_told() {
            for bytes in variants {
                shared.store(bytes);
            }
        }
    };
    Ok(meanwhile([racer], tries)?.0)
}

/// Counters of both outcomes.
#[derive(Default)]
struct Outcomes {
    tries: u32,
    passed: u32,
    refused: u32,
}

impl Outcomes {
    fn more(&mut self) -> Result<bool, Failure> {
        self.tries += 1;
        ensure(self.tries < TRIES, || {
            format!("{} passed and {} were refused: no race", self.passed, self.refused)
        })?;
        Ok(self.passed < OFTEN || self.refused < OFTEN)
    }

    fn note(&mut self, passed: bool) {
        *(if passed { &mut self.passed } else { &mut self.refused }) += 1;
    }
}

/// Writes a pointer sector of which one variant is true and the others are not: it is stored as it
/// is, or nothing is.
fn pointer(raid: &mut Raid) -> Result<(), Failure> {
    let disk = raid.file(libc::O_DIRECT)?;
    let shared = Shared::new();
    let mut outcomes = Outcomes::default();
    while outcomes.more()? {
        let item = raid.push()?;
        let sound = raid.publication(item)?.to_vec();
        let far = item.end.get() + raid.geometry().capacity().get();
        let forged = |change: &dyn Fn(&mut [u8])| {
            let mut sector = sound.clone();
            change(&mut sector);
            sector
        };
        let variants = [
            sound.clone(),
            forged(&|sector| sector[..8].copy_from_slice(&far.to_le_bytes())),
            sound.clone(),
            forged(&|sector| sector[..8].fill(0)),
            sound.clone(),
            forged(&|sector| sector[0] ^= 1),
            sound.clone(),
            forged(&|sector| sector[8] = 0),
            sound.clone(),
            forged(&|sector| sector[SLOTS_AT[0]..SLOTS_AT[1]].fill(0x5a)),
            forged(&|sector| sector[SLOTS_AT[1]..SLOTS_AT[1] + 48].fill(0x5a)),
        ];
        shared.store(&sound);
        let more = &mut outcomes;
        racing(&shared, &variants, || {
            loop {
                let passed = raid.by_chance(shared.write(&disk, Side::Producer.sector()))?;
                more.note(passed);
                if passed || !more.more()? {
                    return Ok(());
                }
            }
        })?;
        settle(raid, item)?;
    }
    Ok(())
}

/// Records an item that may have been published past the honest producer, which publishes it now if
/// not.
fn settle(raid: &mut Raid, item: Published) -> Result<(), Failure> {
    let stands = raid.position(Side::Producer)?;
    if stands == item.end {
        raid.published(item);
        return raid.attach();
    }
    ensure(stands == item.start, || format!("the pointer went to {stands}"))?;
    raid.producer()?.advance(item.end)?;
    raid.published(item);
    Ok(())
}

/// Writes a sector that is partly published and partly free.
fn data(raid: &mut Raid) -> Result<(), Failure> {
    let disk = raid.file(libc::O_DIRECT)?;
    let shared = Shared::new();
    // The last item ends within a sector.
    while raid.place(raid.last()?.end).1 < 8 {
        raid.publish(1)?;
    }
    raid.settle()?;
    let last = raid.last()?;
    let (sector, end) = raid.place(last.end);
    let mut sound = raid.read(sector, 1)?.to_vec();
    let before = raid.stream(last.start, last.end)?;
    sound[end..].fill(0x11);
    let mut forged = sound.clone();
    forged[end - 4] ^= 1;
    forged[end..].fill(0x22);
    let mut outcomes = Outcomes::default();
    shared.store(&sound);
    racing(&shared, &[sound, forged], || {
        while outcomes.more()? {
            outcomes.note(raid.by_chance(shared.write(&disk, sector))?);
        }
        Ok(())
    })?;
    ensure(raid.stream(last.start, last.end)? == before, || "published bytes changed".to_owned())
}

/// Changes the header of an item while another request publishes it: from then on the header is
/// true, and stays so.
fn header(raid: &mut Raid) -> Result<(), Failure> {
    let disk = raid.file(libc::O_DIRECT)?;
    let mut outcomes = Outcomes::default();
    while outcomes.more()? {
        let item = raid.push()?;
        let publication = raid.publication(item)?;
        let (sector, byte) = raid.place(item.start);
        let sound = raid.read(sector, 1)?.to_vec();
        let mut forged = sound.clone();
        // Eight bytes longer.
        let length = raid.next_item().len() + 8;
        let length = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        forged[byte..byte + 4].copy_from_slice(&length);
        let shared = Shared::new();
        let writer = |stop: &Stop| {
            let (mut passed, mut refused) = (0, 0);
            while !stop.is_told() {
                for bytes in [&forged, &sound] {
                    shared.store(bytes);
                    match shared.write(&disk, sector) {
                        Ok(()) => passed += 1,
                        Err(_) => refused += 1,
                    }
                }
            }
            (passed, refused)
        };
        let ((), wrote) = meanwhile([writer], || {
            loop {
                let passed = raid.write(Side::Producer.sector(), &publication);
                let passed = raid.by_chance(passed)?;
                outcomes.note(passed);
                if passed || !outcomes.more()? {
                    return Ok(());
                }
            }
        })?;
        for (passed, refused) in wrote {
            raid.report.passed += passed;
            raid.report.by_chance += refused;
        }
        settle(raid, item)?;
        let found = raid.stream(item.start, item.end)?;
        ensure(found[..4] == sound[byte..byte + 4], || format!("a header of {:?}", &found[..4]))?;
    }
    Ok(())
}
