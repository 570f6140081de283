//! What the guest was promised, and whether a power failure keeps it.

use crate::program::{POINTER, Program, Request};
use ring_simulation::{Disk, Found, inspect};
use shared_block_ring::Position;
use shared_block_ring::format::{PointerSector, SectorSize, Side};
use std::collections::HashMap;
use std::sync::Arc;

/// Writes that were answered, in that order, and how many of them a FLUSH has made durable.
#[derive(Default, Hash)]
pub struct Promises {
    answered: Vec<Request>,
    promised: usize,
}

/// Rings that were found on disks after power failures.
#[derive(Default)]
pub struct Crashes {
    found: HashMap<Vec<u8>, Result<Found, String>>,
    pub examined: u64,
}

impl Crashes {
    pub fn different(&self) -> usize {
        self.found.len()
    }
}

fn position(sector: &[u8]) -> Position {
    PointerSector::decode(Side::Producer, sector).unwrap().position
}

impl Promises {
    pub fn answer_write(&mut self, write: Request) {
        self.answered.push(write);
    }

    /// Returns the number of writes that were answered: those a FLUSH that begins now covers.
    pub fn answered(&self) -> usize {
        self.answered.len()
    }

    pub fn answer_flush(&mut self, covered: usize) {
        self.promised = self.promised.max(covered);
    }

    /// Examines every power failure that could happen now. `visible` are the contents that each
    /// sector has had, in their order.
    pub fn examine(
        &self,
        program: &Program,
        disk: &Disk,
        visible: &[Vec<Vec<u8>>],
        crashes: &mut Crashes,
    ) -> Result<(), String> {
        let versions = disk.versions();
        let mut least = Position::ZERO;
        for write in &self.answered[..self.promised] {
            let Request::Write { sector, bytes } = write else { continue };
            if *sector == POINTER {
                least = least.max(position(bytes));
                continue;
            }
            let at = usize::try_from(*sector).unwrap();
            let age = |content: &[u8]| visible[at].iter().position(|seen| seen == content);
            if age(bytes).is_none_or(|promised| age(&versions[at][0]) < Some(promised)) {
                return Err(format!("sector {sector} may be lost, and was promised"));
            }
        }
        let most = position(versions[usize::try_from(POINTER).unwrap()].last().unwrap());
        let mut chosen = vec![0; versions.len()];
        loop {
            crashes.examined += 1;
            let kept = chosen.iter().zip(&versions).map(|(&choice, of)| Arc::clone(&of[choice]));
            let image: Vec<u8> = kept.flat_map(|content| content.to_vec()).collect();
            let found = crashes
                .found
                .entry(image)
                .or_insert_with_key(|image| inspect(&Disk::of(SectorSize::DEFAULT, image)));
            check(found, program, least, most)
                .map_err(|e| format!("after a power failure that keeps {chosen:?}: {e}"))?;
            let next = (0..chosen.len()).find(|&at| chosen[at] + 1 < versions[at].len());
            let Some(next) = next else { return Ok(()) };
            chosen[..next].fill(0);
            chosen[next] += 1;
        }
    }
}

fn check(
    found: &Result<Found, String>,
    program: &Program,
    least: Position,
    most: Position,
) -> Result<(), String> {
    let Found::Ring(ring) = found.as_ref().map_err(String::clone)? else {
        return Err("the ring is gone".to_owned());
    };
    if ring.producer < least || ring.producer > most {
        return Err(format!("{} items are published, and {least} was promised", ring.items.len()));
    }
    let published = program.items.iter().filter(|item| item.end <= ring.producer);
    if !published.eq(&ring.items) {
        return Err(format!("these items are there: {:?}", ring.items));
    }
    Ok(())
}
