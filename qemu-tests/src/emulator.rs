//! The QEMUs that can run a guest.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::assets;
use crate::error::{Error, Result};

const PROGRAM: &str = "qemu-system-x86_64";

/// A version of QEMU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Qemu {
    /// The one in `PATH`: 7.2 on Debian 12.
    #[default]
    System,
    /// 10.0, which `scripts/fetch-qemu.sh` puts beside it, or `BLOCKRING_QEMU_10`. The system's
    /// QEMU if that is as new.
    Ten,
}

impl Qemu {
    /// Returns the program, after it was fetched if need be.
    pub fn program(self) -> Result<PathBuf> {
        match self {
            Self::System => in_path(),
            Self::Ten => ten(),
        }
    }

    /// Returns the major version that the program reports.
    pub fn major_version(self) -> Result<u32> {
        let program = self.program()?;
        let output = Command::new(&program).arg("--version").output();
        let output = output.map_err(Error::file("running", &program))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version = said.split_whitespace().skip_while(|&word| word != "version").nth(1);
        let major = version.and_then(|version| version.split('.').next()?.parse().ok());
        major.ok_or_else(|| Error::Answer {
            what: format!("{} --version", program.display()),
            answer: said.into_owned(),
        })
    }
}

fn in_path() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    candidates.find(|program| program.exists()).ok_or_else(|| Error::Missing {
        what: PROGRAM.to_owned(),
        remedy: "scripts/setup.sh installs it".to_owned(),
    })
}

fn ten() -> Result<PathBuf> {
    if let Some(path) = env::var_os("BLOCKRING_QEMU_10") {
        return Ok(path.into());
    }
    let fetched = assets::cache_dir().join("qemu-10").join(PROGRAM);
    if !fetched.exists() {
        assets::run_script("scripts/fetch-qemu.sh", &[])?;
    }
    // The script has fetched nothing if the system's is as new.
    if fetched.exists() { Ok(fetched) } else { in_path() }
}
