//! What root in the guest can try against its ring through the kernel's disk, each attack by name.
//!
//! `redteam` carries one of them out in the guest. Before, in between and after, an honest producer publishes items that follow from a
//! seed and a number, so that the host can tell each of them. The guest says what must have been refused, the backend's counters
//! say why it was, and the two are compared.

mod consumer;
mod data;
mod driver;
mod heads;
mod items;
mod kernel;
mod meanwhile;
mod races;
mod raid;
mod second;
mod storms;
mod verdict;

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use shared_block_ring::device::{AlignedBuf, DeviceError};
use shared_block_ring::{BlockDevice, Error, Position};
use std::io::IoSliceMut;
use vhost_device_blockring::guard::Reason;

use crate::load::item::{Recipe, Stamp};

pub use driver::RESET_DONE;
pub use raid::Raid;

/// Items that the host's consumer does not free before later ones have come: what the guest has published last is published and
/// unconsumed, whenever it looks.
pub const HELD: usize = 4;

/// Attacks that are tried on the same guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// On the sectors in front of the data, and on what a pointer is to cover.
    Heads,
    /// On data, published and free.
    Data,
    /// By ways of the kernel that are not a program's plain writes.
    Kernel,
    /// Something changes while it is judged.
    Races,
    /// Much at once.
    Storms,
    /// The driver and the device themselves.
    Driver,
    /// By a guest that is the consumer: there is no honest producer in it.
    Consumer,
}

impl Group {
    /// One of this group. What it tries is refused for `reasons`.
    const fn attack(
        self,
        name: &'static str,
        reasons: &'static [Reason],
        run: fn(&mut Raid) -> Result<(), Failure>,
    ) -> Attack {
        Attack { name, group: self, reasons, run }
    }
}

/// One attack.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    /// Its name.
    pub name: &'static str,
    /// Where it belongs.
    pub group: Group,
    /// For what its requests are refused, and nothing else is.
    pub reasons: &'static [Reason],
    run: fn(&mut Raid) -> Result<(), Failure>,
}

/// All attacks, in the order of their groups.
pub fn attacks() -> Vec<Attack> {
    [
        heads::ATTACKS,
        items::ATTACKS,
        data::ATTACKS,
        kernel::ATTACKS,
        races::ATTACKS,
        second::ATTACKS,
        storms::ATTACKS,
        driver::ATTACKS,
        consumer::ATTACKS,
    ]
    .concat()
}

/// What the guest knows of an attack that went as it must.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Requests that were refused, by the reason that there is for it.
    pub refused: BTreeMap<String, u64>,
    /// Those where it depends on chance which of the attack's reasons comes first.
    pub by_chance: u64,
    /// Those that were refused or were none, which the guest cannot tell apart.
    pub perhaps: u64,
    /// The kernel may have made several requests of one, or tried again.
    pub at_least: bool,
    /// Requests of the attack that were carried out.
    pub passed: u64,
    /// What the kernel answered by itself: nothing of it got to the backend.
    pub barred: u64,
    /// The number of the next honest item.
    pub next: u32,
}

/// Why an attack did not go as it must.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The ring library.
    #[error("{0}")]
    Ring(#[from] Error),
    /// The operating system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It succeeded.
    #[error("{0}")]
    Unsound(String),
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self::Ring(error.into())
    }
}

impl From<nix::errno::Errno> for Failure {
    fn from(error: nix::errno::Errno) -> Self {
        Self::Io(error.into())
    }
}

/// Fails unless it is so.
fn ensure(so: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if so { Ok(()) } else { Err(Failure::Unsound(what())) }
}

/// The honest item of this number.
pub fn honest_item(recipe: Recipe, number: u32) -> Vec<u8> {
    recipe.item(Stamp { run: 1, batch: number, index: 0, size: 1, number })
}

/// The stream's bytes between two positions, at most a ring apart, as the device has them now.
pub fn stream<D: BlockDevice + ?Sized>(
    device: &D,
    from: Position,
    to: Position,
) -> Result<Vec<u8>, DeviceError> {
    let geometry = device.geometry();
    let size = u64::from(geometry.sector_size().get());
    let mut bytes = Vec::new();
    for extent in geometry.extents(from.get(), to.since(from).unwrap_or(0)) {
        if extent.len == 0 {
            continue;
        }
        let start = geometry.sector_floor(extent.offset);
        let len = index(geometry.sector_ceil(extent.offset + extent.len) - start);
        let mut sectors = AlignedBuf::zeroed(len);
        device.read(start / size, &mut [IoSliceMut::new(&mut sectors)])?;
        let at = index(extent.offset - start);
        bytes.extend_from_slice(&sectors[at..at + index(extent.len)]);
    }
    Ok(bytes)
}

/// What lies within a ring lies within memory.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
