//! `blockring inspect`: what lies where in a ring, as a table, as JSON lines or as a picture.

mod file;
mod found;
mod groups;
mod lines;
mod map;
mod picture;
mod svg;

use super::address::{Address, Device, positive};
use super::failure::{Failure, Outcome};
use super::output::require_output;
use file::write_whole;
use found::Found;
use lines::{ItemLine, Lines};
use serde::Serialize;
use shared_block_ring::Position;
use shared_block_ring::survey::{Checksum, Step, Survey};
use std::path::{Path, PathBuf};

/// Show what lies where in a ring: sectors, pointers, items, free space, damage
#[derive(clap::Args)]
#[command(after_help = "\
inspect changes nothing, takes no role, and can be used while a producer and a consumer are at work:
items that are consumed meanwhile are left out. All published items are read and verified. The exit
code is 5 if something is damaged, which is shown all the same.

Published bytes are those between the two pointers. Pending ones are written, and the producer's
pointer is about to move behind them, or its writer died before. Damaged ones are published, and not
what the producer wrote; where only the checksum over all of them says so, all of them count.

Examples:
  blockring inspect ring.img
  blockring inspect --items --limit 20 unix:/run/vm1.out
  blockring inspect --items --from 61992 --limit 1 --json ring.img
  blockring inspect --svg ring.svg ring.img")]
pub struct Inspect {
    #[command(flatten)]
    address: Address,
    /// List the items too, each with the first bytes of its payload in hexadecimal and as text
    #[arg(long)]
    items: bool,
    /// List no items in front of this position
    #[arg(long, value_name = "POSITION", requires = "items")]
    from: Option<Position>,
    /// List that many items at most
    #[arg(long, value_name = "N", value_parser = positive::<u64>, requires = "items")]
    limit: Option<u64>,
    /// Draw the ring into this file instead, or to standard output if it is "-"
    #[arg(long, value_name = "FILE", conflicts_with_all = ["items", "json"])]
    svg: Option<PathBuf>,
    /// Print JSON lines: sectors, items, extents of the data area, and at last the whole, also if
    /// the command fails
    #[arg(long)]
    pub json: bool,
}

/// Totals of an inspection.
#[derive(Default, Serialize)]
pub struct Whole {
    kind: &'static str,
    items: u64,
    payload_bytes: u64,
    /// Bytes of the stream that were verified by a checksum.
    verified_bytes: u64,
    damage: Vec<String>,
    notices: Vec<String>,
}

impl Inspect {
    pub fn run(self, whole: &mut Whole) -> Outcome {
        whole.kind = "ring";
        if self.svg.as_deref().is_none_or(is_output) {
            require_output()?;
        }
        let about = Failure::about(self.address.name());
        let device = self.address.open_read_only()?;
        if let Some(path) = self.svg.as_deref().filter(|path| !is_output(path)) {
            file::refuse(path, &self.address, &device)?;
        }
        let mut survey = Survey::open(device).map_err(&about)?;
        // Damaged pointers are shown, not reported as an error here.
        let info = survey.debug_info().ok();
        let mut found = Found::new(self.address.name(), &survey, info.as_ref());
        let mut lines = Lines::new(self.json)?;
        if self.svg.is_none() {
            lines.sectors(&found)?;
        }
        self.walk(&mut survey, &mut found, &mut lines)?;
        found.finish(survey.from().get(), survey.checksum());
        whole.items = found.items.count();
        whole.payload_bytes = found.payload_bytes;
        if let Checksum::Good(bytes) = found.checksum {
            whole.verified_bytes = bytes;
        }
        whole.damage.clone_from(&found.damage);
        whole.notices.clone_from(&found.notices);
        match self.svg.as_deref() {
            None => lines.extents(&found)?,
            Some(path) if is_output(path) => lines.text(&picture::draw(&found)),
            Some(path) => write_whole(path, picture::draw(&found).as_bytes())?,
        }
        lines.finish()?;
        match found.damage.first() {
            Some(damage) => Err(Failure::Corrupt(format!("{}: {damage}", self.address.name()))),
            None => Ok(()),
        }
    }

    /// Goes over all items, and lists those that were asked for.
    fn walk(&self, survey: &mut Survey<Device>, found: &mut Found, lines: &mut Lines) -> Outcome {
        self.refuse_position(found)?;
        let geometry = survey.geometry();
        let from = self.from.unwrap_or(Position::ZERO);
        let mut left = if self.items { self.limit.unwrap_or(u64::MAX) } else { 0 };
        loop {
            match survey.step().map_err(Failure::about(self.address.name()))? {
                Step::Item(header, preview) => {
                    found.items.add(header.at.get(), header.next.get());
                    found.payload_bytes += u64::from(header.length);
                    if left > 0 && header.at >= from {
                        left -= 1;
                        lines.item(&ItemLine::new(geometry, header, preview))?;
                    }
                }
                Step::Freed(position) => {
                    found.items.free(position.get());
                    found.payload_bytes = 0;
                }
                Step::Damaged(_, damage) => found.damage.push(damage.to_string()),
                Step::End => return Ok(()),
            }
        }
    }

    /// Refuses a position at which no published item can be. Where a pointer is damaged there are
    /// no items, which is shown.
    fn refuse_position(&self, found: &Found) -> Outcome {
        let (Some(from), Some(marks)) = (self.from, found.marks) else { return Ok(()) };
        let (first, end) = (marks.consumer, marks.producer);
        if from.get() < first || from.get() > end {
            let text = format!(
                "{}: position {from} is not published: the items lie from position {first} to {end}",
                self.address.name()
            );
            return Err(Failure::Refused(text));
        }
        Ok(())
    }
}

/// Returns whether a path stands for standard output.
fn is_output(path: &Path) -> bool {
    path == Path::new("-")
}
