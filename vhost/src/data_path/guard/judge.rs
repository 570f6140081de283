//! Judging a whole request, as the sequence of its sectors: all of it is stored, or nothing.

use super::data::Pieces;
use super::pointer::Move;
use super::walk::{Progress, Walk};
use super::{Guard, GuestState, HostState, Reason};
use shared_block_ring::Position;
use shared_block_ring::format::{FLAG_AT, PointerSector, Reading, Side, SlotSearch};
use std::ops::Range;

/// Bytes of a unit of a request's sector number, whatever the block size (virtio 1.3, 5.2.6).
pub const SECTOR_UNIT: u64 = 512;

/// Bytes that the page cache of a guest writes at a time.
const PAGE: u64 = 4096;

/// What the guard sees of the region and of the request that it judges. Looking changes nothing.
pub trait View {
    /// Why the request's bytes cannot be read.
    type Fault;

    /// Copies the region's control sector `index` (0 to 2). Whatever its position exposes is read
    /// after it.
    fn control_sector(&self, index: u64, sector: &mut [u8]);

    /// One side's position in the region; `None` when the stored number is no position.
    fn position(&self, side: Side) -> Option<Position>;

    /// Four bytes of the region's data area, at a device offset that is a multiple of 4.
    fn word(&self, offset: u64) -> [u8; 4];

    /// Copies the bytes that the request has for device bytes `range`. The guest can change them:
    /// the copy is what is judged, and stored.
    fn requested(&self, range: Range<u64>, copy: &mut [u8]) -> Result<(), Self::Fault>;

    /// Whether the request has for device bytes `range` what the region holds there.
    fn is_unchanged(&self, range: Range<u64>) -> Result<bool, Self::Fault>;

    /// Whether the write may be a repeated one: it was carried out before, and a kill of the
    /// backend or a stop of the queue came before its answer.
    fn may_repeat(&self) -> bool;
}

/// Memory for judging a request, passed on from one judgement to the next: nothing is allocated in
/// the steady state.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// A control sector as the request has it, and as the region holds it.
    requested: Vec<u8>,
    current: Vec<u8>,
    /// The guest's pointer sector as it is to be stored, if it changes.
    pointer_sector: Vec<u8>,
    /// The host's pointer sector, and its reading before.
    host: Vec<u8>,
    previous_host: Vec<u8>,
}

/// A write that is being judged.
#[derive(Debug)]
pub struct Judgement {
    scratch: Box<Scratch>,
    /// The request's device bytes.
    range: Range<u64>,
    /// The sector that is judged next, while that is a control sector.
    next: u64,
    pointer: Option<NewPointer>,
}

/// The guest's pointer sector as it is to be stored.
#[derive(Debug)]
struct NewPointer {
    change: Move,
    walk: Walk,
    keeps_flag: bool,
}

/// What is to be stored of a write, in this order.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    /// Device bytes of the data area.
    pub stored: [Range<u64>; 3],
    /// The guest's state once its [pointer sector](Judgement::pointer_sector) is stored, if that
    /// changes.
    pub guest: Option<GuestState>,
    /// The flag byte of that sector is not stored: it stays as the host has it, now or by then.
    pub keeps_flag: bool,
}

impl Judgement {
    /// The guest's pointer sector as it is to be stored. Meaningless unless a [`Grant`] says that
    /// it changes.
    pub fn pointer_sector(&self) -> &[u8] {
        &self.scratch.pointer_sector
    }

    /// Returns the memory for the next judgement.
    pub fn into_scratch(self) -> Box<Scratch> {
        self.scratch
    }
}

/// Why a request is not carried out.
#[derive(Debug, PartialEq, Eq)]
pub enum Denied<F> {
    /// A rule refuses it.
    Refused(Reason),
    /// Its bytes cannot be read.
    Fault(F),
}

impl<F> From<Reason> for Denied<F> {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

impl Guard {
    /// Returns the device bytes of a request for `len` bytes at `sector` (in units of 512 bytes).
    ///
    /// # Errors
    ///
    /// [`Reason::OutOfRange`] if they are not whole sectors of the device.
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

    /// Begins to judge a write to `range`, which [`Guard::range`] has returned.
    pub fn begin(&self, range: Range<u64>, scratch: Box<Scratch>) -> Judgement {
        let next = range.start >> self.geometry.sector_size().get().trailing_zeros();
        Judgement { scratch, range, next, pointer: None }
    }

    /// Goes on with a judgement. `guest` is the guest's side as the region holds it, `budget` the
    /// number of items to walk. Returns `None` if that is used up: to be called again.
    ///
    /// Sectors are judged in their order, each by what the region would be after those in front of
    /// it. An answer is final: nothing is left to be judged when the write is carried out.
    ///
    /// # Errors
    ///
    /// The rule that the write breaks, or why its bytes cannot be read.
    pub fn judge<V: View>(
        &self,
        guest: GuestState,
        judgement: &mut Judgement,
        budget: usize,
        view: &V,
    ) -> Result<Option<Grant>, Denied<V::Fault>> {
        self.judge_sectors(guest, judgement, budget, view).map_err(|denied| match denied {
            Denied::Refused(reason) => Denied::Refused(self.reason_for(&judgement.range, reason)),
            Denied::Fault(fault) => Denied::Fault(fault),
        })
    }

    fn judge_sectors<V: View>(
        &self,
        guest: GuestState,
        judgement: &mut Judgement,
        budget: usize,
        view: &V,
    ) -> Result<Option<Grant>, Denied<V::Fault>> {
        let size = u64::from(self.geometry.sector_size().get());
        loop {
            if let Some(pointer) = &mut judgement.pointer
                && pointer.walk.step(self.geometry, budget, |at| view.word(at))?
                    == Progress::Unfinished
            {
                return Ok(None);
            }
            let start = judgement.next * size;
            if start >= judgement.range.end.min(self.geometry.data_start()) {
                break;
            }
            if let Some(pointer) =
                self.judge_control_sector(guest, judgement.next, &mut judgement.scratch, view)?
            {
                // At most once: sectors come in their order, and all but one never change.
                judgement.pointer = Some(pointer);
            }
            judgement.next += 1;
        }
        let keeps_flag = judgement.pointer.as_ref().is_some_and(|pointer| pointer.keeps_flag);
        let moved = judgement.pointer.as_ref().map(|pointer| pointer.change.guest());
        let data = judgement.range.start.max(self.geometry.data_start())..judgement.range.end;
        let pieces = self.judge_data(moved.unwrap_or(guest), data, view)?;
        Ok(Some(Grant { stored: pieces.stored, guest: moved, keeps_flag }))
    }

    /// Judges one control sector, but for the items under a new position. Returns `None` when the
    /// sector stays as it is.
    fn judge_control_sector<V: View>(
        &self,
        guest: GuestState,
        index: u64,
        scratch: &mut Scratch,
        view: &V,
    ) -> Result<Option<NewPointer>, Denied<V::Fault>> {
        let size = self.geometry.sector_size();
        let (requested, current) = (&mut scratch.requested, &mut scratch.current);
        requested.resize(size.bytes(), 0);
        current.resize(size.bytes(), 0);
        let start = index * u64::from(size.get());
        view.requested(start..start + u64::from(size.get()), requested).map_err(Denied::Fault)?;
        view.control_sector(index, current);
        if requested == current {
            return Ok(None);
        }
        if let Some(reason) = self.immutable(index) {
            return Err(reason.into());
        }
        let keeps_flag = self.keeps_flag(current, requested, view);
        if keeps_flag {
            requested[FLAG_AT] = current[FLAG_AT];
            if requested == current {
                return Ok(None);
            }
        }
        let host = self.host_state(view, &mut scratch.host, &mut scratch.previous_host)?;
        let change = self.judge_pointer(guest, host, current, requested)?;
        // The copy that was judged is what is stored: the guest may have changed its own since.
        std::mem::swap(&mut scratch.pointer_sector, requested);
        Ok(Some(NewPointer { change, walk: change.walk(), keeps_flag }))
    }

    /// Whether the flag of the guest's pointer sector stays as the region holds it.
    ///
    /// `suspend` in sector 2 can be set by the host too, while a guest consumer is between reading
    /// the sector and writing it. A write that moves the position is an `advance`, which never
    /// means to change the flag: it repeats the flag that was read. A flag that differs at the same
    /// position is a `suspend` or `resume` of the guest's, unless the write may be a repeated
    /// `advance`.
    fn keeps_flag<V: View>(&self, current: &[u8], requested: &[u8], view: &V) -> bool {
        let is_flag = |sector: &[u8]| matches!(sector[FLAG_AT], 1 | 2);
        if self.guest == Side::Producer || !is_flag(current) || !is_flag(requested) {
            return false;
        }
        let deliberate =
            requested[..FLAG_AT] == current[..FLAG_AT] && requested[FLAG_AT] != current[FLAG_AT];
        !deliberate || view.may_repeat()
    }

    fn judge_data<V: View>(
        &self,
        guest: GuestState,
        data: Range<u64>,
        view: &V,
    ) -> Result<Pieces, Denied<V::Fault>> {
        if data.is_empty() {
            return Ok(Pieces::NONE);
        }
        let host = view.position(self.host()).ok_or(Reason::HostCorrupt)?;
        let (producer, consumer) = self.positions(guest.pointer.position, host);
        let pieces = self.data_pieces(&data, producer, consumer)?;
        for piece in &pieces.compared {
            if !piece.is_empty() && !view.is_unchanged(piece.clone()).map_err(Denied::Fault)? {
                return Err(pieces.reason.into());
            }
        }
        Ok(pieces)
    }

    /// Reads the host's side. Its slot matters only for a guest that consumes what the host writes.
    fn host_state<V: View>(
        &self,
        view: &V,
        sector: &mut Vec<u8>,
        previous: &mut Vec<u8>,
    ) -> Result<HostState, Reason> {
        let side = self.host();
        let position = view.position(side).ok_or(Reason::HostCorrupt)?;
        let Some(uuid) = self.uuid.filter(|_| self.guest == Side::Consumer) else {
            return Ok(HostState { position, tally: Ok(None) });
        };
        sector.resize(self.geometry.sector_size().bytes(), 0);
        let mut search = SlotSearch::new(uuid, side, previous);
        loop {
            view.control_sector(side.sector(), sector);
            let position = PointerSector::position_in(sector).ok_or(Reason::HostCorrupt)?;
            let tally = match search.observe(sector, position) {
                Ok(Reading::Again) => continue,
                Ok(Reading::Final(slot)) => Ok(slot.map(|slot| slot.tally)),
                Err(_) => Err(Reason::HostCorrupt),
            };
            return Ok(HostState { position, tally });
        }
    }

    /// Returns why a write to `range` is refused, of which one sector is refused for `reason`.
    ///
    /// No correct program writes the first page as a whole, since it holds both pointers: part of
    /// such a page is stale, or meant for elsewhere.
    fn reason_for(&self, range: &Range<u64>, reason: Reason) -> Reason {
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
