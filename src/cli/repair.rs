//! `blockring repair`.

use super::address::{Address, both_roles};
use super::failure::{Failure, Outcome};
use serde::Serialize;
use shared_block_ring::{Error, Repair as Plan};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bring back what is whole of a damaged ring. Says what it would do, and does it only with --write
#[derive(clap::Args)]
#[command(after_help = "\
Only the three sectors in front of the items are changed: no item is. What they were is kept in a file
of its own; to take a repair back: dd if=KEPT of=RING conv=notrunc.

Examples:
  blockring repair ring.img                              what would be done (exit code 5 if anything)
  blockring repair --write ring.img && blockring check ring.img
  blockring repair --write --keep /root/heads /dev/vg0/ring")]
pub struct Repair {
    #[command(flatten)]
    address: Address,
    /// Do it
    #[arg(long)]
    write: bool,
    /// Where the sectors are kept as they were; must not exist [default: the ring's path with .before-repair]
    #[arg(long, value_name = "FILE", requires = "write")]
    keep: Option<PathBuf>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    fixes: Vec<&'a str>,
    written: bool,
    kept: Option<&'a Path>,
}

impl Repair {
    pub fn run(self) -> Outcome {
        let name = self.address.name().to_owned();
        if self.address.is_served() {
            return Err(Failure::Refused(format!(
                "{name}: a ring is repaired while no backend serves it: name its file"
            )));
        }
        let during = |source| Failure::During { what: name.clone(), source };
        if !self.write {
            let plan = Plan::plan(&self.address.open_read_only()?).map_err(during)?;
            self.report(&plan, None);
            return if plan.fixes.is_empty() {
                Ok(())
            } else {
                Err(Failure::Corrupt(format!("{name}: damaged (repair it with --write)")))
            };
        }
        let device = self.address.open_file()?;
        let _alone = both_roles(&device)?;
        let plan = Plan::plan(&device).map_err(during)?;
        let kept = self.keep.clone().unwrap_or_else(|| format!("{name}.before-repair").into());
        if !plan.fixes.is_empty() {
            keep(&kept, &plan.old).map_err(Failure::io(format!(
                "nothing was repaired: cannot keep {}",
                kept.display()
            )))?;
            plan.write(&device).map_err(Error::from)?;
        }
        self.report(&plan, Some(&kept));
        Ok(())
    }

    fn report(&self, plan: &Plan, kept: Option<&Path>) {
        let kept = kept.filter(|_| !plan.fixes.is_empty());
        if self.json {
            let fixes = plan.fixes.iter().map(|fix| fix.what.as_str()).collect();
            let report = Report { fixes, written: kept.is_some(), kept };
            println!("{}", serde_json::to_string(&report).unwrap_or_default());
            return;
        }
        for fix in &plan.fixes {
            println!("sector {}: {}", fix.sector, fix.what);
        }
        match kept {
            Some(kept) => println!("repaired; the sectors as they were: {}", kept.display()),
            None if plan.fixes.is_empty() => println!("nothing to repair"),
            None => {}
        }
    }
}

fn keep(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
