//! Attacks of root in the guest on its ring through the kernel's disk, each with a name.
//!
//! `redteam` carries out one of them in the guest. Before, in between and after, an honest producer
//! publishes items that follow from a seed and a number, so that the host can tell each of them.
//! The guest reports what must have been refused, the backend's counters tell why it was, and the
//! two are compared.

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
use vhost_device_blockring::data_path::guard::Reason;

use crate::load::item::{Recipe, Stamp};

pub use driver::RESET_DONE;
pub use raid::Raid;

/// Items that the host's consumer keeps until later ones have come: the last items that the guest
/// has published are unconsumed whenever it looks.
pub const HELD: usize = 4;

/// Group of attacks that are tried on the same guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Attacks on the pointer sectors and the identity, and on the framing that a pointer
    /// publishes.
    Heads,
    /// Attacks on data, published and free.
    Data,
    /// Attacks by kernel interfaces other than plain writes.
    Kernel,
    /// Attacks that change bytes while they are judged.
    Races,
    /// Attacks by many requests at once.
    Storms,
    /// Attacks on the driver and the device themselves.
    Driver,
    /// Attacks of a guest that is the consumer, without an honest producer in it.
    Consumer,
}

impl Group {
    /// Makes an attack of this group, whose requests are refused for `reasons`.
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
    /// Its group.
    pub group: Group,
    /// Reasons for which its requests are refused; no other request is.
    pub reasons: &'static [Reason],
    run: fn(&mut Raid) -> Result<(), Failure>,
}

/// Returns all attacks, in the order of their groups.
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

/// The guest's report of an attack that went as it must.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Refused requests by reason.
    pub refused: BTreeMap<String, u64>,
    /// Refused requests for any of the attack's reasons, by chance.
    pub by_chance: u64,
    /// Requests that were refused or never made, which the guest cannot tell apart.
    pub perhaps: u64,
    /// Whether the kernel may have split or repeated requests.
    pub at_least: bool,
    /// Requests that were carried out.
    pub passed: u64,
    /// Requests that the kernel refused by itself, and which did not reach the backend.
    pub barred: u64,
    /// Number of the next honest item.
    pub next: u32,
}

/// Failure of an attack to go as it must.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Error of the ring library.
    #[error("{0}")]
    Ring(#[from] Error),
    /// Error of the operating system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The attack succeeded.
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

/// Fails unless the condition holds.
fn ensure(so: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if so { Ok(()) } else { Err(Failure::Unsound(what())) }
}

/// Returns the honest item of this number.
pub fn honest_item(recipe: Recipe, number: u32) -> Vec<u8> {
    recipe.item(Stamp { run: 1, batch: number, index: 0, size: 1, number })
}

/// Returns the stream's bytes between two positions, at most a ring apart, as the device has them
/// now.
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

/// Converts an offset within a ring to an index into memory.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
