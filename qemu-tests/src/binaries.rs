//! The programs under test: built once a process, and found where cargo puts them. They are linked
//! statically, so that guests and the host run the same files.
//!
//! Several test processes may do so at once: cargo's lock makes the later ones wait, and then find
//! everything fresh. With `BLOCKRING_BUILT` in the environment nothing is built: `scripts/test.sh`
//! has done that.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::error::{Error, Result, tail};

/// The programs of one build.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// Returns the programs of a build in a folder.
    pub fn in_folder(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Returns the command-line program.
    pub fn blockring(&self) -> PathBuf {
        self.folder.join("blockring")
    }

    /// Returns the vhost-user back end.
    pub fn vhost_device_blockring(&self) -> PathBuf {
        self.folder.join("vhost-device-blockring")
    }

    /// Returns the example of a journal. Only the tests' build has it.
    pub fn transfer(&self) -> PathBuf {
        self.folder.join("examples/transfer")
    }

    /// Returns the executable that is all programs of the tests (`src/bin/test-tools/main.rs`).
    pub fn test_tools(&self) -> PathBuf {
        self.folder.join("test-tools")
    }

    /// Returns the command that runs one of them.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.test_tools());
        command.arg(name);
        command
    }
}

/// Returns what `scripts/build.sh` builds, for the host and for guests: the release, or the profile
/// that `BLOCKRING_PROFILE` names.
pub fn programs() -> Result<&'static Binaries> {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    once(&BUILT, || {
        run(&mut build())?;
        let profile = env::var_os("BLOCKRING_PROFILE").unwrap_or_else(|| "release".into());
        Ok(Binaries { folder: target_dir().join("x86_64-unknown-linux-gnu").join(profile) })
    })
}

/// Returns the command that builds the programs, and whatever else arguments for cargo name.
pub fn build() -> Command {
    let mut command = Command::new(workspace().join("scripts/build.sh"));
    command.env("CARGO_TARGET_DIR", target_dir());
    command
}

/// Returns the host's two programs and the example, as another build: that of the tests, with
/// assertions.
pub fn debug() -> Result<&'static Binaries> {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    once(&BUILT, || {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--workspace", "--profile", "test", "--example", "transfer"]);
        cargo.args(["--bin", "blockring", "--bin", "vhost-device-blockring"]);
        cargo.current_dir(workspace()).env("CARGO_TARGET_DIR", target_dir());
        cargo.env_remove("CARGO_BUILD_TARGET");
        run(&mut cargo)?;
        Ok(Binaries { folder: target_dir().join("debug") })
    })
}

/// `OnceLock::get_or_try_init`, which is not stable yet. Two threads may both build; cargo sorts
/// that out.
fn once(cell: &OnceLock<Binaries>, build: impl FnOnce() -> Result<Binaries>) -> Result<&Binaries> {
    match cell.get() {
        Some(made) => Ok(made),
        None => build().map(|made| cell.get_or_init(|| made)),
    }
}

fn run(build: &mut Command) -> Result<()> {
    if env::var_os("BLOCKRING_BUILT").is_some() {
        return Ok(());
    }
    let program = build.get_program().display().to_string();
    let output = build.output().map_err(Error::io(format!("starting {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Build { command: format!("{build:?}"), stderr: tail(&output.stderr) })
}

/// Returns the workspace's root folder.
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Cargo's target folder, absolute.
pub fn target_dir() -> PathBuf {
    // `join` keeps an absolute path as it is.
    workspace().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
