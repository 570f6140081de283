//! Tools of an attack, and the honest producer beside it.

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shared_block_ring::device::{AlignedBuf, find_by_serial};
use shared_block_ring::format::{
    Geometry, PointerSector, Side, Slot, Tally, decode_sector0, find_slot, put_slot,
};
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{BlockDevice, Error, FileDevice, OpenOptions, Position, Producer};
use uuid::Uuid;

use super::{Attack, Failure, Group, HELD, Report, ensure, honest_item, index, stream};
use crate::load::item::Recipe;

/// Bound on a wait for the host.
const PATIENCE: Duration = Duration::from_secs(60);

/// One item of the honest producer.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// Position of its header.
    pub start: Position,
    /// Position behind it.
    pub end: Position,
}

/// The disk, and the items that were published through it.
pub struct Raid {
    serial: String,
    recipe: Recipe,
    /// The disk past the page cache.
    disk: FileDevice,
    uuid: Uuid,
    producer: Option<Producer<FileDevice>>,
    /// Published items, the newest last.
    pub items: Vec<Published>,
    /// Report for the host.
    pub report: Report,
}

impl Raid {
    /// Opens the disk with this serial number, whose next item is `next`.
    pub fn begin(serial: &str, seed: u64, next: u32) -> Result<Self, Failure> {
        let disk = OpenOptions::default().open(&find_by_serial(serial)?)?;
        let mut sector = AlignedBuf::zeroed(disk.geometry().sector_size().bytes());
        disk.read(0, &mut [IoSliceMut::new(&mut sector)])?;
        let signed = decode_sector0(&sector, disk.geometry()).map_err(Error::from)?;
        let uuid =
            signed.uuid().ok_or_else(|| Failure::Unsound("a ring without identity".into()))?;
        let raid = Self {
            serial: serial.to_owned(),
            recipe: Recipe { seed },
            disk,
            uuid,
            producer: None,
            items: Vec::new(),
            report: Report { next, ..Report::default() },
        };
        raid.keep_apart()?;
        Ok(raid)
    }

    /// Has the kernel make one request of each write: otherwise it merges neighbours of different
    /// writers, and an honest write is refused together with an attack.
    fn keep_apart(&self) -> Result<(), Failure> {
        let path = self.path()?;
        let name = path.file_name().unwrap_or_default();
        Ok(fs::write(Path::new("/sys/block").join(name).join("queue/nomerges"), "2")?)
    }

    /// Carries out the attack, with honest items before and after.
    pub fn carry_out(mut self, attack: &Attack) -> Result<Report, Failure> {
        if attack.group == Group::Consumer {
            (attack.run)(&mut self)?;
            return Ok(self.report);
        }
        self.attach()?;
        // More items than the host keeps, so that the consumer's position is known.
        self.publish(HELD + 1)?;
        (attack.run)(&mut self)?;
        self.publish(HELD + 1)?;
        self.settle()?;
        Ok(self.report)
    }

    /// Opens the disk once more.
    pub fn open(&self) -> Result<FileDevice, Failure> {
        Ok(OpenOptions::default().open(&self.path()?)?)
    }

    /// Returns the disk's node.
    pub fn path(&self) -> Result<PathBuf, Failure> {
        Ok(find_by_serial(&self.serial)?)
    }

    /// Opens the disk past the page cache or through it, for other requests than a ring's.
    pub fn file(&self, flags: i32) -> Result<File, Failure> {
        use std::os::unix::fs::OpenOptionsExt as _;
        Ok(File::options().read(true).write(true).custom_flags(flags).open(self.path()?)?)
    }

    /// Opens the disk again after it was away.
    pub fn reopen(&mut self) -> Result<(), Failure> {
        self.disk = self.open()?;
        self.keep_apart()
    }

    /// Returns the shape of the ring.
    pub fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    /// Returns the UUID of the ring.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Detaches the honest producer.
    pub fn detach(&mut self) {
        self.producer = None;
    }

    /// Attaches a new honest producer: the ring may have changed under the old one.
    pub fn attach(&mut self) -> Result<(), Failure> {
        self.detach();
        self.producer = Some(Producer::attach(self.open()?, "redteam", "guest")?);
        Ok(())
    }

    /// Publishes honest items.
    pub fn publish(&mut self, count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            let item = self.push()?;
            self.producer()?.advance(item.end)?;
            self.published(item);
        }
        Ok(())
    }

    /// Pushes the next honest item without publishing it.
    pub fn push(&mut self) -> Result<Published, Failure> {
        let payload = self.next_item();
        let producer = self.producer()?;
        let start = producer.position();
        let mut wait = Wait::new(Side::Consumer, Some(PATIENCE));
        loop {
            match producer.push(&payload) {
                Ok(end) => {
                    producer.flush()?;
                    return Ok(Published { start, end });
                }
                Err(Error::Retry) if wait.pause(producer.device(), &[])? != Woken::TimedOut => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Returns the payload of the next honest item.
    pub fn next_item(&self) -> Vec<u8> {
        honest_item(self.recipe, self.report.next)
    }

    /// Returns the honest producer.
    pub fn producer(&mut self) -> Result<&mut Producer<FileDevice>, Failure> {
        self.producer.as_mut().ok_or_else(|| Failure::Unsound("nobody is attached".into()))
    }

    /// Records that a pushed item is published.
    pub fn published(&mut self, item: Published) {
        self.report.next += 1;
        self.items.push(item);
    }

    /// Returns the last published item.
    pub fn last(&self) -> Result<Published, Failure> {
        self.items.last().copied().ok_or_else(|| Failure::Unsound("nothing is published".into()))
    }

    /// Returns the items that the host keeps.
    pub fn held(&self) -> Vec<Published> {
        self.items[self.items.len().saturating_sub(HELD)..].to_vec()
    }

    /// Waits until the host has freed all that it frees before more is published. Returns its
    /// position then.
    pub fn settle(&self) -> Result<Position, Failure> {
        let held = self.held();
        let first = held.first().ok_or_else(|| Failure::Unsound("nothing is published".into()))?;
        let begun = Instant::now();
        loop {
            let consumer = self.position(Side::Consumer)?;
            if consumer == first.start {
                return Ok(consumer);
            }
            ensure(begun.elapsed() < PATIENCE, || {
                format!("the consumer stands at {consumer} and not at {}", first.start)
            })?;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Reads whole sectors.
    pub fn read(&self, sector: u64, count: usize) -> Result<AlignedBuf, Failure> {
        let mut sectors = AlignedBuf::zeroed(count * self.geometry().sector_size().bytes());
        self.disk.read(sector, &mut [IoSliceMut::new(&mut sectors)])?;
        Ok(sectors)
    }

    /// Writes whole sectors in one request.
    pub fn write(&self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        let mut aligned = AlignedBuf::zeroed(bytes.len());
        aligned.copy_from_slice(bytes);
        self.disk.write(sector, &[IoSlice::new(&aligned)]).map_err(|e| e.source)
    }

    /// Returns one side's position.
    pub fn position(&self, side: Side) -> Result<Position, Failure> {
        let sector = self.read(side.sector(), 1)?;
        Ok(PointerSector::decode(side, &sector).map_err(Error::from)?.position)
    }

    /// Returns the stream's bytes.
    pub fn stream(&self, from: Position, to: Position) -> Result<Vec<u8>, Failure> {
        Ok(stream(&self.disk, from, to)?)
    }

    /// Returns the device sector, and the byte within it, of a position.
    pub fn place(&self, at: Position) -> (u64, usize) {
        let geometry = self.geometry();
        let size = u64::from(geometry.sector_size().get());
        let offset = geometry.data_start() + geometry.data_offset(at.get());
        (offset / size, index(offset % size))
    }

    /// Returns sector 1 and the tally of its slot.
    pub fn present(&self) -> Result<(AlignedBuf, Position, Tally), Failure> {
        let sector = self.read(Side::Producer.sector(), 1)?;
        let position = PointerSector::decode(Side::Producer, &sector).map_err(Error::from)?;
        let position = position.position;
        let slot = find_slot(self.uuid, Side::Producer, &sector, position).map_err(Error::from)?;
        let tally = slot.map_or_else(|| Tally::from_here(position), |slot| slot.tally);
        Ok((sector, position, tally))
    }

    /// Makes a sector 1 that publishes up to `to`, with `tally` in its slot.
    pub fn moved(&self, to: Position, tally: Tally) -> Result<AlignedBuf, Failure> {
        let (mut sector, present, _) = self.present()?;
        put_slot(self.uuid, &mut sector, present, &Slot { position: to, tally, time_ns: 1 });
        PointerSector { position: to, flag: false }.encode(Side::Producer, None, &mut sector);
        Ok(sector)
    }

    /// Makes the true sector 1 that publishes the one item that was pushed.
    pub fn publication(&self, item: Published) -> Result<AlignedBuf, Failure> {
        let (_, present, tally) = self.present()?;
        self.moved(item.end, tally.extend(1, &self.stream(present, item.end)?))
    }

    /// Makes a sector 1 with a position and no slots.
    pub fn bare(&self, position: u64) -> AlignedBuf {
        let mut sector = AlignedBuf::zeroed(self.geometry().sector_size().bytes());
        sector[..8].copy_from_slice(&position.to_le_bytes());
        sector[8] = 2;
        sector
    }
}
