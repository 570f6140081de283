//! `blockring check`.

use super::address::Address;
use super::failure::{Failure, Outcome};
use serde::Serialize;
use shared_block_ring::{Control, DebugInfo, Error, Sound, check};

/// Verify a ring offline: its identity, its pointers, the framing of every item and the checksum. Changes nothing
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  blockring check ring.img && echo sound
  blockring check --json /dev/vg0/ring")]
pub struct Check {
    #[command(flatten)]
    address: Address,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Verdict {
    sound: bool,
    problem: Option<String>,
    items: u64,
    bytes: u64,
    unchecked_bytes: u64,
    ring: Option<DebugInfo>,
}

impl Check {
    pub fn run(self) -> Outcome {
        let ring =
            Control::open(self.address.open_read_only()?).and_then(|control| control.debug_info());
        let walk = match &ring {
            Ok(_) => check(self.address.open_read_only()?),
            Err(_) => Ok(Sound::default()),
        };
        let problem = match (&ring, &walk) {
            (Err(e @ Error::Format(_)), _) | (_, Err(e @ Error::Format(_))) => Some(e.to_string()),
            _ => None,
        };
        if problem.is_none() {
            // Neither sound nor corrupt: it could not be read.
            if let Err(e) = ring {
                return Err(e.into());
            }
            if let Err(e) = walk {
                return Err(e.into());
            }
        }
        let found = walk.unwrap_or_default();
        let verdict = Verdict {
            sound: problem.is_none(),
            problem,
            items: found.items,
            bytes: found.bytes,
            unchecked_bytes: found.unchecked,
            ring: ring.ok(),
        };
        if self.json {
            println!("{}", serde_json::to_string(&verdict).unwrap_or_default());
        } else if verdict.sound {
            println!("sound: {} items, {} bytes of payload", verdict.items, verdict.bytes);
            if verdict.unchecked_bytes > 0 {
                println!("without a checksum: {} bytes", verdict.unchecked_bytes);
            }
        }
        match verdict.problem {
            None => Ok(()),
            Some(problem) => Err(Failure::Corrupt(format!("{}: {problem}", self.address.name()))),
        }
    }
}
