//! `blockring check`.

use super::address::Address;
use super::failure::{Failure, Outcome};
use super::output::{print, require_output};
use ring_program::text::items;
use serde::Serialize;
use shared_block_ring::{Control, DebugInfo, check};

/// Verify a ring: its identity, its pointers, the framing of every item and the checksum
#[derive(clap::Args)]
#[command(after_help = "\
check changes nothing. Use it while no program changes the ring. The exit code is 0 if the ring is
sound, 5 if the device holds no ring or a corrupt one, and 1 or 3 if the ring could not be read.

Examples:
  blockring check ring.img && echo sound
  blockring check --json /dev/vg0/ring")]
pub struct Check {
    #[command(flatten)]
    address: Address,
    /// Print one JSON object instead of text, also if the command fails
    #[arg(long)]
    pub json: bool,
}

/// What a check has found.
#[derive(Default, Serialize)]
pub struct Verdict {
    sound: bool,
    problem: Option<String>,
    items: u64,
    bytes: u64,
    unchecked_bytes: u64,
    notices: Vec<String>,
    ring: Option<DebugInfo>,
}

impl Check {
    pub fn run(self, verdict: &mut Verdict) -> Outcome {
        require_output()?;
        self.examine(verdict).inspect_err(|failure| {
            // Another error says that the ring could not be read: it may be sound.
            verdict.problem = failure.damage().map(ToString::to_string);
        })?;
        verdict.sound = true;
        if self.json { Ok(()) } else { print(&verdict.words(), None) }
    }

    fn examine(&self, verdict: &mut Verdict) -> Outcome {
        let about = Failure::about(self.address.name());
        let control = Control::open(self.address.open_read_only()?).map_err(&about)?;
        let ring = verdict.ring.insert(control.debug_info().map_err(&about)?);
        verdict.notices = ring.notices().iter().map(ToString::to_string).collect();
        // A vhost-user backend serves one front end at a time.
        drop(control);
        let found = check(self.address.open_read_only()?).map_err(&about)?;
        verdict.items = found.items;
        verdict.bytes = found.payload_bytes;
        verdict.unchecked_bytes = found.unchecked_bytes;
        Ok(())
    }
}

impl Verdict {
    fn words(&self) -> String {
        let mut lines = vec![format!(
            "sound: {} {}, {} bytes of payload",
            self.items,
            items(self.items),
            self.bytes
        )];
        if self.unchecked_bytes > 0 {
            lines.push(format!("without a checksum: {} bytes", self.unchecked_bytes));
        }
        lines.extend(self.notices.iter().map(|notice| format!("note: {notice}")));
        lines.join("\n")
    }
}
