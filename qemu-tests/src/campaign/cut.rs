//! The instant at which the power fails, and what is left then.
//!
//! Instants at random hardly ever meet the few that hurt: those at which something is not durable that something else rests on.

use ring_simulation::Adversary;
use vhost_device_blockring::request::{Kind, Request};

use crate::load::Random;

/// Sectors of the two pointers, and the first one of the data.
const PRODUCER: u64 = 1;
const CONSUMER: u64 = 2;
const DATA: u64 = 3;

/// Requests that the right one is waited for, when it is time for the cut: the ends may be busy with others.
const WAIT: u64 = 1000;

/// When the power fails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Requests before.
    requests: u64,
    /// The kind of the request that is the last one, and how many were of another kind when it was due.
    last: Last,
    waited: u64,
    /// Whether that one is answered, too, or only carried out.
    answered: bool,
    /// Where that one begins.
    sector: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Any,
    /// A pointer has arrived, and is not flushed.
    Pointer,
    /// The same, while the other end's pointer, which it may rest on, is not durable.
    Overtaking,
    /// Data has arrived, perhaps in space that was freed by a pointer that is not durable.
    Reuse,
    /// A flush, which is not even carried out: as much as can be is at stake.
    Flush,
}

impl Cut {
    /// Within the next `requests`, or soon after.
    pub fn at_random(requests: u64, random: &mut Random) -> Self {
        let kinds = [Last::Any, Last::Pointer, Last::Overtaking, Last::Reuse, Last::Flush];
        let last = kinds[random.count(kinds.len())];
        let (requests, answered) = (random.below(requests), random.one_in(2));
        Self { requests, last, waited: 0, answered, sector: 0 }
    }

    /// Whether this request is the last one; `pending` tells what is not durable before it.
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

    /// Whether a flush that is the last request is not carried out.
    pub fn forestalls_a_flush(self) -> bool {
        self.last == Last::Flush
    }

    /// Whether the last request is answered, once it is carried out.
    pub fn is_answered(self) -> bool {
        self.answered
    }
}

/// What is left of what was not durable.
pub(super) struct Loss {
    /// At times just what makes the instant hurt: of the pointers only the one in this sector, or neither, and all data.
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

    /// For [`Disk::crash`](ring_simulation::Disk::crash).
    pub fn choose(&mut self, sector: u64, versions: usize) -> usize {
        match self.kept {
            Some(kept) if sector == kept || sector >= DATA => versions - 1,
            Some(_) => 0,
            None => self.adversary.choose(sector, versions),
        }
    }
}
