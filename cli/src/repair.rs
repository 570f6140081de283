//! `blockring repair`.

use super::address::{Address, IS_IT_RIGHT, KERNEL_ONLY, both_roles};
use super::failure::{Failure, Outcome};
use super::output::{print, require_output};
use serde::Serialize;
use shared_block_ring::device::shown;
use shared_block_ring::{Error, Repair as Plan, make_empty, sync_name};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Repair the first three sectors of a damaged ring; without --write, only print what is wrong
#[derive(clap::Args)]
#[command(after_help = "\
repair changes only the three sectors before the items (identity and both pointers), never an item.
It first copies these sectors, as they were, to a file. To undo a repair, with the names of that
file and of the ring: dd if=KEPT of=RING conv=notrunc

Without --write the exit code is 0 if there is nothing to repair, and 5 if there is.

Examples:
  blockring repair ring.img                              print what would be repaired
  blockring repair --write ring.img && blockring check ring.img
  blockring repair --write --keep /root/heads /dev/vg0/ring",
    mut_arg("address", |address| address.help(KERNEL_ONLY)))]
pub struct Repair {
    #[command(flatten)]
    address: Address,
    /// Repair the ring
    #[arg(long)]
    write: bool,
    /// New file for a copy of the three sectors before the repair; it must not exist [default: the
    /// path of the ring with .before-repair, and with a number if that exists]
    #[arg(long, value_name = "FILE", requires = "write")]
    keep: Option<PathBuf>,
    /// Print one JSON object instead of text, also if the command fails
    #[arg(long)]
    pub json: bool,
}

/// The repairs that were made, or are needed.
#[derive(Default, Serialize)]
pub struct Report {
    fixes: Vec<String>,
    written: bool,
    kept: Option<String>,
}

impl Repair {
    pub fn run(self, report: &mut Report) -> Outcome {
        require_output()?;
        let name = self.address.name();
        if self.address.is_served() {
            return Err(Failure::Refused(format!(
                "{name}: repair takes a file, a block device or serial:NAME (end the backend first, and name its file)"
            )));
        }
        let about = Failure::about(name.clone());
        if !self.write {
            let plan = Plan::plan(&self.address.open_read_only()?).map_err(&about)?;
            report.fixes = fixes(&plan);
            let printed = self.print(&plan, None);
            return if plan.fixes.is_empty() {
                printed
            } else {
                Err(Failure::Corrupt(format!("{name}: damaged (repair it with --write)")))
            };
        }
        let device = self.address.open_alone(IS_IT_RIGHT)?;
        let _alone = both_roles(&device)?;
        let plan = Plan::plan(&device).map_err(&about)?;
        report.fixes = fixes(&plan);
        let beside = |end: &str| {
            let mut path = self.address.as_os_str().to_owned();
            path.push(end);
            PathBuf::from(path)
        };
        let mut kept = self.keep.clone().unwrap_or_else(|| beside(".before-repair"));
        if !plan.fixes.is_empty() {
            // A file that exists is the copy of an earlier repair. If that was killed halfway, the
            // copy has the sectors as they were at first.
            for number in 2_u32.. {
                match keep(&kept, &plan.old) {
                    Err(e) if e.kind() == ErrorKind::AlreadyExists && self.keep.is_none() => {
                        kept = beside(&format!(".before-repair-{number}"));
                    }
                    kept_now => {
                        let what = format!("nothing was repaired: cannot keep {}", shown(&kept));
                        kept_now.map_err(Failure::io(what))?;
                        break;
                    }
                }
            }
            // Reported also if the write fails: the copy is complete.
            report.kept = Some(shown(&kept));
            plan.write(&device).map_err(Error::from)?;
            report.written = true;
        }
        self.print(&plan, Some(&kept))
    }

    fn print(&self, plan: &Plan, kept: Option<&Path>) -> Outcome {
        if self.json {
            return Ok(());
        }
        let kept = kept.filter(|_| !plan.fixes.is_empty());
        let mut lines: Vec<String> =
            plan.fixes.iter().map(|fix| format!("sector {}: {}", fix.sector, fix.what)).collect();
        match kept {
            Some(kept) => {
                lines.push(format!("repaired; the sectors as they were: {}", shown(kept)));
            }
            None if plan.fixes.is_empty() => lines.push("nothing to repair".to_owned()),
            None => {}
        }
        print(&lines.join("\n"), None)
    }
}

fn fixes(plan: &Plan) -> Vec<String> {
    plan.fixes.iter().map(|fix| fix.what.clone()).collect()
}

/// Makes the file with all of `bytes` in it, durable, or no file.
fn keep(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = make_empty(path)?;
    let kept = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| sync_name(path));
    kept.inspect_err(|_| {
        // A part of the copy would make the next repair choose another name.
        let _ = std::fs::remove_file(path);
    })
}
