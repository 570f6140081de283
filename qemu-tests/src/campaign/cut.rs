//! The instant of a power failure, and the sector versions that are left.
//!
//! Random instants hardly ever meet the few harmful ones: those at which something is not durable
//! that something else rests on.

use ring_simulation::Adversary;
use vhost_device_blockring::data_path::request::{Kind, Request};

use crate::load::Random;

/// Sectors of the two pointers, and the first one of the data.
const PRODUCER: u64 = 1;
const CONSUMER: u64 = 2;
const DATA: u64 = 3;

/// Requests for which the cut is put off until one of the right kind comes: the ends may be busy
/// with others.
const WAIT: u64 = 1000;

/// Instant of the power failure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Requests before it.
    requests: u64,
    /// Kind of the last request, and the number of requests of other kinds since the cut was due.
    last: Last,
    waited: u64,
    /// Whether the last request is answered, or only carried out.
    answered: bool,
    /// First sector of the last request.
    sector: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Any,
    /// A pointer was written, and is not flushed.
    Pointer,
    /// A pointer was written while the other end's pointer, on which it may rest, is not durable.
    Overtaking,
    /// Data was written, perhaps in space that a pointer freed which is not durable.
    Reuse,
    /// A flush, which is not carried out.
    Flush,
}

impl Cut {
    /// Makes a power cut within the next `requests`, or soon after.
    pub fn at_random(requests: u64, random: &mut Random) -> Self {
        let kinds = [Last::Any, Last::Pointer, Last::Overtaking, Last::Reuse, Last::Flush];
        let last = kinds[random.count(kinds.len())];
        let (requests, answered) = (random.below(requests), random.one_in(2));
        Self { requests, last, waited: 0, answered, sector: 0 }
    }

    /// Returns whether this request is the last one; `pending` tells what is not durable before it.
    pub fn is_due(&mut self, request: &Request, pending: impl Fn(u64) -> bool) -> bool {
        if let Some(left) = self.requests.checked_sub(1) {
            self.requests = left;
            return false;
        }
        self.waited += 1;
        self.sector = request.sector;
        let written = (request.kind() == Kind::Write).then_some(request.sector);
        let right = match self.last {
            Last::Any => true,
            Last::Pointer => matches!(written, Some(PRODUCER | CONSUMER)),
            Last::Overtaking => match written {
                Some(PRODUCER) => pending(CONSUMER),
                Some(CONSUMER) => pending(PRODUCER),
                _ => false,
            },
            Last::Reuse => written.is_some_and(|sector| sector >= DATA) && pending(CONSUMER),
            Last::Flush => request.kind() == Kind::Flush,
        };
        right || self.waited > WAIT
    }

    /// Returns whether a flush that is the last request is not carried out.
    pub fn forestalls_a_flush(self) -> bool {
        self.last == Last::Flush
    }

    /// Returns whether the last request is answered, once it is carried out.
    pub fn is_answered(self) -> bool {
        self.answered
    }
}

/// Chooses what is left of undurable sectors.
pub(super) struct Loss {
    /// Sometimes the harmful choice: of the pointers only the one in this sector, or neither, and
    /// all data.
    kept: Option<u64>,
    adversary: Adversary,
}

impl Loss {
    pub fn new(cut: Option<Cut>, mut random: Random) -> Self {
        let adversary = Adversary::new(random.next_u64(), DATA);
        let cut = cut.filter(|_| random.one_in(2));
        let hurts = |cut: Cut| matches!(cut.last, Last::Overtaking | Last::Reuse);
        Self { kept: cut.filter(|&cut| hurts(cut)).map(|cut| cut.sector), adversary }
    }

    /// Chooses a version of a sector, for [`Disk::crash`](ring_simulation::Disk::crash).
    pub fn choose(&mut self, sector: u64, versions: usize) -> usize {
        match self.kept {
            Some(kept) if sector == kept || sector >= DATA => versions - 1,
            Some(_) => 0,
            None => self.adversary.choose(sector, versions),
        }
    }
}
