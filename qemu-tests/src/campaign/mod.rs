//! Crash campaigns: the ends of rings are killed at random instants, or the power fails, and logs
//! outside the rings tell whether everything that was promised holds.

pub mod check;
mod cut;
mod cuts;
mod host;
mod inside;
mod kills;
mod power;
mod report;
pub mod restarts;
mod rig;
mod served;
mod stream;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shared_block_ring::format::Side;

use crate::load::Random;
use crate::load::item::Recipe;

pub use check::{Tally, Violation};
pub use power::Flushes;
pub use report::{Plan, Report, run};
pub use rig::Rig;

/// Size of every ring: so small that the load wraps and fills it all the time, large enough for a
/// batch.
const RING_BYTES: u64 = 64 << 10;

/// Failure of a campaign.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A promise is broken.
    #[error("{0}")]
    Violation(Violation),
    /// A process ended or stood still that had to go on.
    #[error("{0}")]
    Unsound(String),
    /// The campaign itself failed.
    #[error("{0}")]
    Helper(#[from] crate::Error),
    /// The ring library has refused what it must not refuse.
    #[error("{0}")]
    Ring(#[from] shared_block_ring::Error),
    /// Folder of the logs that show the failure.
    #[error("{failure}\n(its logs are in {})", folder.display())]
    Kept {
        /// The failure.
        failure: Box<Failure>,
        /// The folder, which is kept.
        folder: PathBuf,
    },
}

type Result<T> = std::result::Result<T, Failure>;

fn unsound<T>(text: String) -> Result<T> {
    Err(Failure::Unsound(text))
}

/// Victim of the kills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The producer on the host.
    Producer,
    /// The consumer on the host.
    Consumer,
    /// The backend.
    Backend,
    /// QEMU.
    Qemu,
    /// QEMU, backend and the process on the host at once.
    All,
    /// The power, of a guest with both ends in it.
    Cuts,
    /// QEMU, after it has saved the guest, which another QEMU then goes on with.
    Saved,
}

impl Kind {
    /// Returns the end that is killed, if it is one on the host.
    fn victim(self) -> Option<Side> {
        match self {
            Self::Producer => Some(Side::Producer),
            Self::Consumer => Some(Side::Consumer),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Producer => "producer",
            Self::Consumer => "consumer",
            Self::Backend => "backend",
            Self::Qemu => "qemu",
            Self::All => "all",
            Self::Saved => "saved",
            Self::Cuts => "cuts",
        })
    }
}

/// Outcome of one stream.
#[derive(Debug, Default)]
struct Outcome {
    tally: Tally,
    stalls: Vec<Duration>,
}

/// Called after every death.
type Killed<'a> = &'a (dyn Fn() + Sync);

fn recipe(random: &mut Random) -> Recipe {
    Recipe { seed: random.next_u64() }
}

/// Runs `work` in a folder of its own, which stays only if it fails.
fn in_a_folder<T>(work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folder = tempfile::Builder::new().prefix("blockring-campaign-").tempdir();
    let folder = folder.map_err(crate::Error::io("making a temporary folder"))?;
    work(folder.path())
        .map_err(|failure| Failure::Kept { failure: Box::new(failure), folder: folder.keep() })
}
