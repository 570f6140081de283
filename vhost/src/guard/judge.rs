//! Judging a whole request, as the sequence of its sectors: all or nothing.

use super::data::{Pieces, Published};
use super::pointer::Move;
use super::walk::{Progress, Walk};
use super::{Guard, Host, Mine, Reason};
use shared_block_ring::Position;
use shared_block_ring::format::{Side, find_slot};
use std::ops::Range;

/// The unit of a request's sector, whatever the block size (virtio 1.3, 5.2.6).
pub const SECTOR_UNIT: u64 = 512;

/// What the page cache of a guest writes at a time.
const PAGE: u64 = 4096;

/// Readings of the host's pointer sector, which can be halfway through a change: more than a writer can disturb by chance.
const READINGS: u32 = 1000;

/// Readings that bring the same bytes before it is given up.
const SAME_READINGS: u32 = 3;

/// What there is to be seen when a write is judged. Nothing changes by looking.
pub trait Sight {
    /// The guest's bytes cannot be read.
    type Fault;

    /// The region's sector `index`, in front of the data area; what its position promises is read after it.
    fn head_sector(&self, index: u64, sector: &mut [u8]);

    /// One side's position in the region; `None` when it is no position.
    fn position(&self, side: Side) -> Option<Position>;

    /// Four bytes of the region's data area, at a device offset that is a multiple of 4.
    fn word(&self, offset: u64) -> [u8; 4];

    /// Copies what the guest wants to write to device bytes `range`: once, since it can change them.
    fn written(&self, range: Range<u64>, private: &mut [u8]) -> Result<(), Self::Fault>;

    /// Whether the guest wants to write to device bytes `range` what the region holds there.
    fn same(&self, range: Range<u64>) -> Result<bool, Self::Fault>;
}

/// Where sectors are looked at: passed on from one judgement to the next, so that none allocates in the steady state.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What the guest wants to write, and what the region holds there.
    theirs: Vec<u8>,
    ours: Vec<u8>,
    /// The guest's pointer sector as it is to be, if it is to change.
    pointer: Vec<u8>,
    /// The host's, and how it was at the reading before.
    host: Vec<u8>,
    before: Vec<u8>,
    /// Where published bytes lay when a write was last judged.
    published: Option<Published>,
}

/// A write that is being judged.
#[derive(Debug)]
pub struct Judgement {
    room: Box<Room>,
    /// Device bytes.
    range: Range<u64>,
    /// The sector to be looked at next, as long as it lies in front of the data area.
    next: u64,
    pointer: Option<NewPointer>,
}

/// The guest's pointer sector as it is to be.
#[derive(Debug)]
struct NewPointer {
    change: Move,
    walk: Walk,
}

/// What is to be stored of a write, in this order.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    /// Device bytes of the data area.
    pub stored: [Range<u64>; 3],
    /// The guest's side once its [pointer sector](Judgement::pointer_sector) is stored, if that changes.
    pub pointer: Option<Mine>,
}

impl Judgement {
    /// The guest's pointer sector as it is to be. Of no meaning if no [`Grant`] says that it changes.
    pub fn pointer_sector(&self) -> &[u8] {
        &self.room.pointer
    }

    /// For the next judgement.
    pub fn into_room(self) -> Box<Room> {
        self.room
    }
}

/// What speaks against a write.
#[derive(Debug, PartialEq, Eq)]
pub enum Denied<F> {
    /// A rule.
    Refused(Reason),
    /// It cannot be read.
    Fault(F),
}

impl<F> From<Reason> for Denied<F> {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

impl Guard {
    /// Device bytes that a request of `len` bytes at `sector` (in units of 512 bytes) is about.
    pub fn range(&self, sector: u64, len: u64) -> Result<Range<u64>, Reason> {
        let start = sector.checked_mul(SECTOR_UNIT).ok_or(Reason::OutOfRange)?;
        let end = start.checked_add(len).ok_or(Reason::OutOfRange)?;
        // A power of two, which the compiler does not know: it would divide.
        let whole = (start | end) & (u64::from(self.geometry.sector_size().get()) - 1) == 0;
        if whole && end <= self.geometry.total_bytes() {
            Ok(start..end)
        } else {
            Err(Reason::OutOfRange)
        }
    }

    /// Begins to judge a write to `range`, which [`Guard::range`] has answered.
    pub fn begin(&self, range: Range<u64>, room: Box<Room>) -> Judgement {
        let next = range.start >> self.geometry.sector_size().get().trailing_zeros();
        Judgement { room, range, next, pointer: None }
    }

    /// Goes on with a judgement; `mine` is the guest's side as the region has it, `budget` the number of items to look at. `None` if that is used
    /// up: to be gone on with.
    ///
    /// Sectors are judged in their order, each by what the region would be after those in front of it. An answer is final: there is
    /// nothing left to be judged when it is carried out.
    pub fn judge<S: Sight>(
        &self,
        mine: Mine,
        judgement: &mut Judgement,
        budget: usize,
        sight: &S,
    ) -> Result<Option<Grant>, Denied<S::Fault>> {
        self.judge_sectors(mine, judgement, budget, sight).map_err(|denied| match denied {
            Denied::Refused(reason) => Denied::Refused(self.named(&judgement.range, reason)),
            Denied::Fault(fault) => Denied::Fault(fault),
        })
    }

    fn judge_sectors<S: Sight>(
        &self,
        mine: Mine,
        judgement: &mut Judgement,
        budget: usize,
        sight: &S,
    ) -> Result<Option<Grant>, Denied<S::Fault>> {
        let size = u64::from(self.geometry.sector_size().get());
        loop {
            if let Some(pointer) = &mut judgement.pointer
                && pointer.walk.step(self.geometry, budget, |at| sight.word(at))?
                    == Progress::Unfinished
            {
                return Ok(None);
            }
            let start = judgement.next * size;
            if start >= judgement.range.end.min(self.geometry.data_start()) {
                break;
            }
            if let Some(pointer) =
                self.judge_head(mine, judgement.next, &mut judgement.room, sight)?
            {
                // At most once: sectors come in their order, and all but one never change.
                judgement.pointer = Some(pointer);
            }
            judgement.next += 1;
        }
        let pointer = judgement.pointer.as_ref().map(|pointer| pointer.change.mine());
        let mine = pointer.unwrap_or(mine);
        let data = judgement.range.start.max(self.geometry.data_start())..judgement.range.end;
        let pieces = self.judge_data(mine, data, &mut judgement.room.published, sight)?;
        Ok(Some(Grant { stored: pieces.stored, pointer }))
    }

    /// Judges one sector in front of the data area, but for the items; `None` when it stays as it is.
    fn judge_head<S: Sight>(
        &self,
        mine: Mine,
        index: u64,
        room: &mut Room,
        sight: &S,
    ) -> Result<Option<NewPointer>, Denied<S::Fault>> {
        let size = self.geometry.sector_size();
        let (theirs, ours) = (&mut room.theirs, &mut room.ours);
        theirs.resize(size.bytes(), 0);
        ours.resize(size.bytes(), 0);
        let start = index * u64::from(size.get());
        sight.written(start..start + u64::from(size.get()), theirs).map_err(Denied::Fault)?;
        sight.head_sector(index, ours);
        if theirs == ours {
            return Ok(None);
        }
        if let Some(reason) = self.immutable(index) {
            return Err(reason.into());
        }
        let host = self.look_at_host(sight, &mut room.host, &mut room.before)?;
        let change = self.judge_pointer(mine, host, ours, theirs)?;
        // What was judged is what is stored: the guest can have changed it since.
        std::mem::swap(&mut room.pointer, theirs);
        Ok(Some(NewPointer { change, walk: change.walk() }))
    }

    fn judge_data<S: Sight>(
        &self,
        mine: Mine,
        data: Range<u64>,
        known: &mut Option<Published>,
        sight: &S,
    ) -> Result<Pieces, Denied<S::Fault>> {
        if data.is_empty() {
            return Ok(Pieces::NONE);
        }
        let host = sight.position(self.host()).ok_or(Reason::HostCorrupt)?;
        let (producer, consumer) = match self.guest {
            Side::Producer => (mine.pointer.position, host),
            Side::Consumer => (host, mine.pointer.position),
        };
        let pieces = self.pieces(&data, producer, consumer, known)?;
        for piece in &pieces.compared {
            if !piece.is_empty() && !sight.same(piece.clone()).map_err(Denied::Fault)? {
                return Err(pieces.reason.into());
            }
        }
        Ok(pieces)
    }

    /// The host's side. What its slot says matters only for a guest that reads what the host writes.
    fn look_at_host<S: Sight>(
        &self,
        sight: &S,
        sector: &mut Vec<u8>,
        before: &mut Vec<u8>,
    ) -> Result<Host, Reason> {
        let side = self.host();
        let position = sight.position(side).ok_or(Reason::HostCorrupt)?;
        let Some(uuid) = self.uuid.filter(|_| self.guest == Side::Consumer) else {
            return Ok(Host { position, tally: Ok(None) });
        };
        sector.resize(self.geometry.sector_size().bytes(), 0);
        before.clear();
        let mut same = 0;
        let mut host = Host { position, tally: Err(Reason::HostCorrupt) };
        for _ in 0..READINGS {
            sight.head_sector(side.sector(), sector);
            host.position = position_of(sector).ok_or(Reason::HostCorrupt)?;
            let again = *before == *sector;
            same = if again { same + 1 } else { 0 };
            match find_slot(uuid, side, sector, host.position) {
                Ok(Some(slot)) => return Ok(Host { tally: Ok(Some(slot.tally)), ..host }),
                // One reading does not show that there is none: the host can be two positions further on by now, and this one's slot
                // absent while the next is written over it.
                Ok(None) if again => return Ok(Host { tally: Ok(None), ..host }),
                Err(_) if same == SAME_READINGS => break,
                Ok(None) | Err(_) => {}
            }
            before.clone_from(sector);
        }
        Ok(host)
    }

    /// Nobody writes the first page whole who knows that it holds both pointers: part of it is stale, or meant for elsewhere.
    fn named(&self, range: &Range<u64>, reason: Reason) -> Reason {
        let page = range.start == 0 && range.end >= PAGE;
        if page
            && u64::from(self.geometry.sector_size().get()) < PAGE
            && reason != Reason::HostCorrupt
        {
            Reason::BufferedPage
        } else {
            reason
        }
    }
}

fn position_of(sector: &[u8]) -> Option<Position> {
    let mut word = [0; 8];
    word.copy_from_slice(&sector[..8]);
    Position::new(u64::from_le_bytes(word))
}
